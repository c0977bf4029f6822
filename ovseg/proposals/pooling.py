"""Pooling of a map of features in masks (OpenSeg, arXiv 2112.12143, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor


def pool_regions(masks: Tensor, features: Tensor, mean: bool = False) -> Tensor:
    """Sum the features of each mask, weighted by the mask.

    Args:
        masks: (B, N, H, W) weights, such as probabilities.
        features: (B, D, H, W).
        mean: divide by the area of the mask, the sum of its weights.

    Returns:
        (B, N, D); zeros for a mask without area.
    """
    pooled = masks.flatten(2) @ features.flatten(2).transpose(1, 2)
    if not mean:
        return pooled
    areas = masks.flatten(2).sum(2, keepdim=True)
    return torch.where(areas > 0, pooled / torch.where(areas > 0, areas, 1), 0)
