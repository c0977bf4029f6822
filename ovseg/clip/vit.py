"""CLIP's plain vision transformer, run block by block, so that something can happen to the tokens in between.

The weights are open_clip's; the forward of its blocks is written anew here, and tested against open_clip's own on the
oldest and the newest version that is supported: only what is asked for is computed, see :func:`encode_patches`. Both
uses are here, too: mask prompts (OVSeg, arXiv 2210.04150, section 3.3; specification, section 5), and the tokens of
whole images (SCAN, arXiv 2312.04089; specification, sections 3 and 7.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from detectron2.structures import ImageList
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ovseg.errors import OvsegError, argument


@dataclass(frozen=True)
class Replacement:
    """Patch tokens that are replaced by others.

    Attributes:
        where: bool (B, P).
        by: the new tokens; broadcast to (B, P, width).
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

    Of the last block only the class token is computed, unless it is observed; patches that will be replaced are not
    computed on a CPU. With open_clip's ``set_grad_checkpointing`` each block's activations are computed again in the
    backward pass.

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


def add_mask_prompts(visual: nn.Module, depth: int) -> None:
    """Give the image tower the parameter ``mask_embedding`` (depth, patches, width), zeros.

    It lives on the tower because the published checkpoints name it so (``visual.mask_embedding``). A ResNet tower
    has no patches and gets none.

    Raises:
        OvsegError: depth > 0 for a tower that is not a plain vision transformer, or deeper than the tower.
    """
    if depth > 0 and not is_plain_vit(visual):
        raise OvsegError(
            f"mask prompts need a plain CLIP vision transformer: set {argument('depth')} to 0 for a "
            f"{type(visual).__name__} image tower, and do not use prompts"
        )
    if not is_plain_vit(visual):
        return
    blocks = len(visual.transformer.resblocks)
    if depth > blocks:
        raise OvsegError(f"{argument('depth')} is {depth}, but the image tower has {blocks} blocks")
    patches, width = len(visual.positional_embedding) - 1, visual.conv1.out_channels
    visual.register_parameter("mask_embedding", nn.Parameter(torch.zeros(depth, patches, width)))


def encode_masked_image(visual: VisionTransformer, crops: Tensor, masks: Tensor) -> Tensor:
    """Encode crops, with fully masked patches replaced by the learnt prompts (OVSeg, section 3.3).

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
    grids = [patches[depth] for depth in depths]
    nothing = features.new_zeros(len(images), 0, class_tokens[0].shape[1], *visual.grid_size, dtype=torch.float32)
    return WholeImages(torch.stack(grids, 1) if grids else nothing, torch.stack(class_tokens), features.float())


def _run_block(block: nn.Module, x: Tensor, replacement: Replacement | None, class_only: bool) -> Tensor:
    """Tokens (B, 1 + P, width) after a block and a replacement, or the class token alone, (B, 1, width)."""
    plain = isinstance(block, ResidualAttentionBlock)
    if plain and class_only:
        return _finish(block, x[:, :1], _attend(block.attn, block.ln_1(x), slice(1)))
    if plain and replacement is not None and x.device.type == "cpu":
        # on a GPU the number of patches that stay would have to reach the host first
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
    query, key, value = parts
    heads = (attention.num_heads, -1)  # (B, N or n, width) -> (B, heads, N or n, width / heads)
    attended = F.scaled_dot_product_attention(
        query.unflatten(-1, heads).transpose(1, 2),
        key.unflatten(-1, heads).transpose(1, 2),
        value.unflatten(-1, heads).transpose(1, 2),
    )
    return attended.transpose(1, 2).flatten(2)


def _finish(block: ResidualAttentionBlock, x: Tensor, attended: Tensor) -> Tensor:
    """What a block does after the attention, to each token by itself; (..., width) both."""
    x = x + block.ls_1(block.attn.out_proj(attended))
    hidden = block.mlp.c_fc(block.ln_2(x))
    if isinstance(block.mlp.gelu, QuickGELU) and not hidden.requires_grad:
        hidden = (1.702 * hidden).sigmoid_().mul_(hidden)  # the module's numbers, with one new array instead of three
    else:
        hidden = block.mlp.gelu(hidden)
    return x + block.ls_2(block.mlp.c_proj(hidden))
