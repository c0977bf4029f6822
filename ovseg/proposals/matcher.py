"""Bipartite matching of queries and ground-truth masks (MaskFormer, arXiv 2107.06278, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ovseg.proposals.mask_comparison import EveryPixel, MaskComparison, pairwise_dice


@torch.no_grad()
def match(
    class_logits: Tensor,
    mask_logits: Tensor,
    gt_classes: Sequence[Tensor],
    gt_masks: Sequence[Tensor],
    *,
    mask_weight: float,
    dice_weight: float,
    class_weight: float = 1.0,
    comparison: MaskComparison | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Assign each ground-truth mask to a different query, at the lowest total cost (Hungarian algorithm).

    Cost of a pair: - ``class_weight`` x class probability + ``mask_weight`` x the comparison's measure (focal or cross
    entropy) + ``dice_weight`` x dice.

    Args:
        class_logits: (B, Q, K + 1).
        mask_logits: (B, Q, h, w).
        gt_classes: per image int64 (n,).
        gt_masks: per image (n, H, W), 0 or 1.
        comparison: where masks are compared and how; default every pixel.

    Returns:
        Per image the matched query and ground-truth indices, int64 (n,) each, queries ascending.

    Raises:
        FloatingPointError: a cost is not finite, that is, training has diverged.
    """
    from scipy.optimize import linear_sum_assignment  # imports slowly, and inference does not need it

    comparison = comparison or EveryPixel()
    matches = []
    # half precision (autocast) is too coarse for sums over all pixels
    with torch.autocast(class_logits.device.type, enabled=False):
        for logits, masks, classes, truth in zip(class_logits, mask_logits, gt_classes, gt_masks, strict=True):
            cost = -class_weight * logits.float().softmax(-1)[:, classes]  # (Q, n)
            masks, truth = comparison.for_matching(masks.float(), truth.float())  # (Q, P), (n, P)
            cost = cost + mask_weight * comparison.pairwise(masks, truth) + dice_weight * pairwise_dice(masks, truth)
            if not cost.isfinite().all():
                raise FloatingPointError("the cost of matching queries and masks is not finite: training has diverged")
            queries, targets = linear_sum_assignment(cost.cpu().numpy())
            matches.append((torch.as_tensor(queries), torch.as_tensor(targets)))
    return matches
