"""CLIP's plain vision transformer, run block by block, so that something can happen to the tokens in between."""

from __future__ import annotations

from collections.abc import Callable

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Between = Callable[[Tensor, int], Tensor]


def is_plain_vit(visual: nn.Module) -> bool:
    """Whether an image tower is a vision transformer whose class token is the image's feature."""
    return isinstance(visual, VisionTransformer) and visual.attn_pool is None and visual.pool_type == "tok"


def embed_patches(visual: VisionTransformer, images: Tensor) -> Tensor:
    """Patches before position is added; (B, 3, S, S) normalised -> (B, P, width), row by row."""
    return visual.conv1(images).flatten(2).transpose(1, 2)


def encode_patches(
    visual: VisionTransformer, patches: Tensor, between: Between = lambda tokens, block: tokens
) -> Tensor:
    """The rest of the tower: class token, positions, blocks, projection.

    With open_clip's ``set_grad_checkpointing`` each block's activations are worked out again in the backward pass.

    Args:
        patches: (B, P, width) from :func:`embed_patches`.
        between: called with the tokens (B, 1 + P, width), class token first, and the number of the block that they
            come from, 1 for the first and 0 for the blocks' input; what it returns goes on.

    Returns:
        (B, D) features, not normalised.
    """
    x = torch.cat((visual.class_embedding.expand(len(patches), 1, -1), patches), dim=1)
    x = between(visual.ln_pre(visual.patch_dropout(x + visual.positional_embedding)), 0)
    transformer = visual.transformer
    for number, block in enumerate(transformer.resblocks, 1):
        x = x if transformer.batch_first else x.transpose(0, 1)
        x = checkpoint(block, x, use_reentrant=False) if transformer.grad_checkpointing else block(x)
        x = x if transformer.batch_first else x.transpose(0, 1)
        x = between(x, number)
    return visual.ln_post(x[:, 0]) @ visual.proj


def foreground_patches(visual: VisionTransformer, masks: Tensor) -> Tensor:
    """Which patches have a pixel of the mask; float (V, 1, S, S) -> bool (V, P), row by row."""
    return F.max_pool2d(masks, visual.conv1.kernel_size).flatten(1) > 0
