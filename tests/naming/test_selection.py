"""Fewer crops: which masks are classified, and whose scores the others get."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ovseg.naming.crops import MaskedCrops
from ovseg.naming.selection import CropSelection, Sources, first_of_duplicates
from ovseg.segmenter import Segmenter
from tests.tiny_model import make_tiny_model


def squares(*sides: int, value: float = 0.9) -> torch.Tensor:
    """Masks (V, 20, 20) of squares at the top left."""
    masks = torch.zeros(len(sides), 20, 20)
    for mask, side in zip(masks, sides, strict=True):
        mask[:side, :side] = value
    return masks


def sources(selection: CropSelection, masks: torch.Tensor, known: torch.Tensor | None = None) -> list[int]:
    """The mask that stands for each mask, -1 for none."""
    found = selection(masks, 0.5, known)
    classified = found.classified.nonzero()[:, 0].tolist()
    return [classified[row] if row >= 0 else -1 for row in found.row.tolist()]


def test_all_masks_are_classified_by_default():
    for selection in (CropSelection(), CropSelection(most=3)):
        assert selection(squares(3, 3, 5), 0.5) == Sources()
    scores = torch.rand(3, 2)
    assert Sources().spread(scores) is scores and Sources().select(scores) is scores


def test_the_best_masks_are_classified():
    masks = squares(4, 2, 8, 6)
    assert sources(CropSelection(most=2), masks) == [-1, -1, 2, 3]
    known = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.01, 0.0], [0.5, 0.4]])  # times areas 16, 4, 64, 36
    assert sources(CropSelection(most=2), masks, known) == [0, -1, -1, 3]
    masks[2] *= 0.6  # 0.54 x 64 is more than 0.9 x 36
    assert sources(CropSelection(most=1), masks) == [-1, -1, 2, -1]


def test_no_masks():
    assert sources(CropSelection(most=2, duplicate_iou=0.9), squares()) == []


def test_duplicates_get_the_scores_of_the_best():
    masks = squares(10, 19, 20, 10)
    masks[3] *= 0.95  # like the first one, with less certainty
    assert sources(CropSelection(duplicate_iou=0.9), masks) == [0, 2, 2, 0]  # 19 x 19 of 20 x 20: 0.9025
    assert sources(CropSelection(duplicate_iou=0.91), masks) == [0, 1, 2, 0]
    assert sources(CropSelection(most=1, duplicate_iou=0.9), masks) == [-1, 2, 2, -1]


def test_a_duplicate_stands_for_no_other():
    rows = torch.zeros(3, 10, dtype=torch.bool)
    for row, (start, stop) in zip(
        rows, ((0, 8), (1, 9), (2, 10)), strict=True
    ):  # IoU of neighbours 7/9, of the ends 6/10
        row[start:stop] = True
    assert first_of_duplicates(rows, 0.7).tolist() == [0, 0, 2]


@pytest.mark.parametrize("seed", range(3))
def test_large_masks_are_compared_in_pieces(seed, monkeypatch):
    masks = torch.rand(6, 500, generator=torch.Generator().manual_seed(seed)) > 0.2
    whole = first_of_duplicates(masks, 0.65)
    monkeypatch.setattr("ovseg.naming.selection.PIXELS_AT_A_TIME", 7)
    assert torch.equal(first_of_duplicates(masks, 0.65), whole) and len(set(whole.tolist())) < 6


def test_scores_of_all_masks():
    masks, scores = squares(10, 2, 20, 10), torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    selection = CropSelection(most=2, duplicate_iou=0.9)
    assert selection(masks, 0.5).spread(scores).tolist() == [*scores[[0]].tolist(), [0, 0], *scores[[1, 0]].tolist()]
    known = torch.tensor([[0.2, 0.2], [0.1, 0.3], [0.5, 0.5], [0.2, 0.1]])
    spread = selection(masks, 0.5, known).spread(scores)
    assert spread[1].tolist() == pytest.approx([0.25, 0.75])  # the earlier namer's, without "no object"
    assert torch.equal(spread[[0, 2, 3]], scores[[0, 1, 0]])


def test_clip_gets_fewer_crops(tmp_path, monkeypatch):
    config, weights = make_tiny_model(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    encode, counts, results = MaskedCrops.encode, [], []

    def counted(self, crops, masks):
        counts[-1] += len(crops)
        return encode(self, crops, masks)

    monkeypatch.setattr(MaskedCrops, "encode", counted)
    for opts in ([], ["MODEL.NAMER.MAX_CROPS", 1000], ["MODEL.NAMER.MAX_CROPS", 2], ["MODEL.NAMER.DUPLICATE_IOU", 0.0]):
        counts.append(0)
        segmenter = Segmenter.from_config(config, weights=weights, opts=opts, device="cpu")
        results.append(segmenter(image, ["cat", "dog"], explain=True))
    everything, many, two, _ = (result.mask_scores.clip for result in results)
    assert counts[0] == counts[1] == len(everything) > 2 and counts[2] == 2 and counts[3] < counts[0]
    classified = np.isfinite(two).all(axis=1)
    assert np.array_equal(everything, many) and classified.sum() == 2
    assert np.allclose(two[classified], everything[classified], atol=1e-5)
    fused = results[2].mask_scores.fused
    assert (fused[~classified] > 0).all()  # by the proposer's own scores
