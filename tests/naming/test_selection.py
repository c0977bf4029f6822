"""Fewer crops: which masks are classified, and whose scores the others get."""

from __future__ import annotations

import pytest
import torch

from ovseg.naming.selection import CropSelection, first_of_duplicates, spread


def squares(*sides: int, value: float = 0.9) -> torch.Tensor:
    """Masks (V, 20, 20) of squares at the top left."""
    masks = torch.zeros(len(sides), 20, 20)
    for mask, side in zip(masks, sides, strict=True):
        mask[:side, :side] = value
    return masks


def test_all_masks_are_classified_by_default():
    assert CropSelection()(squares(3, 3, 5), 0.5) is None
    assert CropSelection(most=3)(squares(3, 3, 5), 0.5) is None


def test_the_best_masks_are_classified():
    masks = squares(4, 2, 8, 6)
    assert CropSelection(most=2)(masks, 0.5).tolist() == [-1, -1, 2, 3]
    objectness = torch.tensor([1.0, 1.0, 0.01, 0.9])  # times areas 16, 4, 64, 36
    assert CropSelection(most=2)(masks, 0.5, objectness).tolist() == [0, -1, -1, 3]
    masks[2] *= 0.6  # 0.54: all its pixels belong to it still, but with less certainty: 64 * 0.54 < 36 * 0.9 is false
    assert CropSelection(most=1)(masks, 0.5).tolist() == [-1, -1, 2, -1]


def test_duplicates_get_the_scores_of_the_best():
    masks = squares(10, 19, 20, 10)
    masks[3] *= 0.95  # like the first one, with less certainty
    selection = CropSelection(duplicate_iou=0.9)  # 19 x 19 of 20 x 20: 0.9025
    assert selection(masks, 0.5).tolist() == [0, 2, 2, 0]
    assert CropSelection(duplicate_iou=0.91)(masks, 0.5).tolist() == [0, 1, 2, 0]
    assert CropSelection(most=1, duplicate_iou=0.9)(masks, 0.5).tolist() == [-1, 2, 2, -1]


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
    scores = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    source = torch.tensor([1, 1, -1, 3])
    assert spread(scores, source).tolist() == [*scores[[0, 0]].tolist(), [0, 0], scores[1].tolist()]
