"""METRIC SG-IoU through a whole evaluation."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import evaluation_standin as standin
import numpy as np
import pytest
import torch
from torch import nn

from ovseg.errors import OvsegError
from ovseg.evaluation import partial, runner
from ovseg.evaluation.sg_iou import sg_scores

NAMES = [name.strip() for name in standin.CLASSES]
TABLE = {"bus": ["striped cat", "sky"], "0": 3, "water": []}
FATHERS = {3: (1, 0), 0: (3,)}


@pytest.fixture
def table(data_folder: Path) -> Path:
    path = data_folder / "fathers.json"
    path.write_text(json.dumps(TABLE))
    return path


def configuration(output: Path, *opts: object):
    options = ("METRIC", "SG-IoU", "TEST.PROPOSAL_RECALL", False, "TEST.SAVE_PREDICTIONS", False)
    return standin.configuration(output, *options, *opts)


def folder_of(output: Path) -> Path:
    return output / "inference" / standin.NAME


def record_of(output: Path) -> dict:
    return json.loads((folder_of(output) / "results.json").read_text())


def test_next_to_the_plain_scores(data_folder, table, capsys):
    results = runner.evaluate_all(
        configuration(data_folder / "sg", "TEST.SG_IOU_TABLE", str(table)), standin.StandIn()
    )[standin.NAME]
    with np.load(folder_of(data_folder / "sg") / "confusion.npz") as file:
        expected = sg_scores(file["confusion"], NAMES, FATHERS, standin.EVALUATION_SET)
    np.testing.assert_equal(results["sg_iou"], expected)
    assert results["sg_iou"]["SG-mIoU"] > results["sem_seg"]["mIoU"]

    record = record_of(data_folder / "sg")
    entry = record["sg_iou"]
    assert (entry["origin"], entry["threshold"], entry["pairs"], entry["mutual_pairs"]) == (str(table), None, 3, 2)
    assert len(entry["sha256"]) == 64
    assert record["results"]["sg_iou"]["SG-mIoU-novel"] == expected["SG-mIoU-novel"]
    with open(folder_of(data_folder / "sg") / "per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["fathers"] for row in rows] == ["bus", "", "", "sky; striped cat", ""]
    assert float(rows[3]["SG-IoU"]) == pytest.approx(expected["SG-IoU-bus"], abs=1e-4) and rows[4]["SG-IoU"] == ""
    printed = capsys.readouterr().out
    assert f"SG-IoU: 3 pairs of child and parent (2 mutual) from {table}" in printed
    line = next(line for line in printed.splitlines() if "SG-mIoU" in line)
    assert f"{expected['SG-mIoU']:.2f}" in line and f"{expected['SG-mIoU-base']:.2f}" in line

    left = folder_of(data_folder / "sg") / "sg_iou_table.json"  # the table that was used, to be used again
    again = configuration(data_folder / "again", "TEST.SG_IOU_TABLE", str(left))
    np.testing.assert_equal(runner.evaluate_all(again, standin.StandIn())[standin.NAME]["sg_iou"], expected)


def test_a_run_that_was_taken_up(data_folder, table, monkeypatch):
    whole = configuration(data_folder / "whole", "TEST.SG_IOU_TABLE", str(table))
    expected = runner.evaluate_all(whole, standin.StandIn())[standin.NAME]
    cfg = configuration(data_folder / "out", "TEST.SG_IOU_TABLE", str(table))
    monkeypatch.setattr(partial, "SAVE_PERIOD", 0)
    model = standin.StandIn()

    def stop(*_):
        if len(model.requests) == 4:
            raise KeyboardInterrupt

    hook = model.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        runner.evaluate_all(cfg, model, resume=True)
    hook.remove()
    model.requests.clear()
    results = runner.evaluate_all(cfg, model, resume=True)[standin.NAME]
    assert len(model.requests) == standin.NUM_IMAGES - 4
    np.testing.assert_equal(results["sg_iou"], expected["sg_iou"])

    model.requests.clear()
    runner.evaluate_all(cfg, model, resume=True)
    assert not model.requests  # finished
    table.write_text("{}")
    changed = runner.evaluate_all(cfg, model, resume=True)[standin.NAME]
    assert changed["sg_iou"]["SG-mIoU"] == changed["sem_seg"]["mIoU"] < results["sg_iou"]["SG-mIoU"]


class Reader(nn.Module):
    """Reads two words as nearly the same."""

    def text_matrix(self, words):
        self.words = list(words)
        embeddings = torch.eye(len(words) + 1)
        embeddings[3, [0, 3]] = torch.tensor([0.8, 0.6])
        return embeddings


def test_without_a_file_the_words_of_the_data_set_are_compared(data_folder, capsys):
    model = standin.StandIn()
    model.clip_adapter = Reader()
    cfg = configuration(data_folder / "text", "TEST.SG_IOU_THRESHOLD", 0.75)
    results = runner.evaluate_all(cfg, model)[standin.NAME]
    assert model.clip_adapter.words == NAMES
    entry = record_of(data_folder / "text")["sg_iou"]
    assert entry["fathers"] == {"sky": ["bus"], "bus": ["sky"]}
    assert (entry["origin"], entry["threshold"], entry["mutual_pairs"]) == ("CLIP text embeddings", 0.75, 2)
    assert results["sg_iou"]["SG-mIoU"] > results["sem_seg"]["mIoU"]
    assert "from CLIP text embeddings, cosine >= 0.75" in capsys.readouterr().out


def test_vanilla_has_no_trace_of_it(data_folder):
    results = runner.evaluate_all(configuration(data_folder / "plain", "METRIC", "Vanilla"), standin.StandIn())
    assert set(results[standin.NAME]) == {"sem_seg"}
    assert record_of(data_folder / "plain")["sg_iou"] is None
    assert not (folder_of(data_folder / "plain") / "sg_iou_table.json").exists()


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("METRIC", "SGIoU"), "METRIC is 'SGIoU'; choose one of Vanilla, SG-IoU"),
        (("METRIC", "sg-iou"), "METRIC is 'sg-iou'; choose one of Vanilla, SG-IoU"),
        ((), r"StandIn has no CLIP to compare words by: give a table as TEST\.SG_IOU_TABLE"),
        (("TEST.SG_IOU_TABLE", "nowhere.json"), "there is no nowhere.json"),
    ],
)
def test_refused_before_the_first_image(data_folder, opts, message):
    model = standin.StandIn()
    with pytest.raises(OvsegError, match=message):
        runner.evaluate_all(configuration(data_folder / "out", *opts), model)
    assert not model.requests
