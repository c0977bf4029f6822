"""The configurations with Segment Anything: their settings, and models of their shapes built without weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from ovseg import Segmenter
from ovseg.config import load_cfg
from ovseg.meta_arch.pixel_scores import MaskSum
from ovseg.proposals.point_grid import PointGrid
from tests.tiny_sam import tiny_sam_folder

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "configs" / "toy" / "clip.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_sam_folder(tmp_path_factory.mktemp("sam"), "sam")


@pytest.mark.parametrize(("name", "width"), [("ovseg_sam_vitL_demo", 1024), ("sam_vitB_clip_vitB16", 768)])
def test_they_build(name, width, folder):
    opts = ["MODEL.PROPOSER.SAM.MODEL", folder, "MODEL.DEVICE", "meta", "MODEL.CLIP_ADAPTER.CLIP_WEIGHTS", "none"]
    with torch.device("meta"):
        model = build_model(load_cfg(ROOT / "configs" / f"{name}.yaml", opts))
    assert model.clip_adapter.clip_model.visual.conv1.out_channels == width
    assert model.proposer.grid == PointGrid()
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert next(model.proposer._predictor.network.parameters()).device.type == "cpu"


def test_settings_of_the_demo(folder):
    """Long side 1280, mean-filled crops, one template, softmax of 100 x cosine, score 0 = unlabelled, nearest."""
    cfg = load_cfg("ovseg_sam_vitL_demo")
    assert cfg.MODEL.PROPOSER.SAM.MODEL == "facebook/sam-vit-large"
    opts = {
        "MODEL.PROPOSER.SAM.MODEL": folder,
        "MODEL.PROPOSER.SAM.POINTS_PER_SIDE": 3,
        "MODEL.PROPOSER.SAM.IOU_THRESHOLD": 0,
        "MODEL.PROPOSER.SAM.STABILITY_THRESHOLD": 0,
        "MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME": CLIP,
        "MODEL.CLIP_ADAPTER.CLIP_WEIGHTS": "none",
        "MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR": "none",
        "INPUT.MIN_SIZE_TEST": 128,
        "INPUT.MAX_SIZE_TEST": 128,
    }
    torch.manual_seed(0)
    segmenter = Segmenter.from_config("ovseg_sam_vitL_demo", opts=opts, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    assert segmenter._model_input(pixels).shape == (3, 85, 128)
    model, words = segmenter.model, ["cat", "dog"]
    (namer,) = model.namers
    assert not namer.mask_prompts and namer.mask_fill == "mean" and namer.mask_threshold == 0.5
    assert isinstance(model.render, MaskSum) and model.render.resize_mode == "nearest" and model.granularity == 0.8
    assert model.clip_adapter.similarity(torch.eye(2), torch.eye(2))[0, 0] == 100
    result = segmenter(pixels, words)
    masks = segmenter.propose(pixels)
    covered = masks.amax(0) > 0
    assert result.scores.max() > 0
    labelled = torch.from_numpy(result.label_map >= 0)
    assert not labelled[~covered].any()  # no mask, no label
    model.proposer.grid = dataclasses.replace(model.proposer.grid, iou_threshold=1.0)
    assert segmenter.propose(pixels).shape == (0, 60, 90)
    assert not (segmenter(pixels, words).label_map >= 0).any()
