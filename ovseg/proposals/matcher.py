"""Bipartite matching of queries and ground-truth masks (MaskFormer, arXiv 2107.06278, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0


@torch.no_grad()
def match(
    class_logits: Tensor,
    mask_logits: Tensor,
    gt_classes: Sequence[Tensor],
    gt_masks: Sequence[Tensor],
    *,
    mask_weight: float,
    dice_weight: float,
) -> list[tuple[Tensor, Tensor]]:
    """Assign to each ground-truth mask its own query, at the lowest total cost (Hungarian algorithm).

    Cost of a pair: minus the class probability + ``mask_weight`` x focal + ``dice_weight`` x dice, with
    ground-truth masks resized to the predictions' size by nearest neighbour.

    Args:
        class_logits: (B, Q, K + 1).
        mask_logits: (B, Q, h, w).
        gt_classes: per image int64 (n,).
        gt_masks: per image (n, H, W), 0 or 1.

    Returns:
        Per image the matched query and ground-truth indices, int64 (n,) each, queries ascending.

    Raises:
        FloatingPointError: a cost is not finite, that is, training has diverged.
    """
    matches = []
    for logits, masks, classes, truth in zip(class_logits, mask_logits, gt_classes, gt_masks, strict=True):
        truth = F.interpolate(truth[:, None].float(), masks.shape[-2:], mode="nearest")
        cost_class = -logits.float().softmax(-1)[:, classes]  # (Q, n)
        masks, truth = masks.float().flatten(1), truth.flatten(1)  # (Q, hw), (n, hw)
        cost = cost_class + mask_weight * pairwise_focal(masks, truth) + dice_weight * pairwise_dice(masks, truth)
        if not cost.isfinite().all():
            raise FloatingPointError("the cost of matching queries and masks is not finite: training has diverged")
        queries, targets = linear_sum_assignment(cost.cpu().numpy())
        matches.append((torch.as_tensor(queries), torch.as_tensor(targets)))
    return matches


def pairwise_focal(logits: Tensor, truth: Tensor) -> Tensor:
    """Sigmoid focal loss (alpha 0.25, gamma 2), averaged over pixels, of each pair; (Q, P), (n, P) -> (Q, n)."""
    probability = logits.sigmoid()
    if_foreground = FOCAL_ALPHA * (1 - probability) ** FOCAL_GAMMA * F.softplus(-logits)
    if_background = (1 - FOCAL_ALPHA) * probability**FOCAL_GAMMA * F.softplus(logits)
    return (if_foreground @ truth.T + if_background @ (1 - truth).T) / logits.shape[1]


def pairwise_dice(logits: Tensor, truth: Tensor) -> Tensor:
    """Dice loss 1 - (2 sum(s t) + 1) / (sum s + sum t + 1) of each pair; (Q, P), (n, P) -> (Q, n)."""
    probability = logits.sigmoid()
    total = probability.sum(1)[:, None] + truth.sum(1)[None]
    return 1 - (2 * probability @ truth.T + 1) / (total + 1)
