"""Comparison of predicted with true masks, in matching and in the losses.

MaskFormer compares every pixel, with the focal loss (arXiv 2107.06278, section 3.2). Mask2Former compares random
points, with the cross entropy (arXiv 2112.01527, section 3.3; specification of SCAN, 5.3). Both add the dice loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from detectron2.projects.point_rend.point_features import get_uncertain_point_coords_with_randomness, point_sample
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor
from torch.nn import functional as F

from ovseg.errors import OvsegError

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0


class MaskComparison(Protocol):
    """Protocol of a comparison: masks as vectors of P values, and the measure of difference next to dice."""

    def for_matching(self, masks: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values of all masks of one image: logits (Q, h, w), truth float (n, H, W) -> (Q, P), (n, P)."""

    def for_loss(self, masks: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values of matched pairs: logits (M, h, w), truth float (M, H, W) -> (M, P) both."""

    def pairwise(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Return the cost of each pair: (Q, P), (n, P) -> (Q, n)."""

    def loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Return the loss of matched pairs: (M, P), (M, P) -> (M,)."""

    def skip(self, queries: int, counts: Sequence[int], device: torch.device) -> None:
        """Draw the random numbers of one comparison, of images with ``counts`` true masks, and discard them."""


class EveryPixel:
    """Comparison by the focal loss of all pixels: at the predictions' size in matching, at the truth's in the loss."""

    def for_matching(self, masks: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        truth = F.interpolate(truth[:, None], masks.shape[-2:], mode="nearest")
        return masks.flatten(1), truth.flatten(1)

    def for_loss(self, masks: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        return upsample(masks[:, None], truth.shape[-2:]).flatten(1), truth.flatten(1)

    def pairwise(self, logits: Tensor, truth: Tensor) -> Tensor:
        return pairwise_focal(logits, truth)

    def loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        return sigmoid_focal_loss(logits, truth, alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA).mean(1)

    def skip(self, queries: int, counts: Sequence[int], device: torch.device) -> None:
        pass


class RandomPoints:
    """Comparison by the cross entropy at random points: uniform ones in matching, mostly uncertain ones in the loss.

    Random numbers come from PyTorch's global generator of the masks' device. For one prediction they are, in this
    order: (1, N, 2) for each image's matching; (M, N * oversample_ratio, 2), the points of which the uncertain ones are
    chosen, for all M matched masks; (M, rest, 2), the other points.

    Args:
        points: N per mask.
        oversample_ratio: points drawn for each one wanted.
        importance_ratio: part of the N points that are the most uncertain of those drawn (logit nearest to 0).
    """

    def __init__(self, points: int, oversample_ratio: float, importance_ratio: float):
        for key, fine in (
            ("TRAIN_NUM_POINTS", points >= 1),
            ("OVERSAMPLE_RATIO", oversample_ratio >= 1),
            ("IMPORTANCE_SAMPLE_RATIO", 0 <= importance_ratio <= 1),
        ):
            if not fine:
                low, high = ("0", " and at most 1") if key.startswith("IMP") else ("1", "")
                raise OvsegError(f"MODEL.MASK_FORMER.{key} must be at least {low}{high}")
        self.points = points
        self.oversample_ratio = oversample_ratio
        self.importance_ratio = importance_ratio

    def for_matching(self, masks: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        coordinates = torch.rand(1, self.points, 2, device=masks.device)
        masks, truth = (point_sample(maps[None], coordinates, align_corners=False)[0] for maps in (masks, truth))
        return masks, truth

    def for_loss(self, masks: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        masks, truth = masks[:, None], truth[:, None]
        with torch.no_grad():
            coordinates = get_uncertain_point_coords_with_randomness(
                masks, lambda logits: -logits.abs(), self.points, self.oversample_ratio, self.importance_ratio
            )
            truth = point_sample(truth, coordinates, align_corners=False)
        return point_sample(masks, coordinates, align_corners=False)[:, 0], truth[:, 0]

    def pairwise(self, logits: Tensor, truth: Tensor) -> Tensor:
        return pairwise_cross_entropy(logits, truth)

    def loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)

    def skip(self, queries: int, counts: Sequence[int], device: torch.device) -> None:
        for _ in counts:
            torch.rand(1, self.points, 2, device=device)
        matched = sum(min(queries, count) for count in counts)
        torch.rand(matched, int(self.points * self.oversample_ratio), 2, device=device)
        rest = self.points - int(self.importance_ratio * self.points)
        if rest:
            torch.rand(matched, rest, 2, device=device)


def pairwise_focal(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the sigmoid focal loss (alpha 0.25, gamma 2), mean over pixels, of each pair; (Q, P), (n, P) -> (Q, n)."""
    probability = logits.sigmoid()
    if_foreground = FOCAL_ALPHA * (1 - probability) ** FOCAL_GAMMA * F.softplus(-logits)
    if_background = (1 - FOCAL_ALPHA) * probability**FOCAL_GAMMA * F.softplus(logits)
    return _pairwise(if_foreground, if_background, truth)


def pairwise_cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the binary cross entropy, mean over points, of each pair; (Q, P), (n, P) -> (Q, n)."""
    return _pairwise(F.softplus(-logits), F.softplus(logits), truth)


def _pairwise(if_foreground: Tensor, if_background: Tensor, truth: Tensor) -> Tensor:
    return (if_foreground @ truth.T + if_background @ (1 - truth).T) / truth.shape[1]


def pairwise_dice(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the dice loss 1 - (2 sum(s t) + 1) / (sum s + sum t + 1) of each pair; (Q, P), (n, P) -> (Q, n)."""
    probability = logits.sigmoid()
    total = probability.sum(1)[:, None] + truth.sum(1)[None]
    return 1 - (2 * probability @ truth.T + 1) / (total + 1)


def dice(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the dice loss of matched pairs; (M, P), (M, P) -> (M,)."""
    probability = logits.sigmoid()
    return 1 - (2 * (probability * truth).sum(1) + 1) / (probability.sum(1) + truth.sum(1) + 1)


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, C, h, w) bilinearly to (B, C, *size); batches may be empty."""
    if len(maps) == 0:
        return maps.new_zeros(0, maps.shape[1], *size) + maps.sum()
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
