"""Kept masks in less memory: the same renderings, and which masks are at a point."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ovseg.result.explanation import MaskScores
from ovseg.result.kept_masks import KeptMasks
from ovseg.result.segmentation import Segmentation

THRESHOLD = 0.4


def kept(masks: torch.Tensor) -> KeptMasks:
    """Masks whose rendering has a word for each mask: that with the highest probability of a pixel."""
    seen = masks.flatten(1).amax(1) > THRESHOLD
    fractions = (masks[seen] > THRESHOLD).float().flatten(1).mean(1).numpy()
    count, names = int(seen.sum()), tuple(f"word {k}" for k in range(len(masks)))
    scores = np.random.default_rng(0).random((count, len(masks))).astype(np.float32)
    of_masks = MaskScores(names, scores, scores, scores, fractions, np.zeros((count, 4), np.float32))

    def render(masks: torch.Tensor, granularity: float | None, min_score: float | None) -> Segmentation:
        shown = masks if granularity is None else (masks > THRESHOLD).float()
        best, labels = shown.max(0)
        image = np.zeros((*best.shape, 3), np.uint8)
        return Segmentation.from_maps(labels.numpy(), best.numpy(), names, image, min_score=min_score)

    return KeptMasks.of(masks, THRESHOLD, of_masks, render)


@pytest.fixture
def soft() -> torch.Tensor:
    return torch.rand(7, 30, 41, generator=torch.Generator().manual_seed(0))


def test_binary_masks_take_a_bit_per_pixel(soft):
    whole = kept((soft > 0.8).float())
    small = whole.compact()
    assert small.nbytes == 7 * -(-30 * 41 // 8) and whole.nbytes == 4 * 7 * 30 * 41
    for granularity in (None, 0.5):
        assert np.array_equal(small(granularity).label_map, whole(granularity).label_map)
        assert small(granularity).explain() == whole(granularity).explain()


def test_float16_does_not_change_which_pixels_belong_to_a_mask(soft):
    limit = torch.tensor(THRESHOLD)
    soft[0] = torch.nextafter(limit, torch.tensor(1.0))  # just above and just below
    soft[1] = limit
    whole = kept(soft)
    small = whole.compact()
    assert small.nbytes == whole.nbytes // 2
    assert torch.equal(small.masks.float() > THRESHOLD, soft > THRESHOLD)
    assert not torch.equal(soft.half().float() > THRESHOLD, soft > THRESHOLD)  # plain rounding does
    assert np.array_equal(small(0.5).label_map, whole(0.5).label_map)


def test_masks_at_a_point_are_those_of_explain():
    masks = torch.zeros(4, 10, 20)
    masks[0, :4, :4] = masks[2, :, :10] = masks[3, 2:6, 2:8] = 1  # the second one has no pixel
    found = kept(masks)
    assert [mask.area for mask in found().explain()] == [100, 24, 16]
    region = np.zeros((20, 40), bool)  # the image is larger than the masks
    region[:8, :8] = True
    assert found.at(0.0, 0.0, region) == (2, 0)
    assert found.at(0.3, 0.15, region) == (2, 0, 1)
    assert found.at(1.0, 0.3, region) == (0,)
    assert found.at(0.5, 0.9, region) == (2, 0, 1)  # none covers the point: those that touch the region
    assert found.at(0.5, 0.9, ~region & False) == ()
    assert replace(found.compact()).at(0.3, 0.15, region) == (2, 0, 1)
