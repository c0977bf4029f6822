"""Dense features of a vision transformer: its tokens at images of any size, and the value path of its last block.

The value path (MaskCLIP, arXiv 2112.01071, section 3.2): in the last block each token attends to itself alone, so that
its feature is of its own place, not of the whole image. The functions take the parts of a block, not a block: published
checkpoints name these parts differently.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

VALUE, VALUE_NO_RESIDUAL, LAST_TOKENS = MODES = ("value", "value_no_residual", "last_tokens")
SAME = nn.Identity()
QUERY, KEY_PART, VALUE_PART = range(3)  # of the input projection of an attention layer


def pad_to_multiple(pixels: Tensor, divisor: int) -> Tensor:
    """Return images (..., H, W) with zeros at the right and the bottom, so that ``divisor`` divides both sides."""
    height, width = pixels.shape[-2:]
    bottom, right = -height % divisor, -width % divisor
    return F.pad(pixels, (0, right, 0, bottom)) if bottom or right else pixels


def self_projection(attention: nn.MultiheadAttention, x: Tensor, part: int) -> Tensor:
    """Return queries, keys or values of tokens, each through the output projection; (..., C) -> (..., C).

    Of the values, this is what attention gives to a token that attends to itself alone.

    Args:
        part: :data:`QUERY`, :data:`KEY_PART` or :data:`VALUE_PART`.
    """
    width = x.shape[-1]
    rows = slice(part * width, (part + 1) * width)
    bias = attention.in_proj_bias
    return attention.out_proj(F.linear(x, attention.in_proj_weight[rows], None if bias is None else bias[rows]))


def value_path(
    x: Tensor,
    norm_1: Callable[[Tensor], Tensor],
    attention: nn.MultiheadAttention,
    norm_2: Callable[[Tensor], Tensor],
    mlp: Callable[[Tensor], Tensor],
    scale_1: Callable[[Tensor], Tensor] = SAME,
    scale_2: Callable[[Tensor], Tensor] = SAME,
    residual: bool = True,
) -> Tensor:
    """Return the tokens (..., C) after a block in which each of them attends to itself alone.

    Args:
        x: the input of the block, (..., C).
        norm_1, attention, norm_2, mlp: parts of the block.
        scale_1, scale_2: layer scale of its two branches.
        residual: add ``x`` to the attention's output. The residual of the MLP is always added.
    """
    attended = scale_1(self_projection(attention, norm_1(x), VALUE_PART))
    x = x + attended if residual else attended
    return x + scale_2(mlp(norm_2(x)))


def as_maps(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return tokens (B, 1 + P, C), class token first, as maps (B, C, h, w) without the class token."""
    return tokens[:, 1:].transpose(1, 2).unflatten(2, grid)
