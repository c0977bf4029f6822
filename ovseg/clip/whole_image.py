"""What the original CLIP sees in whole images (SCAN, arXiv 2312.04089; specification, sections 3 and 7.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import ImageList
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from ovseg.clip.vit import embed_patches, encode_patches


@dataclass(frozen=True)
class WholeImages:
    """Tokens of B whole images; depth 0 is the input of the first of L blocks, depth d the output of block d.

    Attributes:
        patches: float32 (B, n, width, g, g), patch tokens at the n depths asked for, in the order of asking.
        class_tokens: float32 (L + 1, B, width), class tokens at every depth.
        features: float32 (B, D) in the joint space, not normalised.
    """

    patches: Tensor
    class_tokens: Tensor
    features: Tensor


def squash(
    images: Sequence[Tensor],
    divisibility: int,
    size: int,
    mean: Tensor,
    std: Tensor,
    interpolation: str = "nearest",
) -> Tensor:
    """Whole images as CLIP's square input: normalised, padded to one size, resized.

    The aspect ratio is not kept and the padding is squashed along, as in the original (specification, section 3): so
    CLIP's patches lie where the proposal network's features do.

    Args:
        images: (3, H, W) each, 0 .. 255.
        divisibility: sides of the padded batch are multiples of it.
        size: side S of the result.
        mean, std: (3, 1, 1), 0 .. 255.
        interpolation: "nearest", the original's, or "bilinear".

    Returns:
        float32 (B, 3, S, S).
    """
    batch = ImageList.from_tensors([(image - mean) / std for image in images], divisibility).tensor
    return F.interpolate(batch, (size, size), mode=interpolation)


@torch.no_grad()
def look_at_whole(visual: VisionTransformer, images: Tensor, depths: Sequence[int]) -> WholeImages:
    """Run a frozen image tower over whole images and keep what it thinks on the way.

    Args:
        images: (B, 3, S, S) normalised.
        depths: of the patch tokens to keep.
    """
    patches: dict[int, Tensor] = {}
    class_tokens: list[Tensor] = []

    def keep(tokens: Tensor, depth: int) -> None:
        class_tokens.append(tokens[:, 0].float())
        if depth in depths:
            grid = tokens[:, 1:].float().transpose(1, 2).unflatten(2, visual.grid_size)  # (B, width, g, g)
            patches[depth] = grid

    features = encode_patches(visual, embed_patches(visual, images), observe=keep)
    return WholeImages(
        torch.stack([patches[depth] for depth in depths], dim=1), torch.stack(class_tokens), features.float()
    )
