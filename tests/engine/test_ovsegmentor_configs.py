"""The configurations of OVSegmentor: the recipe of both stages, and the data sets of its evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from ovseg.config import load_cfg
from ovseg.config.limits import check_config
from ovseg.config.per_dataset import settings_of
from ovseg.data.catalog import check_per_dataset
from ovseg.data.mapper import ResizeShortestEdge
from ovseg.engine.epochs import in_iterations

ROOT = Path(__file__).parents[2] / "configs"
RATES = {1: (3.2e-4, 8e-6, 8e-5), 2: (2.5e-6, 1e-6, 2.5e-7)}
IN_FILES = {1: (6.4e-4, 1.6e-5, 1.6e-4), 2: (1e-5, 4e-6, 1e-6)}  # for 4,096 images


@pytest.mark.parametrize(("stage", "batch", "epochs", "warmup"), [(1, 2048, 30, 2), (2, 1024, 10, 0)])
def test_the_recipe(stage, batch, epochs, warmup):
    cfg = load_cfg(ROOT / f"ovsegmentor_vitB_stage{stage}.yaml")
    solver, own = cfg.SOLVER, cfg.MODEL.OVSEGMENTOR
    assert (batch, epochs, warmup) == (solver.IMS_PER_BATCH, solver.MAX_EPOCHS, solver.WARMUP_EPOCHS)
    assert RATES[stage] == (solver.BASE_LR, solver.WARMUP_LR, solver.MIN_LR)
    assert RATES[stage] == pytest.approx([rate * batch / 4096 for rate in IN_FILES[stage]])
    assert (True, stage == 2) == (own.USE_ENTITYLOSS, own.USE_MASKLOSS)
    assert (stage == 2, stage == 1) == (own.TEXT_ENCODER.FIXED, cfg.INPUT.IMG_AUG.DEIT_AUG)
    assert bool(own.STAGE1_CHECKPOINT) == (stage == 2)
    counted = in_iterations(cfg, 4_000_000)
    check_config(counted)
    assert epochs * (4_000_000 // batch) == counted.SOLVER.MAX_ITER
    assert counted.SOLVER.CHECKPOINT_PERIOD == counted.TEST.EVAL_PERIOD == 4_000_000 // batch


def test_the_data_sets_of_the_evaluation():
    cfg = load_cfg(ROOT / "ovsegmentor_vitB_stage2.yaml")
    check_per_dataset(cfg)
    found = {}
    for name in cfg.TEST.PER_DATASET:
        words = MetadataCatalog.get(name).stuff_classes
        found[len(words)] = (settings_of(cfg, name)["BG_THRESH"], words[0] == "background")
    assert found == {21: (0.95, True), 60: (0.35, True), 81: (0.9, True), 172: (0.95, True), 150: (0.95, False)}


@pytest.mark.parametrize(
    ("size", "resized"),
    [((375, 500), (448, 597)), ((500, 334), (671, 448)), ((480, 640), (448, 597)), ((3000, 400), (2048, 273))],
)
def test_the_size_of_images(size, resized):
    """The examples of the specification, 8.3."""
    cfg = load_cfg(ROOT / "ovsegmentor_vitB_stage1.yaml")
    edge = ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    transform = edge.get_transform(np.zeros((*size, 3), np.uint8))
    assert (transform.new_h, transform.new_w) == resized
