"""Dense feature maps: the features of every place of an image, before CLIP's image tower pools them.

:mod:`ovseg.clip.dense_towers` computes the maps; here are the images that they are computed from, and their averages in
masks ("mask pooling", OpenSeg, arXiv 2112.12143, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LAST = "last"  # name of the map that the tower pools
KEYS = "keys"  # name of the map of the keys of the tower's last attention
STRIDE = 32  # pixels between the places of the last map of a convolutional tower


def resize_whole(image: Tensor, size: int, mean: Tensor, std: Tensor, stride: int = STRIDE) -> Tensor:
    """Resize an image to sides that are multiples of ``stride``, and normalise it.

    Args:
        image: (3, H, W), 0 .. 255.
        size: of the longer side, pixels; the shorter one keeps the ratio up to the rounding.
        mean, std: (1, 3, 1, 1), 0 .. 255.
        stride: pixels between the places of the map.

    Returns:
        float32 (1, 3, h, w).
    """
    scale = size / max(image.shape[1:])
    sides = [max(stride, round(side * scale / stride) * stride) for side in image.shape[1:]]
    pixels = image[None].float()
    if tuple(sides) != tuple(image.shape[1:]):
        pixels = F.interpolate(pixels, sides, mode="bilinear", align_corners=False, antialias=True)
    return (pixels - mean) / std


def pool(features: Tensor, weights: Tensor) -> Tensor:
    """Return weighted averages of the places of a map.

    Args:
        features: (C, h, w).
        weights: (V, h, w), of which each row has a positive sum.

    Returns:
        (V, C).
    """
    flat = weights.flatten(1)
    return (flat / flat.sum(1, keepdim=True)) @ features.flatten(1).T


def spread(features: Tensor, weights: Tensor) -> Tensor:
    """Return the standard deviations of the places of a map; arguments and result as of :func:`pool`."""
    return (pool(features * features, weights) - pool(features, weights) ** 2).clamp(min=0).sqrt()


def covered(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Return the share of each place of a map that masks cover.

    Args:
        masks: (V, H, W), 0 .. 1.
        size: h, w of the map.

    Returns:
        float32 (V, h, w).
    """
    if torch.compiler.is_compiling():  # graph formats have no such operator for any size
        rows, columns = (averaging(old, new, masks.device) for old, new in zip(masks.shape[1:], size, strict=True))
        return rows @ masks.float() @ columns.T
    return F.interpolate(masks[None].float(), tuple(size), mode="area")[0]


def averaging(old: int, new: int, device: torch.device | None = None) -> Tensor:
    """Return the matrix (new, old) that averages the places of an axis as ``F.interpolate(mode="area")`` does."""
    index, places = torch.arange(new, device=device)[:, None], torch.arange(old, device=device)
    inside = (places >= index * old // new) & (places * new < (index + 1) * old)
    return inside / inside.sum(1, keepdim=True)
