"""tools/benchmark_data.py, with few files and all in this process."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ovseg.errors import OvsegError
from tests.data.prepared import load, snapshot
from tests.scripts import load_script


@pytest.fixture
def tool(monkeypatch):
    module = load_script("tools/benchmark_data.py")
    monkeypatch.setattr(module, "DISTINCT", 2)
    monkeypatch.setattr(module, "in_a_process", lambda measure, *arguments: measure(*arguments))
    return module


def test_prepare(tool, tmp_path, capsys):
    output = tmp_path / "out.json"
    tool.main(["prepare", str(tmp_path / "data"), "--files", "5", "--workers", "1", "--output", str(output)])
    results = json.loads(output.read_text())
    assert [(result["run"], result["workers"], result["files"]) for result in results] == [
        ("first", 1, 5),
        ("second", 1, 5),
    ]
    assert all(result["files/s"] == pytest.approx(5 / result["seconds"]) for result in results)
    printed = capsys.readouterr().out
    assert "5 files written" in printed and "everything is there already" in printed and "files/s" in printed


def test_annotations_are_like_ade20k_and_are_made_once(tool, tmp_path):
    tool.generate(tmp_path, 5)
    labels = [load(tmp_path / f"ADE_train_{number:08d}.png") for number in range(1, 6)]
    assert all(array.shape == (512, 683) and array.dtype == np.uint8 and array.max() <= 150 for array in labels)
    assert all(6 <= len(np.unique(array)) <= 24 for array in labels)
    assert not (labels[0] == labels[1]).all() and (labels[0] == labels[2]).all()
    before = snapshot(tmp_path)
    tool.generate(tmp_path, 5)
    assert snapshot(tmp_path) == before
    (tmp_path / "ADE_train_00000002.png").unlink()
    tool.generate(tmp_path, 5)
    np.testing.assert_array_equal(load(tmp_path / "ADE_train_00000002.png"), labels[1])


def test_files_of_another_run(tool, tmp_path):
    tool.generate(tmp_path / tool.BASE / "annotations/training", 6)
    with pytest.raises(OvsegError, match="6 converted files instead of 5: choose an empty folder"):
        tool.main(["prepare", str(tmp_path), "--files", "5", "--workers", "1"])


def test_evaluate(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "DISTINCT_MAPS", 2)
    output = tmp_path / "out.json"
    tool.main(["evaluate", str(tmp_path / "maps"), "--images", "3", "--output", str(output)])
    results = json.loads(output.read_text())
    kinds = [(result["classes"], result["file"], result["images"]) for result in results]
    assert kinds == [
        (150, "png", 3),
        (150, "png", 6),
        (847, "tif", 3),
        (847, "tif", 6),
        (847, "png", 3),
        (847, "png", 6),
    ]
    assert all(result["count, CPU ms"] > 0 and result["images per CPU second"] > 0 for result in results)
    labels = load(tmp_path / "maps" / "labels_847_0.tif")
    assert labels.shape == (512, 683) and labels.dtype == np.uint16 and labels.max() > 255


def test_render(tool, tmp_path, capsys):
    tool.main(["render", "--chunks", "200"])
    assert "847" in capsys.readouterr().out
