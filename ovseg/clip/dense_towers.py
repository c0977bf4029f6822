"""Image towers of CLIP as functions from images to dense maps, one class for each kind of tower.

A place of a map has features like those of an image, as far as the tower allows it. Three kinds are known:

* convolutional towers of timm with average pooling (ConvNeXt, EfficientNet, FastViT): what follows the pooling, such as
  norm and projection, is applied to each place;
* CLIP's ResNets, whose pooling is attention: its value and output projections are applied to each place;
* CLIP's plain vision transformers: the value path of the last block, see :mod:`ovseg.clip.dense_vit`.

The latter two can also restrict the attention that gives the feature of an image to a region ("mask_attention").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock
from timm.layers import SelectAdaptivePool2d
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.clip.dense import KEYS, LAST, STRIDE, pool
from ovseg.clip.dense_vit import (
    KEY_PART,
    LAST_TOKENS,
    MODES,
    VALUE,
    as_maps,
    pad_to_multiple,
    self_projection,
    value_path,
)
from ovseg.clip.vit import embed_patches, is_plain_vit, resize_positions, run_block
from ovseg.errors import OvsegError, argument

MASK_ATTENTION = "mask_attention"
INPUT, CLASS = "input.", "class"  # maps of the inputs of the last blocks, and their class token


class DenseTower:
    """Dense maps of an image tower, and the features of places and of regions in CLIP's joint space.

    Args:
        visual: open_clip's image tower.
        mode: one of :attr:`modes`.
        attending: of ``mask_attention``, the number of last blocks whose attention is restricted to the region.

    Attributes:
        modes: ways to compute the map, of :data:`ovseg.clip.dense_vit.MODES` and :data:`MASK_ATTENTION`.
        blocks: number of blocks with attention, the limit of ``attending``.
        stride: pixels between the places of the map :data:`LAST`.
        width: channels of that map.
        layers: names of inner layers.
        channels_last: whether the tower is faster with this memory format of its weights, on a CPU.
    """

    modes: tuple[str, ...] = (VALUE,)
    blocks: int = 1
    stride: int = STRIDE
    width: int
    layers: tuple[str, ...] = ()
    channels_last = False
    has_keys = True

    def __init__(self, visual: nn.Module, mode: str = VALUE, attending: int = 1):
        self.visual, self.mode, self.attending = visual, mode, attending

    def maps(self, pixels: Tensor, layers: Sequence[str] = (), keys: bool = False) -> dict[str, Tensor]:
        """Compute the feature maps of images.

        Args:
            pixels: (B, 3, H, W), normalised; zeros are added at the right and the bottom if :attr:`stride` does not
                divide the sides.
            layers: names of inner layers whose maps are returned as well.
            keys: return the keys of the last attention, too.

        Returns:
            float (B, C, h, w) by layer; by :data:`ovseg.clip.dense.LAST` the map that the tower pools, by
            :data:`ovseg.clip.dense.KEYS` the keys, and what :meth:`regions` needs as well.

        Raises:
            OvsegError: the tower's features are not maps with the channels first.
        """
        return self._maps(pad_to_multiple(pixels, self.stride), layers, keys)

    def project(self, features: Tensor) -> Tensor:
        """Return features in the joint space, (N, D), not normalised, of places or averages of places, (N, C)."""
        raise NotImplementedError

    def places(self, features: Tensor) -> Tensor:
        """Return features in the joint space, (D, h, w), not normalised, of the places of a map :data:`LAST`."""
        projected = self.project(features.flatten(1).T)
        return projected.T.unflatten(1, features.shape[1:])

    def regions(self, maps: Mapping[str, Tensor], shares: Tensor) -> Tensor:
        """Return features in the joint space, (V, D), not normalised, of regions.

        Args:
            maps: of one image, (C, h, w) each, from :meth:`maps`.
            shares: of each place that a region covers, (V, h, w), of which each row has a positive sum.
        """
        return self.project(pool(maps[LAST], shares))

    def _maps(self, pixels: Tensor, layers: Sequence[str], keys: bool) -> dict[str, Tensor]:
        raise NotImplementedError


class TimmTower(DenseTower):
    """Convolutional tower of timm whose pooling is an average. Its stages are layers if it is an EfficientNet.

    The average over a region takes the place of that over the image, before the head (norm, layers, projection).
    """

    channels_last = True  # almost twice as fast: depthwise convolutions
    has_keys = False

    def __init__(self, visual: TimmModel, mode: str = VALUE, attending: int = 1):
        super().__init__(visual, mode, attending)
        self.width = visual.trunk.num_features
        if isinstance(visual.trunk, EfficientNet):
            self.layers = tuple(f"blocks.{number}" for number in range(len(visual.trunk.blocks)))

    @staticmethod
    def fits(visual: nn.Module) -> bool:
        """Return whether an image tower is of this kind."""
        if not isinstance(visual, TimmModel) or hasattr(visual.head, "pool"):
            return False
        trunk = visual.trunk
        pools = [module.pool_type for module in trunk.modules() if isinstance(module, SelectAdaptivePool2d)]
        # patch_embed: transformers, whose features are no maps with the channels first
        convolutional = hasattr(trunk, "forward_head") and not hasattr(trunk, "patch_embed")
        return convolutional and set(pools) <= {"avg", "fast", ""}

    def _maps(self, pixels: Tensor, layers: Sequence[str], keys: bool) -> dict[str, Tensor]:
        trunk, maps = self.visual.trunk, {}
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
        if maps[LAST].dim() != 4 or maps[LAST].shape[1] != self.width:
            raise OvsegError(
                f"the features of the image tower {type(trunk).__name__} are not maps (B, {self.width}, h, w): "
                "choose a convolutional tower, or the namer MaskedCrops"
            )
        return maps

    def project(self, features: Tensor) -> Tensor:
        return self.visual.head(self.visual.trunk.forward_head(features[:, :, None, None]))


class ResNetTower(DenseTower):
    """CLIP's ResNet, whose pooling is attention over the places and their mean.

    ``value``: the value and output projections of the attention. ``last_tokens``: the attention itself, of each place
    to all places, without positions (as in MaskCLIP). ``mask_attention``: that of the average over a region to the
    places of the region (FC-CLIP, arXiv 2308.02487); of a whole image it gives CLIP's own feature.
    """

    modes = (VALUE, LAST_TOKENS, MASK_ATTENTION)

    def __init__(self, visual: ModifiedResNet, mode: str = VALUE, attending: int = 1):
        super().__init__(visual, mode, attending)
        self.pool: AttentionPool2d = visual.attnpool
        self.width = self.pool.v_proj.in_features
        self.layers = tuple(f"layer{number}" for number in range(1, 5))

    @staticmethod
    def fits(visual: nn.Module) -> bool:
        """Return whether an image tower is of this kind."""
        return isinstance(visual, ModifiedResNet) and isinstance(visual.attnpool, AttentionPool2d)

    def _maps(self, pixels: Tensor, layers: Sequence[str], keys: bool) -> dict[str, Tensor]:
        x, maps = self.visual.stem(pixels), {}
        for layer in self.layers:
            x = getattr(self.visual, layer)(x)
            maps[layer] = x
        maps = {layer: maps[layer] for layer in layers} | {LAST: x}
        if self.mode == LAST_TOKENS:
            maps[LAST] = attend_all(x, self.pool.q_proj, self.pool.k_proj, self.pool.v_proj, self.pool.num_heads)
        if keys:
            maps[KEYS] = self.pool.k_proj(x.movedim(1, -1)).movedim(-1, 1)
        return maps

    def project(self, features: Tensor) -> Tensor:
        return self.pool.c_proj(features if self.mode == LAST_TOKENS else self.pool.v_proj(features))

    def regions(self, maps: Mapping[str, Tensor], shares: Tensor) -> Tensor:
        if self.mode != MASK_ATTENTION:
            return super().regions(maps, shares)
        attention, grid = self.pool, tuple(shares.shape[1:])
        side = round((len(attention.positional_embedding) - 1) ** 0.5)
        positions = resize_positions(attention.positional_embedding, (side, side), grid)
        means = pool(maps[LAST], shares) + positions[0]  # (V, C)
        places = maps[LAST].flatten(1).T + positions[1:]  # (P, C)
        query, *own = (layer(means) for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
        others = (attention.k_proj(places), attention.v_proj(places))
        return attention.c_proj(attend_regions(query, own, others, shares, attention.num_heads))


class VitTower(DenseTower):
    """CLIP's plain vision transformer; its position embeddings are resized to the image. The modes:

    ``value``: in the last block each token attends to itself; ``value_no_residual``: without the residual of the
    attention; ``last_tokens``: the last block as it is, whose tokens are less local. ``mask_attention``: each region
    has a copy of the class token, which in the last blocks attends to itself and to the places of the region (as those
    of SAN, arXiv 2302.12242, attend with the biases of its network); of a whole image it gives CLIP's own feature.
    """

    modes = (*MODES, MASK_ATTENTION)

    def __init__(self, visual: nn.Module, mode: str = VALUE, attending: int = 1):
        super().__init__(visual, mode, attending)
        self.stride, self.width = visual.conv1.stride[0], visual.conv1.out_channels
        self.blocks = len(visual.transformer.resblocks)

    @staticmethod
    def fits(visual: nn.Module) -> bool:
        """Return whether an image tower is of this kind."""
        return is_plain_vit(visual) and isinstance(visual.transformer.resblocks[-1], ResidualAttentionBlock)

    def _maps(self, pixels: Tensor, layers: Sequence[str], keys: bool) -> dict[str, Tensor]:
        visual, grid = self.visual, (pixels.shape[2] // self.stride, pixels.shape[3] // self.stride)
        patches = embed_patches(visual, pixels)
        x = torch.cat((visual.class_embedding.expand(patches.shape[0], 1, -1), patches), dim=1)
        x = visual.ln_pre(x + resize_positions(visual.positional_embedding, visual.grid_size, grid))
        *blocks, last = visual.transformer.resblocks
        inputs = []
        for block in blocks:
            inputs.append(x)
            x = run_block(block, x)
        tokens = run_block(last, x) if self.mode == LAST_TOKENS else self._value_path(last, x)
        maps = {LAST: as_maps(visual.ln_post(tokens), grid)}
        if self.mode == MASK_ATTENTION:
            inputs = [*inputs, x][-self.attending :]
            maps |= {f"{INPUT}{number}": as_maps(tokens, grid) for number, tokens in enumerate(inputs)}
            maps[CLASS] = inputs[0][:, 0, :, None, None]
        if keys:
            maps[KEYS] = as_maps(self_projection(last.attn, last.ln_1(x), KEY_PART), grid)
        return maps

    def project(self, features: Tensor) -> Tensor:
        return features @ self.visual.proj

    def regions(self, maps: Mapping[str, Tensor], shares: Tensor) -> Tensor:
        if self.mode != MASK_ATTENTION:
            return super().regions(maps, shares)
        x = maps[CLASS].flatten().expand(shares.shape[0], -1)
        for number, block in enumerate(self.visual.transformer.resblocks[-self.attending :]):
            weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
            query, *own = F.linear(block.ln_1(x), weight, bias).chunk(3, -1)
            places = block.ln_1(maps[f"{INPUT}{number}"].flatten(1).T)
            width = len(maps[CLASS])
            others = F.linear(places, weight[width:], bias[width:]).chunk(2, -1)
            attended = attend_regions(query, own, others, shares, block.attn.num_heads)
            x = x + block.ls_1(block.attn.out_proj(attended))
            x = x + block.ls_2(block.mlp(block.ln_2(x)))
        return self.project(self.visual.ln_post(x))

    def _value_path(self, block: ResidualAttentionBlock, x: Tensor) -> Tensor:
        parts = (block.ln_1, block.attn, block.ln_2, block.mlp, block.ls_1, block.ls_2)
        return value_path(x, *parts, residual=self.mode == VALUE)


KINDS = (TimmTower, ResNetTower, VitTower)


def dense_tower(
    visual: nn.Module,
    name: str = "this CLIP",
    mode: str = VALUE,
    layers: Sequence[str] = (),
    keys: bool = False,
    attending: int = 1,
) -> DenseTower:
    """Return the dense maps of an image tower.

    Args:
        visual: open_clip's image tower.
        name: of the CLIP, for messages.
        mode: see the kinds of towers.
        layers: inner layers that are needed as well.
        keys: whether keys are needed.
        attending: see :class:`DenseTower`.

    Raises:
        OvsegError: the tower has no dense maps, or lacks the mode, a layer, keys or blocks.
    """
    found = [kind for kind in KINDS if kind.fits(visual)]
    of_timm = isinstance(visual, TimmModel)
    kind = type(visual.trunk).__name__ if of_timm else type(visual).__name__
    if not found:
        raise OvsegError(
            f"{argument('name')} {name}: its image tower {kind}{' of timm' if of_timm else ''} has no dense maps: "
            "choose a CLIP with a plain vision transformer, CLIP's ResNet, or a convolutional tower of timm with "
            "average pooling; or the namer MaskedCrops, which takes every CLIP"
        )
    tower = found[0](visual, mode, attending)
    if absent := [layer for layer in layers if layer not in tower.layers]:
        raise OvsegError(f"{argument('name')} {name}: its image tower has no layer {absent[0]}; choose photo")
    if mode not in tower.modes:
        raise OvsegError(
            f"{argument('mode')} is {mode}, but the image tower {kind} of {name} has only {' and '.join(tower.modes)}: "
            "set one of them"
        )
    if mode == MASK_ATTENTION and attending > tower.blocks and isinstance(tower, VitTower):
        raise OvsegError(
            f"{argument('attending')} is {attending}, but the image tower of {name} has {tower.blocks} blocks: give a "
            "number up to that"
        )
    if keys and not tower.has_keys:
        raise OvsegError(
            f"{argument('key_smoothing')} is above 0, but the image tower {kind} of {name} has no attention, hence no "
            "keys: set it to 0"
        )
    return tower


def attend_all(features: Tensor, query: nn.Module, key: nn.Module, value: nn.Module, heads: int) -> Tensor:
    """Return what each place of a map receives by attention to all places and their mean.

    Args:
        features: (B, C, h, w).
        query, key, value: linear layers or 1 x 1 convolutions, C -> C.
        heads: of the attention.

    Returns:
        (B, C, h, w), without output projection.
    """
    x = features.flatten(2).transpose(1, 2)
    x = torch.cat((x.mean(1, keepdim=True), x), dim=1)  # (B, 1 + P, C)
    parts = [_linear(layer)(x).unflatten(2, (heads, -1)).transpose(1, 2) for layer in (query, key, value)]
    attended = F.scaled_dot_product_attention(*parts)
    return as_maps(attended.transpose(1, 2).flatten(2), features.shape[2:])


def attend_regions(
    query: Tensor, own: Sequence[Tensor], others: Sequence[Tensor], shares: Tensor, heads: int
) -> Tensor:
    """Return the attention of one token of each region to itself and to the places of the region.

    A place counts by the share of it that the region covers.

    Args:
        query: of the tokens, (V, C).
        own: key and value of the tokens, (V, C) each.
        others: keys and values of the places, (P, C) each.
        shares: (V, h, w).
        heads: of the attention.

    Returns:
        (V, C), without output projection.
    """
    query, own_key, own_value = (part.unflatten(1, (heads, -1)) for part in (query, *own))  # (V, heads, c)
    keys, values = (part.unflatten(1, (heads, -1)) for part in others)  # (P, heads, c)
    query = query * query.shape[-1] ** -0.5
    logits = torch.einsum("vnc,pnc->vnp", query, keys) + shares.flatten(1).log()[:, None]
    logits = torch.cat(((query * own_key).sum(-1, keepdim=True), logits), dim=2)  # (V, heads, 1 + P)
    to_itself, to_places = logits.softmax(-1).split((1, keys.shape[0]), dim=2)
    return (to_itself * own_value + torch.einsum("vnp,pnc->vnc", to_places, values)).flatten(1)


def _linear(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a linear layer, or a 1 x 1 convolution as one."""
    return lambda x: F.linear(x, layer.weight.flatten(1), layer.bias)
