"""CLIP's image tower with mask prompts (OVSeg, arXiv 2210.04150, section 3.3; specification, section 5)."""

from __future__ import annotations

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from ovseg.clip.vit import Replacement, embed_patches, encode_patches, foreground_patches, is_plain_vit
from ovseg.errors import OvsegError


def add_mask_prompts(visual: nn.Module, depth: int) -> None:
    """Give the image tower the parameter ``mask_embedding`` (depth, patches, width), zeros.

    It lives on the tower because the published checkpoints name it so (``visual.mask_embedding``). A ResNet tower
    has no patches and gets none.

    Raises:
        OvsegError: depth > 0 for a tower that is not a plain vision transformer, or deeper than the tower.
    """
    if depth > 0 and not is_plain_vit(visual):
        raise OvsegError(
            "mask prompts need a plain CLIP vision transformer: set MODEL.CLIP_ADAPTER.MASK_PROMPT_DEPTH to 0 and "
            f"MASK_PROMPT_FWD to False for a {type(visual).__name__} image tower"
        )
    if not is_plain_vit(visual):
        return
    blocks = len(visual.transformer.resblocks)
    if depth > blocks:
        raise OvsegError(f"MODEL.CLIP_ADAPTER.MASK_PROMPT_DEPTH is {depth}, but the image tower has {blocks} blocks")
    patches, width = len(visual.positional_embedding) - 1, visual.conv1.out_channels
    visual.register_parameter("mask_embedding", nn.Parameter(torch.zeros(depth, patches, width)))


def encode_masked_image(visual: VisionTransformer, crops: Tensor, masks: Tensor) -> Tensor:
    """Encode crops, with fully masked patches replaced by the learnt prompts.

    A patch is replaced when none of its pixels is foreground: before the class token and the position embedding are
    added, and again after blocks 1 .. depth - 1.

    Args:
        visual: the tower, with ``mask_embedding`` (see :func:`add_mask_prompts`).
        crops: (V, 3, S, S) normalised.
        masks: (V, 1, S, S) float, > 0 where foreground.

    Returns:
        (V, D) features, not normalised.
    """
    prompts = visual.mask_embedding  # (depth, patches, width)
    masked = ~foreground_patches(visual, masks)
    first, *later = (Replacement(masked, level) for level in prompts)
    return encode_patches(visual, first.apply(embed_patches(visual, crops)), dict(enumerate(later, 1)))
