"""Fewer crops: masks that are not classified by CLIP, because others are better or the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from torch import Tensor

PIXELS_AT_A_TIME = 1 << 16


@dataclass(frozen=True)
class CropSelection:
    """Which masks of an image are classified, and which of them stand for others.

    Masks are ranked by the probability of being an object times their area.

    Attributes:
        most: masks that are classified, the best ones; 0 for all.
        duplicate_iou: a mask with a larger intersection over union with a better one gets the scores of that one; 1
            for none.
    """

    most: int = 0
    duplicate_iou: float = 1.0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> CropSelection:
        return cls(cfg.MODEL.NAMER.MAX_CROPS, cfg.MODEL.NAMER.DUPLICATE_IOU)

    def __call__(self, probabilities: Tensor, threshold: float, objectness: Tensor | None = None) -> Tensor | None:
        """Return for each mask the one whose scores it gets.

        Args:
            probabilities: (V, H, W) of masks that have a pixel each.
            threshold: probability above which a pixel belongs to a mask.
            objectness: (V,), probability that a mask is an object; None for the mean probability of its pixels.

        Returns:
            int64 (V,): itself, another mask, or -1 for none; None if each mask is classified.
        """
        count = len(probabilities)
        if self.duplicate_iou >= 1 and not 0 < self.most < count:
            return None
        binary = (probabilities > threshold).flatten(1)
        areas = binary.sum(1)
        if objectness is None:
            objectness = (probabilities.flatten(1) * binary).sum(1) / areas.clamp_min(1)
        order = (objectness * areas).argsort(descending=True, stable=True)
        first = torch.arange(count, device=order.device)
        if self.duplicate_iou < 1:
            first = first_of_duplicates(binary[order], self.duplicate_iou)
        number = (first == torch.arange(count, device=order.device)).cumsum(0) - 1  # of the classified mask
        kept = number[first] < (self.most or count)
        source = torch.empty_like(order)
        source[order] = torch.where(kept, order[first], -1)
        return source


ALL_CROPS = CropSelection()


def first_of_duplicates(binary: Tensor, iou: float) -> Tensor:
    """Return for each mask the first one that is a duplicate of it and of no other mask, or itself.

    Args:
        binary: bool (V, P), masks by their rank.
        iou: smallest intersection over union of duplicates, exclusive.

    Returns:
        int64 (V,).
    """
    pieces = (piece.float() for piece in binary.split(PIXELS_AT_A_TIME, dim=1))
    shared = sum(piece @ piece.T for piece in pieces)
    areas = shared.diagonal()
    same = shared > iou * (areas[:, None] + areas - shared)
    first = list(range(len(same)))
    for rank, likes in enumerate(same.tolist()):
        if first[rank] == rank:
            for other in range(rank + 1, len(first)):
                if likes[other] and first[other] == other:
                    first[other] = rank
    return torch.tensor(first, device=same.device)


def spread(scores: Tensor, source: Tensor) -> Tensor:
    """Return the scores of all masks, given those of the classified ones.

    Args:
        scores: (C, K).
        source: int64 (V,), see :meth:`CropSelection.__call__`.

    Returns:
        (V, K); zeros for masks without a source.
    """
    classified = source == torch.arange(len(source), device=source.device)
    row = classified.cumsum(0) - 1
    found = scores.new_zeros(len(source), scores.shape[1])
    kept = source >= 0
    found[kept] = scores[row[source[kept]]]
    return found
