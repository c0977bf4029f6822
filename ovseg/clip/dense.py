"""Dense feature maps: the features of every place of an image, before CLIP's image tower pools them.

Convolutional towers of timm are supported. Their pooling is an average, so that the average over a mask takes its place
("mask pooling", OpenSeg, arXiv 2112.12143, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from open_clip.timm_model import TimmModel
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.errors import OvsegError, argument

LAST = "last"  # name of the map that the tower pools
STRIDE = 32  # pixels between the places of that map


def check_dense(visual: nn.Module, layers: Sequence[str] = (), name: str = "this CLIP") -> None:
    """Raise OvsegError unless an image tower has dense maps.

    Args:
        visual: open_clip's image tower.
        layers: inner layers that are needed as well, see :func:`dense_maps`.
        name: of the CLIP, for the message.
    """
    if not isinstance(visual, TimmModel) or hasattr(visual.head, "pool") or not hasattr(visual.trunk, "forward_head"):
        raise OvsegError(
            f"{argument('name')} {name}: dense maps need a convolutional image tower of timm with average pooling, not "
            f"a {type(visual).__name__}; choose photo, or the namer MaskedCrops, which takes every CLIP"
        )
    known = _blocks(visual.trunk)
    if absent := [layer for layer in layers if layer not in known]:
        raise OvsegError(f"{argument('name')} {name}: its image tower has no layer {absent[0]}; choose photo")


def resize_whole(image: Tensor, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """Resize an image to sides that are multiples of :data:`STRIDE`, and normalise it.

    Args:
        image: (3, H, W), 0 .. 255.
        size: of the longer side, pixels; the shorter one keeps the ratio up to the rounding.
        mean, std: (1, 3, 1, 1), 0 .. 255.

    Returns:
        float32 (1, 3, h, w).
    """
    scale = size / max(image.shape[1:])
    sides = [max(STRIDE, round(side * scale / STRIDE) * STRIDE) for side in image.shape[1:]]
    pixels = image[None].float()
    if tuple(sides) != tuple(image.shape[1:]):
        pixels = F.interpolate(pixels, sides, mode="bilinear", align_corners=False, antialias=True)
    return (pixels - mean) / std


def dense_maps(visual: nn.Module, pixels: Tensor, layers: Sequence[str] = ()) -> dict[str, Tensor]:
    """Compute feature maps of images.

    Args:
        visual: an image tower that :func:`check_dense` accepts.
        pixels: (B, 3, H, W), normalised.
        layers: names of inner layers; of EfficientNets "blocks.0", "blocks.1", ..., the outputs of the stages.

    Returns:
        float (B, C, h, w) by layer, and by :data:`LAST` the map that the tower pools.

    Raises:
        OvsegError: the tower's features are not maps with the channels first.
    """
    trunk, maps = visual.trunk, {}
    # almost twice as fast on a CPU: depthwise convolutions with the channels last
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    if layers:
        x = trunk.bn1(trunk.conv_stem(pixels))
        for number, block in enumerate(trunk.blocks):
            x = block(x)
            if (layer := f"blocks.{number}") in layers:
                maps[layer] = x
        maps[LAST] = trunk.bn2(trunk.conv_head(x))
    else:
        maps[LAST] = trunk.forward_features(pixels)
    if maps[LAST].dim() != 4 or maps[LAST].shape[1] != trunk.num_features:
        raise OvsegError(
            f"the features of the image tower {type(trunk).__name__} are not maps (B, {trunk.num_features}, h, w): "
            "choose a convolutional tower, or the namer MaskedCrops"
        )
    return maps


def project_pooled(visual: nn.Module, pooled: Tensor) -> Tensor:
    """Return CLIP's image features of regions, (V, D), from their averages (V, C) over the map :data:`LAST`."""
    return visual.head(visual.trunk.forward_head(pooled[:, :, None, None]))


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
    return F.interpolate(masks[None].float(), tuple(size), mode="area")[0]


def _blocks(trunk: nn.Module) -> set[str]:
    if not isinstance(trunk, EfficientNet):
        return set()
    return {f"blocks.{number}" for number in range(len(trunk.blocks))}
