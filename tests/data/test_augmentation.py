"""Very long images keep a pixel of their short side, whatever reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import transforms as T

from ovseg.config import load_cfg
from ovseg.data.mapper import ResizeShortestEdge, build_train_augmentations
from ovseg.io.images import resize_transform

TOY = Path(__file__).parents[2] / "configs" / "toy" / "ovseg_toy.yaml"
SIZES = [(3, 2000), (2000, 3), (1, 1), (1, 5000)]


@pytest.mark.parametrize("size", SIZES)
def test_every_resize(size):
    image = np.zeros((*size, 3), np.uint8)
    for transform in (ResizeShortestEdge(64, 256).get_transform(image), resize_transform(*size, 64, 256)):
        shape = transform.apply_image(image).shape
        assert min(shape[:2]) >= 1 and max(shape[:2]) <= 256


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["absolute", "relative", "relative_range"])
def test_training(size, kind):
    crop = "(0.1, 0.1)" if kind.startswith("relative") else "(64, 64)"
    cfg = load_cfg(str(TOY), ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", kind, "INPUT.CROP.SIZE", crop])
    inputs = T.AugInput(np.zeros((*size, 3), np.uint8), sem_seg=np.zeros(size))
    T.AugmentationList(build_train_augmentations(cfg, 255))(inputs)
    assert min(inputs.image.shape[:2]) >= 1 and inputs.image.shape[:2] == inputs.sem_seg.shape


def test_other_sizes_are_detectron2s():
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    for size in (40, 64, 300):
        theirs = T.ResizeShortestEdge(size, 256).get_transform(image).apply_image(image)
        assert np.array_equal(resize_transform(90, 130, size, 256).apply_image(image), theirs)
        assert np.array_equal(ResizeShortestEdge(size, 256).get_transform(image).apply_image(image), theirs)
    assert resize_transform(90, 130, 0, 256).apply_image(image) is image
