"""Another proposer for the namers of a loaded model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ovseg import Segmenter
from ovseg.errors import OvsegError
from ovseg.toy import make_scene
from tests.tiny_sam import tiny_sam

ROOT = Path(__file__).parents[2]
WORDS = ["grass", "red star", "tile"]
CACHE = {"MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR": "none"}


@pytest.fixture(scope="module")
def toy() -> Segmenter:
    return Segmenter.from_config(ROOT / "configs" / "toy" / "ovseg_toy.yaml", opts=CACHE, device="cpu")


def test_it_is_the_model_of_the_configuration_and_shares_clip(toy):
    image, before = make_scene(3).image, toy(make_scene(3).image, WORDS)
    changed = toy.with_proposer("BoundaryTree")
    own = {"META_ARCHITECTURE": "ProposeAndName", "NAMER.NAME": ["MaskedCrops"], "PROPOSER.NAME": "BoundaryTree"}
    opts = CACHE | {f"MODEL.{key}": value for key, value in own.items()}
    configured = Segmenter.from_config(ROOT / "configs" / "toy" / "ovseg_toy.yaml", opts=opts, device="cpu")
    for settings in ({}, {"granularity": 0.5}):
        expected, found = configured(image, WORDS, **settings), changed(image, WORDS, **settings)
        assert np.array_equal(found.label_map, expected.label_map) and np.array_equal(found.scores, expected.scores)
    theirs = {id(parameter) for parameter in toy.model.parameters()}
    assert all(id(parameter) in theirs for parameter in changed.model.parameters())
    again = toy(image, WORDS)  # the first one is as before
    assert np.array_equal(again.label_map, before.label_map) and not np.array_equal(found.label_map, again.label_map)
    assert changed.name == toy.name and not changed.model.training


def test_segment_anything(toy, tmp_path):
    tiny_sam("sam").save_pretrained(tmp_path)
    keys = {"MODEL.PROPOSER.SAM.MODEL": str(tmp_path), "MODEL.PROPOSER.SAM.POINTS_PER_SIDE": 3}
    keys |= {"MODEL.PROPOSER.SAM.IOU_THRESHOLD": 0.0, "MODEL.PROPOSER.SAM.STABILITY_THRESHOLD": 0.0}
    kept = toy.with_proposer("SAM", keys).adjustable(make_scene(3).image, WORDS)
    assert len(kept.masks) and set(kept.masks.unique().tolist()) == {0.0, 1.0}
    assert kept.compact().nbytes < kept.nbytes / 30
    assert kept(0.5).names == tuple(WORDS)


def test_what_is_refused(toy):
    with pytest.raises(OvsegError, match=r"'MaskFormer' is not a proposer .* choose BoundaryTree or SAM"):
        toy.with_proposer("MaskFormer")
    with pytest.raises(OvsegError, match="no proposer that another one could replace"):
        toy.with_proposer("BoundaryTree").with_proposer("BoundaryTree")
    with pytest.raises(OvsegError, match="nowhere"):
        toy.with_proposer("SAM", {"MODEL.PROPOSER.SAM.MODEL": "/nowhere"})
    opts = CACHE | {"MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE": False}
    dense = Segmenter.from_config(ROOT / "configs" / "toy" / "dense_clip_toy.yaml", opts=CACHE, device="cpu")
    with pytest.raises(OvsegError, match="no proposer"):
        dense.with_proposer("BoundaryTree")
    alone = Segmenter.from_config(ROOT / "configs" / "toy" / "ovseg_toy.yaml", opts=opts, device="cpu")
    assert alone.with_proposer("BoundaryTree")(make_scene(3).image, WORDS).found  # by the CLIP that it has
