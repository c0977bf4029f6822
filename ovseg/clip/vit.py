"""CLIP's plain vision transformer, run block by block, so that tokens can be replaced and read between blocks.

Modules and weights are open_clip's; the forward pass of the blocks is implemented here, so that only required tokens
are computed (see :func:`encode_patches`). Tests compare it with the oldest and the newest supported open_clip.
Its uses are mask prompts (OVSeg, arXiv 2210.04150, section 3.3; specification, section 5), and the tokens of
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
    """Replacement of patch tokens.

    Attributes:
        where: patches to replace, bool (B, P).
        by: the new tokens, broadcast to (B, P, width).
    """

    where: Tensor
    by: Tensor

    def apply(self, patches: Tensor) -> Tensor:
        """Return the patches (B, P, width) with the replaced ones."""
        return torch.where(self.where[..., None], self.by, patches)


def is_plain_vit(visual: nn.Module) -> bool:
    """Return whether an image tower is a vision transformer whose image feature is its class token."""
    return isinstance(visual, VisionTransformer) and visual.attn_pool is None and visual.pool_type == "tok"


def embed_patches(visual: VisionTransformer, images: Tensor) -> Tensor:
    """Return patch embeddings without positions, row by row; normalised (B, 3, S, S) -> (B, P, width)."""
    return visual.conv1(images).flatten(2).transpose(1, 2)


def encode_patches(
    visual: VisionTransformer,
    patches: Tensor,
    replaced: Mapping[int, Replacement] = MappingProxyType({}),
    observe: Callable[[Tensor, int], None] | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Run the tower from patch embeddings: class token, positions, blocks, projection.

    Of the last block only the class token is computed, unless it is observed; on a CPU, patches that will be replaced
    are not computed. With open_clip's ``set_grad_checkpointing`` each block's activations are computed again in the
    backward pass.

    Args:
        patches: (B, P, width) from :func:`embed_patches`.
        replaced: replacements after blocks, by the number of the block; 1 is the first.
        observe: called with the tokens (B, 1 + P, width), class token first, and the number of their block, 0 for
            the input of the first.
        positions: (1 + P, width), position embeddings of other than the tower's own grid, see
            :func:`resize_positions`; None for those of the tower.

    Returns:
        (B, D) features, not normalised.
    """
    positions = visual.positional_embedding if positions is None else positions
    x = torch.cat((visual.class_embedding.expand(patches.shape[0], 1, -1), patches), dim=1)
    x = visual.ln_pre(visual.patch_dropout(x + positions))
    transformer = visual.transformer
    run = partial(checkpoint, run_block, use_reentrant=False) if transformer.grad_checkpointing else run_block
    for number, block in enumerate(transformer.resblocks):
        if observe is not None:
            observe(x, number)
        last = number + 1 == len(transformer.resblocks)
        x = run(block, x, replaced.get(number + 1), last and observe is None)
    if observe is not None:
        observe(x, len(transformer.resblocks))
    return visual.ln_post(x[:, 0]) @ visual.proj


def resize_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Return position embeddings for another grid, resized bicubically; the class entry is kept.

    Args:
        positions: (1 + P, C), the class entry first, then the grid row by row.
        old: height and width of that grid, in places.
        new: of the other one.
    """
    if old == new:
        return positions
    grid = positions[1:].T.reshape(1, -1, *old)
    grid = F.interpolate(grid, new, mode="bicubic", align_corners=False)
    return torch.cat((positions[:1], grid[0].flatten(1).T))


def encode_any_size(visual: VisionTransformer, images: Tensor) -> Tensor:
    """Encode images of another size than the tower's input, with its position embeddings resized to their grid.

    Args:
        images: (B, 3, H, W), normalised; each side of at least one patch. What is left of the last patch is not seen.

    Returns:
        (B, D) features, not normalised.
    """
    patch_height, patch_width = visual.conv1.kernel_size
    grid = (images.shape[2] // patch_height, images.shape[3] // patch_width)
    positions = resize_positions(visual.positional_embedding, tuple(visual.grid_size), grid)
    return encode_patches(visual, embed_patches(visual, images), positions=positions)


def foreground_patches(visual: VisionTransformer, masks: Tensor) -> Tensor:
    """Return which patches have a pixel of the mask, row by row; float (V, 1, S, S) -> bool (V, P)."""
    return F.max_pool2d(masks, visual.conv1.kernel_size).flatten(1) > 0


def add_mask_prompts(visual: nn.Module, depth: int) -> None:
    """Add the parameter ``mask_embedding`` (depth, patches, width) to an image tower, zeros.

    It belongs to the tower as in published checkpoints (``visual.mask_embedding``). A ResNet tower has no patches and
    gets no parameter.

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
    """Tokens of B whole images. Depth 0 is the input of the first of L blocks, depth d the output of block d.

    Attributes:
        patches: float32 (B, n, width, g, g), patch tokens at n depths, in the order of the argument ``depths``.
        class_tokens: float32 (L + 1, B, width), class tokens at every depth.
        features: float32 (B, D) in the joint space, not normalised.
    """

    patches: Tensor
    class_tokens: Tensor
    features: Tensor


def squash(
    images: Sequence[Tensor], divisibility: int, size: int, mean: Tensor, std: Tensor, interpolation: str = "nearest"
) -> Tensor:
    """Return whole images as CLIP's square input: normalised, padded to one size, resized.

    Image and padding are resized together, without keeping the aspect ratio, as in the original (specification,
    section 3): CLIP's patches correspond to the proposal network's features.

    Args:
        images: (3, H, W) each, 0 .. 255.
        divisibility: sides of the padded batch are multiples of it.
        size: side S of the result.
        mean, std: (3, 1, 1), 0 .. 255.
        interpolation: "nearest", as the original, or "bilinear".

    Returns:
        float32 (B, 3, S, S).
    """
    batch = ImageList.from_tensors([(image - mean) / std for image in images], divisibility).tensor
    return F.interpolate(batch, (size, size), mode=interpolation)


@torch.no_grad()
def look_at_whole(visual: VisionTransformer, images: Tensor, depths: Sequence[int]) -> WholeImages:
    """Run a frozen image tower over whole images and return the tokens of its blocks.

    Args:
        images: (B, 3, S, S) normalised.
        depths: depths of the patch tokens to return.
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
    nothing = features.new_zeros(images.shape[0], 0, class_tokens[0].shape[1], *visual.grid_size, dtype=torch.float32)
    return WholeImages(torch.stack(grids, 1) if grids else nothing, torch.stack(class_tokens), features.float())


def run_block(block: nn.Module, x: Tensor, replacement: Replacement | None = None, class_only: bool = False) -> Tensor:
    """Return the tokens (B, 1 + P, width) after a block and a replacement, or only the class token, (B, 1, width)."""
    plain = isinstance(block, ResidualAttentionBlock)
    if plain and class_only:
        return _finish(block, x[:, :1], _attend(block.attn, block.ln_1(x), slice(1)))
    if plain and replacement is not None and x.device.type == "cpu" and not torch.compiler.is_compiling():
        # CPU only: on a GPU the number of remaining patches would have to be copied to the host, and the shapes of
        # graphs must not depend on values
        stay = F.pad(~replacement.where, (1, 0), value=True)  # (B, 1 + P)
        attended = _attend(block.attn, block.ln_1(x))
        tokens = F.pad(replacement.by.expand(x.shape[0], x.shape[1] - 1, -1), (0, 0, 1, 0))
        tokens[stay] = _finish(block, x[stay], attended[stay])
        return tokens
    x = _finish(block, x, _attend(block.attn, block.ln_1(x))) if plain else block(x)
    return x if replacement is None else torch.cat((x[:, :1], replacement.apply(x[:, 1:])), dim=1)


def _attend(attention: nn.MultiheadAttention, x: Tensor, queries: slice = slice(None)) -> Tensor:
    """Compute the attention of some tokens to all, without output projection; (B, N, width) -> (B, n, width).

    ``nn.MultiheadAttention`` would take PyTorch's "fast path", which on a CPU stores all attention weights.
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
    """Compute the rest of a block after the attention, for each token; (..., width) both."""
    x = x + block.ls_1(block.attn.out_proj(attended))
    hidden = block.mlp.c_fc(block.ln_2(x))
    if isinstance(block.mlp.gelu, QuickGELU) and not hidden.requires_grad:
        hidden = (1.702 * hidden).sigmoid_().mul_(hidden)  # equal to the module, with one new array instead of three
    else:
        hidden = block.mlp.gelu(hidden)
    return x + block.ls_2(block.mlp.c_proj(hidden))
