from __future__ import annotations

import csv
import json
from pathlib import Path

import evaluation_standin as standin
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image
from rich.console import Console

from ovseg.errors import OvsegError
from ovseg.evaluation import runner
from ovseg.evaluation.crf import DenseCRF
from ovseg.evaluation.report import results_table, write_json


def results_of(folder: Path) -> dict:
    return json.loads((folder / "inference" / standin.NAME / "results.json").read_text())


def test_results_and_what_is_left_on_disk(data_folder, capsys):
    cfg = standin.configuration(data_folder / "one")
    model = standin.StandIn()
    results = runner.evaluate_all(cfg, model)[standin.NAME]
    assert model.training  # as it was before
    assert len(model.requests) == standin.NUM_IMAGES
    assert all(set(request["outputs"]) == {"label_map", "proposals"} for request in model.requests)
    assert 50 < results["sem_seg"]["mIoU"] < 100
    assert results["proposals"]["segments"] > standin.NUM_IMAGES

    written = results_of(data_folder / "one")
    assert written["results"]["sem_seg"]["IoU-water"] is None  # NaN is no JSON
    assert written["results"]["sem_seg"]["mIoU-union"] == results["sem_seg"]["mIoU"]
    assert (written["dataset"], written["num_images"], written["miou_convention"]) == (standin.NAME, 7, "union")
    assert written["config"]["TEST"]["PROPOSAL_RECALL"] is True
    assert written["versions"]["torch"] == torch.__version__
    assert written["seconds_per_image"]["total"] > 0
    assert {"weights", "seed", "num_processes", "device", "finished"} <= written.keys()
    with open(data_folder / "one" / "inference" / standin.NAME / "per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [name.strip() for name in standin.CLASSES]
    assert [row["set"] for row in rows] == ["base"] * 3 + ["novel"] * 2
    assert float(rows[0]["IoU"]) == pytest.approx(results["sem_seg"]["IoU-sky"], abs=1e-4)

    printed = capsys.readouterr().out
    for word in (standin.NAME, "7 images", "mIoU-union (= mIoU)", "mIoU-gt", "base", "novel", "recall@0.5"):
        assert word in printed
    assert f"{results['sem_seg']['mIoU-gt']:.2f}" in printed
    names = {path.name for path in (data_folder / "one" / "inference" / standin.NAME).iterdir()}
    assert names == {"results.json", "per_class.csv", "confusion.npz", "sem_seg_predictions.json"}


def test_some_of_the_images(data_folder):
    model = standin.StandIn()
    results = runner.evaluate_all(standin.configuration(data_folder / "three"), model, limit=3)[standin.NAME]
    assert [Path(request["file_name"]).stem for request in model.requests] == ["0", "3", "6"]
    assert results_of(data_folder / "three")["num_images"] == 3
    resumed = standin.StandIn()
    again = runner.evaluate_all(standin.configuration(data_folder / "three"), resumed, resume=True, limit=3)
    assert not resumed.requests and again[standin.NAME]["sem_seg"]["mIoU"] == results["sem_seg"]["mIoU"]
    runner.evaluate_all(standin.configuration(data_folder / "three"), resumed, resume=True)  # all: other images
    assert len(resumed.requests) == standin.NUM_IMAGES


def test_test_time_augmentation_and_sliding_window(data_folder):
    plain = runner.evaluate_all(standin.configuration(data_folder / "plain"), standin.StandIn())
    model = standin.StandIn()
    options = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (24, 48), "TEST.PROPOSAL_RECALL", False)
    augmented = runner.evaluate_all(standin.configuration(data_folder / "augmented", *options), model)
    assert len(model.requests) == 4 * standin.NUM_IMAGES
    # the stand-in looks at pixels alone: other sizes only blur the borders
    assert augmented[standin.NAME]["sem_seg"]["pACC"] == pytest.approx(plain[standin.NAME]["sem_seg"]["pACC"], abs=3)
    sliding = ("TEST.SLIDING_WINDOW", True, "TEST.SLIDING_TILE_SIZE", 16)
    window = runner.evaluate_all(standin.configuration(data_folder / "window", *sliding), standin.StandIn())
    assert window[standin.NAME]["sem_seg"]["mIoU"] == pytest.approx(plain[standin.NAME]["sem_seg"]["mIoU"])
    assert window[standin.NAME]["proposals"] == plain[standin.NAME]["proposals"]


def test_crf_gets_the_picture_and_its_answer_counts(data_folder, monkeypatch):
    class Upside(DenseCRF):
        def __init__(self):
            pass  # without the package

        def __call__(self, image, scores):
            assert image.shape == (*scores.shape[1:], 3)
            return -scores

    monkeypatch.setattr(runner, "DenseCRF", Upside)
    cfg = standin.configuration(data_folder / "crf", "TEST.DENSE_CRF", True, "TEST.PROPOSAL_RECALL", False)
    model = standin.StandIn()
    results = runner.evaluate_all(cfg, model)[standin.NAME]["sem_seg"]
    assert model.requests[0]["outputs"] == ("sem_seg",)
    assert results["pACC"] < 10


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_and_no_result_is_left(data_folder, workers):
    broken = data_folder / "images" / "3.png"
    broken.write_bytes(broken.read_bytes()[:50])
    cfg = standin.configuration(data_folder / "out", "DATALOADER.NUM_WORKERS", workers)
    with pytest.raises(OvsegError) as error:
        runner.evaluate_all(cfg, standin.StandIn())
    assert str(broken) in str(error.value)
    assert "Traceback" not in str(error.value)
    files = [path for path in (data_folder / "out").rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == {".partial"}


def test_configuration_errors(data_folder):
    with pytest.raises(OvsegError, match=r"DATASETS\.TEST is empty"):
        runner.evaluate_all(standin.configuration(data_folder, "DATASETS.TEST", ()), standin.StandIn())
    with pytest.raises(OvsegError, match="'evaluation_standing' is not registered: did you mean evaluation_standin"):
        runner.evaluate_all(
            standin.configuration(data_folder, "DATASETS.TEST", (standin.NAME, "evaluation_standing")),
            standin.StandIn(),
        )
    with pytest.raises(OvsegError, match=r"MIOU_CONVENTION is 'mean'"):
        runner.evaluate_all(standin.configuration(data_folder, "TEST.MIOU_CONVENTION", "mean"), standin.StandIn())
    Image.new("RGB", (3, 3)).save(data_folder / "images" / "7.png")
    Image.new("L", (4, 4)).save(data_folder / "labels" / "7.png")
    assert len(DatasetCatalog.get(standin.NAME)) == 8
    with pytest.raises(OvsegError, match=r"7\.png"):
        runner.evaluate_all(standin.configuration(data_folder / "out"), standin.StandIn())


def test_table_of_one_subset_shows_its_complement():
    scores = {"mIoU": 1.0, "mIoU-union": 1.0, "mIoU-gt": 2.0, "fwIoU": 3.0, "mACC": 4.0, "pACC": float("nan")}
    scores |= {"mIoU-rare": 5.0, "mIoU-unrare": 6.0, "pAcc-rare": 7.0, "pAcc-unrare": 8.0, "hIoU-rare": 9.0}
    table = results_table({"sem_seg": scores}, ["rare"], "ground_truth")
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table)
    text = capture.get()
    assert "unrare" in text
    assert "mIoU-gt (= mIoU)" in text
    assert "recall" not in text


def test_json_is_strict(tmp_path):
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [float("inf"), 1.5], 3: {"c": None}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": [None, 1.5], "3": {"c": None}}
