from __future__ import annotations

import json
from pathlib import Path

import pytest

from ovseg.errors import OvsegError
from tests.scripts import load_script

compare_results = load_script("tools/compare_results.py")


def evaluated(folder: Path, miou: float) -> Path:
    file = folder / "inference" / "toy" / "results.json"
    file.parent.mkdir(parents=True)
    results = {"sem_seg": {"mIoU": miou, "mIoU-base": miou + 1, "mIoU-novel": None}, "proposals": {"recall@0.5": 90.0}}
    file.write_text(json.dumps({"dataset": "toy", "results": results}))
    return folder


def test_runs_that_differ_in_their_seed_are_one_row(tmp_path, capsys):
    runs = [evaluated(tmp_path / name, miou) for name, miou in (("plain", 10.0), ("ft_0", 20.0), ("ft_1", 24.0))]
    runs[1] /= "inference/toy/results.json"  # folders and files may be given
    compare_results.main([*map(str, runs), "--scores", "mIoU", "recall@0.5"])
    rows = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert ["plain", "1", "10.0", "90.0"] in rows
    assert ["ft", "2", "22.0 ± 2.8", "90.0 ± 0.0"] in rows


def test_a_score_that_a_run_lacks_is_named_with_those_it_has(tmp_path):
    with pytest.raises(OvsegError, match=r"plain has no mIoU-novel on toy.*mIoU-base"):
        compare_results.compare([evaluated(tmp_path / "plain", 10.0)], ["mIoU", "mIoU-novel"])


def test_a_folder_without_an_evaluation_is_named(tmp_path):
    with pytest.raises(OvsegError, match=r"no inference/<data set>/results.json in .*empty"):
        compare_results.compare([tmp_path / "empty"], ["mIoU"])
