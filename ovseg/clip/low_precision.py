"""Image towers whose matrices are stored in bfloat16 or float16, for evaluation."""

from __future__ import annotations

import copy

import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn

from ovseg.clip.vit import is_plain_vit

QUICK_GELU = 1.702  # QuickGELU(x) = x * sigmoid(1.702 x)


class LowPrecisionCopy:
    """Copy of a vision transformer, made for its first use, and again after :meth:`drop` or a change of the weights.

    Autocast stores the result of a cast only for parameters that are trained: those of a frozen tower are cast again
    for each chunk of crops. Here the matrices of the blocks and of the patch embedding are cast once. The other tensors
    are those of the tower; sums, norms and softmax have the precision that they have under autocast, in which the copy
    must run. QuickGELU becomes SiLU between two layers scaled by 1.702 and its inverse.
    """

    def __init__(self) -> None:
        self._made: tuple[tuple, nn.Module] | None = None

    def of(self, visual: nn.Module, dtype: torch.dtype) -> nn.Module:
        """Return the copy; the tower itself if it is no plain vision transformer."""
        if not is_plain_vit(visual):
            return visual
        state = (dtype, *((tensor.data_ptr(), _version(tensor)) for tensor in visual.parameters()))
        made = self._made
        if made is None or made[0] != state:
            made = self._made = (state, low_precision(visual, dtype))
        return made[1]

    def drop(self) -> None:
        """Make the copy again at its next use; fused optimisers change weights without a trace."""
        self._made = None

    def __reduce__(self) -> tuple:
        return LowPrecisionCopy, ()  # copies and pickles of a model make their own


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


@torch.inference_mode(False)
@torch.no_grad()
def low_precision(visual: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a plain vision transformer with its matrices in ``dtype``, and all other tensors shared; see the class."""
    shared = {id(parameter): parameter for parameter in visual.parameters()}
    tower = copy.deepcopy(visual, shared)

    def cast(owner: nn.Module, name: str, factor: float = 1.0) -> None:
        tensor: Tensor | None = getattr(owner, name)
        if tensor is not None:
            setattr(owner, name, nn.Parameter((tensor * factor).to(dtype), requires_grad=False))

    cast(tower.conv1, "weight")
    for block in tower.transformer.resblocks:
        if not isinstance(block, ResidualAttentionBlock):
            continue
        for owner, name in (
            (block.attn, "in_proj_weight"),
            (block.attn, "in_proj_bias"),
            (block.attn.out_proj, "weight"),
            (block.attn.out_proj, "bias"),
        ):
            cast(owner, name)
        hidden, out = block.mlp.c_fc, block.mlp.c_proj
        factor = QUICK_GELU if isinstance(block.mlp.gelu, QuickGELU) else 1.0
        for owner, name, scale in ((hidden, "weight", factor), (hidden, "bias", factor), (out, "weight", 1 / factor)):
            cast(owner, name, scale)
        cast(out, "bias")
        if isinstance(block.mlp.gelu, QuickGELU):
            block.mlp.gelu = nn.SiLU(inplace=True)
    return tower
