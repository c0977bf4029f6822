from __future__ import annotations

import csv
import json

import evaluation_standin as standin
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from ovseg.checkpoint import load_weights
from ovseg.config import load_cfg
from ovseg.errors import OvsegError
from ovseg.evaluation import runner
from ovseg.evaluation.threshold_search import Grid, search
from tests.scripts import load_script
from tests.tiny_model import make_tiny_model

ADAPTER = "MODEL.CLIP_ADAPTER."
THRESHOLDS, WEIGHTS = (0.2, 0.5), (0.0, 0.6)


@pytest.fixture
def tiny(data_folder, tmp_path):
    """The tiny model on three images of the stand-in data set."""
    for path in (*(data_folder / "images").iterdir(), *(data_folder / "labels").iterdir()):
        if int(path.stem) > 2:
            path.unlink()
    config, weights = make_tiny_model(tmp_path)
    opts = ["DATASETS.TEST", (standin.NAME,), "DATALOADER.NUM_WORKERS", 0, "MODEL.WEIGHTS", str(weights)]
    opts += [f"{ADAPTER}TEXT_TEMPLATES", "predefined", "OUTPUT_DIR", str(tmp_path / "out")]
    cfg = load_cfg(config, opts)
    model = build_model(cfg)
    load_weights(model, weights)
    return config, cfg, model


def test_every_point_equals_a_full_evaluation(tiny, monkeypatch):
    _, cfg, model = tiny
    calls = {"proposer": 0, "mask_namer": 0}
    for name in calls:
        part = getattr(model, name)

        def counted(*args, name=name, original=part.forward):
            calls[name] += 1
            return original(*args)

        monkeypatch.setattr(part, "forward", counted)
    grid = search(cfg, model, standin.NAME, THRESHOLDS, WEIGHTS)
    assert calls == {"proposer": 3, "mask_namer": 6}  # images, images x thresholds
    assert model.mask_namer.mask_threshold == cfg.MODEL.CLIP_ADAPTER.MASK_THR
    assert model.training
    for row, threshold in enumerate(THRESHOLDS):
        for column, weight in enumerate(WEIGHTS):
            model.mask_namer.mask_threshold, model.fuse.weight = threshold, weight
            full = runner.evaluate_dataset(cfg, model, standin.NAME)["sem_seg"]
            assert json.dumps(grid.scores[row][column]) == json.dumps(full)
    assert len({json.dumps(cell) for line in grid.scores for cell in line}) > 1


def test_a_part_of_the_images_is_spread_over_all(tiny):
    _, cfg, model = tiny
    seen = []
    grid = search(cfg, model, standin.NAME, (0.4,), (0.5,), limit=2, on_image=lambda *where: seen.append(where))
    assert (grid.num_images, seen) == (2, [(1, 2), (2, 2)])
    assert search(cfg, model, standin.NAME, (0.4,), (0.5,), limit=99).num_images == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"thresholds": [1.5]}, "thresholds must be numbers from 0 to 1"),
        ({"weights": []}, "weights must be numbers"),
        ({"weights": [0.5, 0.5]}, "weights holds a value twice"),
        ({"limit": 0}, "limit must be at least 1"),
    ],
)
def test_bad_grids(data_folder, arguments, message):
    cfg = standin.configuration(data_folder)
    arguments = {"thresholds": [0.5], "weights": [0.5], "limit": None} | arguments
    with pytest.raises(OvsegError, match=message):
        search(cfg, standin.StandIn(), standin.NAME, **arguments)
    with pytest.raises(OvsegError, match=r"does not have two namers.*: give a configuration of OVSeg or SCAN"):
        search(cfg, standin.StandIn(), standin.NAME, [0.5], [0.5])
    cfg.MODEL.META_ARCHITECTURE = "ZegFormer"
    model = standin.StandIn()
    model.namers = (None, None)
    with pytest.raises(OvsegError, match=r"ZegFormer does not read MODEL.CLIP_ADAPTER.MASK_THR, which is searched"):
        search(cfg, model, standin.NAME, [0.5], [0.5])


@pytest.mark.parametrize(
    ("name", "reported"),
    [("ade20k_sem_seg_val", True), ("toy_sem_seg_train", False), ("my_test", True), ("evaluation_standin", False)],
)
def test_which_splits_are_reported_on(name, reported):
    assert Grid(name, 1, (0.5,), (0.5,), (({"mIoU": 1.0},),)).is_reported_split is reported


def test_the_best_is_the_highest():
    scores = (({"mIoU": 1.0}, {"mIoU": float("nan")}), ({"mIoU": 2.0}, {"mIoU": 3.0}))
    grid = Grid("x", 1, (0.3, 0.4), (0.5, 0.6), scores)
    assert grid.best_opts == f"{ADAPTER}MASK_THR 0.4 {ADAPTER}CLIP_ENSEMBLE_WEIGHT 0.6"


def test_the_tool_writes_and_warns(tiny, data_folder, tmp_path, capsys):
    tool = load_script("tools/search_thresholds.py")
    name = f"{standin.NAME}_val"
    if name not in DatasetCatalog.list():
        DatasetCatalog.register(name, lambda: DatasetCatalog.get(standin.NAME))
        MetadataCatalog.get(name).set(stuff_classes=standin.CLASSES, ignore_label=255, evaluator_type="sem_seg")
    config, cfg, _ = tiny
    command = ["--config-file", str(config), "--output", str(tmp_path), "--num-gpus", "0", "--limit", "1"]
    command += ["--thresholds", "0.4", "--weights", "0.5", "0.7"]
    opts = ["MODEL.WEIGHTS", cfg.MODEL.WEIGHTS, "DATASETS.TEST", f'("{name}",)', "DATALOADER.NUM_WORKERS", "0"]
    tool.main([*command, *opts])
    printed = capsys.readouterr()
    written = json.loads((tmp_path / name / "results.json").read_text())
    assert written["tuned_on"] == name
    assert written["best_opts"] in printed.out
    assert f"tuned on {name} (1 images)" in printed.out
    assert f"warning: {name} looks like a split that results are reported on" in printed.err
    with open(tmp_path / name / "grid.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["tuned_on"], row["CLIP_ENSEMBLE_WEIGHT"]) for row in rows] == [(name, "0.5"), (name, "0.7")]
    assert np.array(Image.open(tmp_path / name / "heat_map.png")).std() > 10
