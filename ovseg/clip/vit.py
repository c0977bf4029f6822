"""CLIP's plain vision transformer, run block by block, so that something can happen to the tokens in between.

Its weights are open_clip's, its steps too, but what no one asks for is not worked out: see :func:`encode_patches`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Replacement:
    """Patch tokens that give way to others.

    Attributes:
        where: bool (B, P).
        by: the others; broadcast to (B, P, width).
    """

    where: Tensor
    by: Tensor

    def apply(self, patches: Tensor) -> Tensor:
        """(B, P, width) -> the same."""
        return torch.where(self.where[..., None], self.by, patches)


def is_plain_vit(visual: nn.Module) -> bool:
    """Whether an image tower is a vision transformer whose class token is the image's feature."""
    return isinstance(visual, VisionTransformer) and visual.attn_pool is None and visual.pool_type == "tok"


def embed_patches(visual: VisionTransformer, images: Tensor) -> Tensor:
    """Patches before position is added; (B, 3, S, S) normalised -> (B, P, width), row by row."""
    return visual.conv1(images).flatten(2).transpose(1, 2)


def encode_patches(
    visual: VisionTransformer,
    patches: Tensor,
    replaced: Mapping[int, Replacement] = MappingProxyType({}),
    observe: Callable[[Tensor, int], None] | None = None,
) -> Tensor:
    """The rest of the tower: class token, positions, blocks, projection.

    Of the last block only the class token is worked out, unless it is observed; patches that will be replaced are not
    worked out on a CPU. With open_clip's ``set_grad_checkpointing`` each block's activations are worked out again in
    the backward pass.

    Args:
        patches: (B, P, width) from :func:`embed_patches`.
        replaced: what happens after a block, by its number; 1 is the first.
        observe: called with the tokens (B, 1 + P, width), class token first, and the number of the block that they
            come from, 0 for the blocks' input.

    Returns:
        (B, D) features, not normalised.
    """
    x = torch.cat((visual.class_embedding.expand(len(patches), 1, -1), patches), dim=1)
    x = visual.ln_pre(visual.patch_dropout(x + visual.positional_embedding))
    transformer = visual.transformer
    run = partial(checkpoint, _run_block, use_reentrant=False) if transformer.grad_checkpointing else _run_block
    for number, block in enumerate(transformer.resblocks):
        if observe is not None:
            observe(x, number)
        last = number + 1 == len(transformer.resblocks)
        x = run(block, x, replaced.get(number + 1), last and observe is None)
    if observe is not None:
        observe(x, len(transformer.resblocks))
    return visual.ln_post(x[:, 0]) @ visual.proj


def foreground_patches(visual: VisionTransformer, masks: Tensor) -> Tensor:
    """Which patches have a pixel of the mask; float (V, 1, S, S) -> bool (V, P), row by row."""
    return F.max_pool2d(masks, visual.conv1.kernel_size).flatten(1) > 0


def _run_block(block: nn.Module, x: Tensor, replacement: Replacement | None, class_only: bool) -> Tensor:
    """Tokens (B, 1 + P, width) after a block and a replacement, or the class token alone, (B, 1, width)."""
    plain = isinstance(block, ResidualAttentionBlock)
    if plain and class_only:
        return _finish(block, x[:, :1], _attend(block.attn, block.ln_1(x), slice(1)))
    if plain and replacement is not None and x.device.type == "cpu":
        # a GPU would have to tell how many patches stay before it is given more work
        stay = F.pad(~replacement.where, (1, 0), value=True)  # (B, 1 + P)
        attended = _attend(block.attn, block.ln_1(x))
        tokens = F.pad(replacement.by.expand(len(x), x.shape[1] - 1, -1), (0, 0, 1, 0))
        tokens[stay] = _finish(block, x[stay], attended[stay])
        return tokens
    x = _finish(block, x, _attend(block.attn, block.ln_1(x))) if plain else block(x)
    return x if replacement is None else torch.cat((x[:, :1], replacement.apply(x[:, 1:])), dim=1)


def _attend(attention: nn.MultiheadAttention, x: Tensor, queries: slice = slice(None)) -> Tensor:
    """Self-attention of some tokens to all, before the output's projection; (B, N, width) -> (B, n, width).

    The module's own call takes PyTorch's "fast path", which on a CPU stores all the weights of the attention.
    """
    width = x.shape[-1]
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    if queries == slice(None):
        parts = F.linear(x, weight, bias).chunk(3, -1)
    else:
        query = F.linear(x[:, queries], weight[:width], bias[:width])
        parts = (query, *F.linear(x, weight[width:], bias[width:]).chunk(2, -1))
    parts = [part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in parts]  # (B, heads, N or n, ...)
    return F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)


def _finish(block: ResidualAttentionBlock, x: Tensor, attended: Tensor) -> Tensor:
    """What a block does after the attention, to each token by itself; (..., width) both."""
    x = x + block.ls_1(block.attn.out_proj(attended))
    hidden = block.mlp.c_fc(block.ln_2(x))
    if isinstance(block.mlp.gelu, QuickGELU) and not hidden.requires_grad:
        hidden = (1.702 * hidden).sigmoid_().mul_(hidden)  # the module's numbers, with one new array instead of three
    else:
        hidden = block.mlp.gelu(hidden)
    return x + block.ls_2(block.mlp.c_proj(hidden))
