"""CLIP's image tower with mask prompts (OVSeg, arXiv 2210.04150, section 3.3; specification, section 5)."""

from __future__ import annotations

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ovseg.errors import OvsegError


def add_mask_prompts(visual: nn.Module, depth: int) -> None:
    """Give the image tower the parameter ``mask_embedding`` (depth, patches, width), zeros.

    It lives on the tower because the published checkpoints name it so (``visual.mask_embedding``). A ResNet tower
    has no patches and gets none.

    Raises:
        OvsegError: depth > 0 for a tower that is not a plain vision transformer, or deeper than the tower.
    """
    if depth > 0 and not _is_plain_vit(visual):
        raise OvsegError(
            "mask prompts need a plain CLIP vision transformer: set MODEL.CLIP_ADAPTER.MASK_PROMPT_DEPTH to 0 and "
            f"MASK_PROMPT_FWD to False for a {type(visual).__name__} image tower"
        )
    if not _is_plain_vit(visual):
        return
    blocks = len(visual.transformer.resblocks)
    if depth > blocks:
        raise OvsegError(f"MODEL.CLIP_ADAPTER.MASK_PROMPT_DEPTH is {depth}, but the image tower has {blocks} blocks")
    patches, width = len(visual.positional_embedding) - 1, visual.conv1.out_channels
    visual.register_parameter("mask_embedding", nn.Parameter(torch.zeros(depth, patches, width)))


def encode_masked_image(visual: VisionTransformer, crops: Tensor, masks: Tensor) -> Tensor:
    """Encode crops, with fully masked patches replaced by the learnt prompts.

    A patch is replaced when none of its pixels is foreground: before the class token and the position embedding are
    added, and again after blocks 1 .. depth - 1. With open_clip's ``set_grad_checkpointing`` each block's activations
    are worked out again in the backward pass.

    Args:
        visual: the tower, with ``mask_embedding`` (see :func:`add_mask_prompts`).
        crops: (V, 3, S, S) normalised.
        masks: (V, 1, S, S) float, > 0 where foreground.

    Returns:
        (V, D) features, not normalised.
    """
    prompts = visual.mask_embedding  # (depth, patches, width)
    keep = F.avg_pool2d(masks, visual.conv1.kernel_size).ceil().flatten(1)[..., None]  # (V, patches, 1) 0 or 1

    def prompted(tokens: Tensor, level: int) -> Tensor:
        return tokens * keep + prompts[level] * (1 - keep)

    patches = visual.conv1(crops).flatten(2).transpose(1, 2)  # (V, patches, width)
    x = torch.cat((visual.class_embedding.expand(len(crops), 1, -1), prompted(patches, 0)), dim=1)
    x = visual.ln_pre(visual.patch_dropout(x + visual.positional_embedding))
    transformer = visual.transformer
    for level, block in enumerate(transformer.resblocks, 1):
        x = x if transformer.batch_first else x.transpose(0, 1)
        x = checkpoint(block, x, use_reentrant=False) if transformer.grad_checkpointing else block(x)
        x = x if transformer.batch_first else x.transpose(0, 1)
        if level < len(prompts):
            x = torch.cat((x[:, :1], prompted(x[:, 1:], level)), dim=1)
    return visual.ln_post(x[:, 0]) @ visual.proj


def _is_plain_vit(visual: nn.Module) -> bool:
    return isinstance(visual, VisionTransformer) and visual.attn_pool is None and visual.pool_type == "tok"
