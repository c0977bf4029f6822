"""Fewer crops: masks that are not classified by CLIP, because others are better or the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from torch import Tensor

PIXELS_AT_A_TIME = 1 << 16


@dataclass(frozen=True)
class Sources:
    """Where the scores of V masks come from.

    Attributes:
        classified: bool (V,), which masks are classified; None for all.
        row: int64 (V,), the row of a classified mask that stands for a mask, -1 for none; None if all are classified.
        estimates: (V, K), scores of masks without a row; None for zeros.
    """

    classified: Tensor | None = None
    row: Tensor | None = None
    estimates: Tensor | None = None

    @property
    def estimated(self) -> Tensor | None:
        """Which masks have no row, bool (V,); None if all are classified."""
        return None if self.row is None else self.row < 0

    def select(self, masks: Tensor) -> Tensor:
        """Return the classified ones of masks (V, ...)."""
        return masks if self.classified is None else masks[self.classified]

    def spread(self, scores: Tensor) -> Tensor:
        """Return the scores of all masks (V, K), given those of the classified ones (C, K)."""
        if self.row is None:
            return scores
        found = scores.new_zeros(len(self.row), scores.shape[1])
        if self.estimates is not None:
            found.copy_(self.estimates)
        has_row = self.row >= 0
        found[has_row] = scores[self.row[has_row]]
        return found


@dataclass(frozen=True)
class CropSelection:
    """Which masks of an image are classified, and what the scores of the others are.

    Masks are ranked by the probability of being an object times their area. Those that are left out get the scores of
    an earlier namer, scaled to sum to 1, or zeros without one.

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

    def __call__(self, probabilities: Tensor, threshold: float, known: Tensor | None = None) -> Sources:
        """Choose among the masks of an image.

        Args:
            probabilities: (V, H, W) of masks that have a pixel each.
            threshold: probability above which a pixel belongs to a mask.
            known: (V, K), scores by an earlier namer, whose sum is the probability that a mask is an object; None for
                the mean probability of its pixels as that.
        """
        count = len(probabilities)
        if self.duplicate_iou >= 1 and not 0 < self.most < count:
            return Sources()
        binary = (probabilities > threshold).flatten(1)
        areas = binary.sum(1)
        if known is None:
            objectness = (probabilities.flatten(1) * binary).sum(1) / areas.clamp_min(1)
        else:
            objectness = known.sum(1)
        order = (objectness * areas).argsort(descending=True, stable=True)
        ranks = torch.arange(count, device=order.device)
        first = first_of_duplicates(binary[order], self.duplicate_iou) if self.duplicate_iou < 1 else ranks
        number = (first == ranks).cumsum(0) - 1  # of the classified mask
        source = torch.empty_like(order)  # a mask for each mask
        source[order] = torch.where(number[first] < (self.most or count), order[first], -1)
        classified = source == ranks
        row = torch.where(source >= 0, (classified.cumsum(0) - 1)[source], -1)
        estimates = None if known is None else known / known.sum(1, keepdim=True).clamp_min(1e-12)
        return Sources(classified, row, estimates)


ALL_CROPS = CropSelection()


def first_of_duplicates(binary: Tensor, iou: float) -> Tensor:
    """Return for each mask the first one that is a duplicate of it and of no other mask, or itself.

    Args:
        binary: bool (V, P), masks by their rank.
        iou: smallest intersection over union of duplicates, exclusive.

    Returns:
        int64 (V,).
    """
    shared = torch.zeros(len(binary), len(binary), device=binary.device)
    for piece in binary.split(PIXELS_AT_A_TIME, dim=1):
        shared.addmm_(piece.float(), piece.float().T)
    areas = shared.diagonal()
    same = shared > iou * (areas[:, None] + areas - shared)
    first = list(range(len(same)))
    for rank, likes in enumerate(same.tolist()):
        if first[rank] == rank:
            for other in range(rank + 1, len(first)):
                if likes[other] and first[other] == other:
                    first[other] = rank
    return torch.tensor(first, dtype=torch.int64, device=same.device)
