"""Image networks of LSeg: a ViT whose tokens become a pyramid, and the decoder of DPT (Ranftl et al., 2103.13413).

The modules have the names of LSeg's checkpoints. All maps are (B, C, h, w)::

    image -> ViT -> tokens after four blocks -> readout -> grid -> strides 4, 8, 16, 32   (ViTStages, "pretrained")
                                                                   |   |   |   |
    stride 2 <- refinenet1 <- refinenet2 <- refinenet3 <- refinenet4                      (Decoder, "scratch")
       '-> head1 -> pixel embeddings
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.errors import OvsegError

DIVISIBILITY = 32  # the coarsest stride: sides of images are multiples of it
ACTIVATIONS = {"lrelu": nn.LeakyReLU, "tanh": nn.Tanh, "relu": nn.ReLU}


class ViTStages(nn.Module):
    """A vision transformer of timm as a pyramid of the strides 4, 8, 16 and 32.

    Args:
        model: timm's, with a class token and patches of 16 or 32 pixels. Its final norm and its classifier are unused.
        hooks: indices of the four blocks whose tokens are used.
        channels: of the four maps.
        readout: what becomes of the class token: "project" (with each patch token through a linear layer), "add"
            (to each) or "ignore".
    """

    def __init__(self, model: nn.Module, hooks: Sequence[int], channels: Sequence[int], readout: str = "project"):
        super().__init__()
        blocks, (patch, _) = len(model.blocks), model.patch_embed.patch_size
        if patch not in (16, 32):
            raise OvsegError(f"the patches of the ViT have {patch} pixels: give a ViT with patches of 16 or 32")
        if len(hooks) != 4 or len(channels) != 4 or not all(0 <= hook < blocks for hook in hooks):
            raise OvsegError(
                f"hooks {list(hooks)} and channels {list(channels)}: give four of each, hooks from 0 to {blocks - 1}"
            )
        self.hooks, self.channels = tuple(hooks), tuple(channels)
        self.model = model
        for unused in (model.norm, model.head):
            unused.requires_grad_(False)
        for index, width in enumerate(channels):
            stage = Reassemble(model.embed_dim, width, patch / (4 << index), readout)
            self.add_module(f"act_postprocess{index + 1}", stage)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the four maps of images whose sides are multiples of :data:`DIVISIBILITY`."""
        patches = self.model.patch_embed.proj(image)
        grid, x = patches.shape[-2:], self.embed(patches)
        maps = []
        for index, block in enumerate(self.model.blocks):
            x = block(x)
            for place in (place for place, hook in enumerate(self.hooks) if hook == index):
                maps.append((place, getattr(self, f"act_postprocess{place + 1}")(x, grid)))
            if index == max(self.hooks):
                break
        return [made for _, made in sorted(maps, key=lambda item: item[0])]

    def embed(self, patches: Tensor) -> Tensor:
        """Return the tokens (B, 1 + h w, C), the class token first, with the position embedding of the grid.

        The embedding is resized bilinearly, ``align_corners=False``; the published weights were trained so.

        Args:
            patches: (B, C, h, w).
        """
        place = self.model.pos_embed[:, :1], self.model.pos_embed[:, 1:]
        side = int(place[1].shape[1] ** 0.5)
        if patches.shape[-2:] != (side, side):
            table = place[1].transpose(1, 2).unflatten(2, (side, side))
            table = F.interpolate(table, patches.shape[-2:], mode="bilinear", align_corners=False)
            place = place[0], table.flatten(2).transpose(1, 2)
        tokens = self.model.cls_token.expand(len(patches), -1, -1), patches.flatten(2).transpose(1, 2)
        return self.model.pos_drop(torch.cat(tokens, dim=1) + torch.cat(place, dim=1))


class Reassemble(nn.ModuleDict):
    """Tokens to a map of another stride: readout of the class token, channels, size.

    The keys are the places in the original's sequence, those of the checkpoints.

    Args:
        width: channels of the tokens.
        channels: of the map.
        factor: on the sides of the grid, a power of two from 1/2 on.
        readout: see :class:`ViTStages`.
    """

    def __init__(self, width: int, channels: int, factor: float, readout: str):
        super().__init__()
        if readout not in ("project", "add", "ignore"):
            raise OvsegError(f"the readout is {readout!r}: choose project, add or ignore")
        self.readout = readout
        if readout == "project":
            project = nn.Sequential(nn.Linear(2 * width, width), nn.GELU())
            self["0"] = nn.ModuleDict({"project": project})
        self["3"] = nn.Conv2d(width, channels, 1)
        if factor > 1:
            self["4"] = nn.ConvTranspose2d(channels, channels, int(factor), stride=int(factor))
        elif factor < 1:
            self["4"] = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """Return the map; tokens (B, 1 + h w, C), the class token first, of a grid (h, w)."""
        first, x = tokens[:, :1], tokens[:, 1:]
        if self.readout == "project":
            x = self["0"]["project"](torch.cat((x, first.expand_as(x)), dim=-1))
        elif self.readout == "add":
            x = x + first
        x = self["3"](x.transpose(1, 2).unflatten(2, tuple(grid)))
        return self["4"](x) if "4" in self else x


class ResNetStages(nn.Module):
    """A residual network of timm as a pyramid, in the place of :class:`ViTStages` (zero-shot variant of LSeg).

    Args:
        network: with ``conv1``, ``bn1``, ``act1``, ``maxpool`` and ``layer1`` to ``layer4``.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        stem = network.conv1, network.bn1, network.act1, network.maxpool
        self.layer1 = nn.Sequential(*stem, network.layer1)
        self.layer2, self.layer3, self.layer4 = network.layer2, network.layer3, network.layer4
        self.channels = tuple(info["num_chs"] for info in network.feature_info[1:])

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the four maps."""
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            image = stage(image)
            maps.append(image)
        return maps


class Decoder(nn.Module):
    """Decoder from four maps to embeddings of pixels at stride 2.

    Args:
        channels: of the maps, from the finest to the coarsest.
        features: channels of the decoder.
        out_channels: dimension of the embeddings.
        head_block: filter of logit maps, which is not part of the embeddings; None for none.
    """

    def __init__(self, channels: Sequence[int], features: int, out_channels: int, head_block: nn.Module | None = None):
        super().__init__()
        for index, width in enumerate(channels, start=1):
            self.add_module(f"layer{index}_rn", nn.Conv2d(width, features, 3, padding=1, bias=False))
            self.add_module(f"refinenet{index}", Fusion(features))
        self.refinenet4.resConfUnit1.requires_grad_(False)  # published, without a use: there is no coarser map
        self.head1 = nn.Conv2d(features, out_channels, 1)
        if head_block is not None:
            self.head_block = head_block

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the embeddings (B, D, H / 2, W / 2)."""
        x = None
        for index in range(len(maps), 0, -1):
            skip = getattr(self, f"layer{index}_rn")(maps[index - 1])
            x = getattr(self, f"refinenet{index}")(skip, x)
        return self.head1(x)


class Fusion(nn.Module):
    """Sum of the coarser result and a map, refined and enlarged twofold (RefineNet, Lin et al., arXiv 1611.06612)."""

    def __init__(self, features: int):
        super().__init__()
        self.out_conv = nn.Conv2d(features, features, 1)
        self.resConfUnit1, self.resConfUnit2 = ResidualUnit(features), ResidualUnit(features)

    def forward(self, skip: Tensor, coarser: Tensor | None) -> Tensor:
        """Return a map of twice the size of ``skip``; ``coarser`` has its size."""
        x = skip if coarser is None else coarser + self.resConfUnit1(skip)
        return self.out_conv(enlarge(self.resConfUnit2(x)))


class ResidualUnit(nn.Module):
    """x + [ReLU, convolution, norm, ReLU, convolution, norm] of x."""

    def __init__(self, features: int):
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(features), nn.BatchNorm2d(features)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn1(self.conv1(F.relu(x)))
        return x + self.bn2(self.conv2(F.relu(inner)))


class SpatialBlock(nn.Module):
    """Spatial regularisation of logit maps: one 3 x 3 filter, the same for all maps and all passes.

    Args:
        option: 1 adds the maximum over the maps of the image ("bottleneck"), 2 does not ("depthwise").
        depth: passes; the last one has no activation, and 0 is the same as 1.
        activation: see :data:`ACTIVATIONS`.
    """

    def __init__(self, option: int, depth: int = 0, activation: str = "lrelu"):
        super().__init__()
        if option not in (1, 2) or depth < 0 or activation not in ACTIVATIONS:
            raise OvsegError(
                f"arch_option {option}, block_depth {depth} and activation {activation!r} are no spatial block: give "
                f"1 or 2, a number of at least 0, and one of {', '.join(ACTIVATIONS)}"
            )
        self.option, self.passes = option, max(depth, 1)
        self.activation = ACTIVATIONS[activation]()
        self.depthwise = nn.ModuleDict({"depthwise": nn.Conv2d(1, 1, 3, padding=1)})

    def forward(self, logits: Tensor) -> Tensor:
        """Return filtered logits (B, K, h, w)."""
        for index in range(self.passes):
            filtered = self.depthwise["depthwise"](logits.flatten(0, 1)[:, None])[:, 0].view_as(logits)
            if self.option == 1:
                filtered = filtered + logits.amax(dim=1, keepdim=True)
            logits = filtered if index == self.passes - 1 else self.activation(filtered)
        return logits


def enlarge(x: Tensor) -> Tensor:
    """Return a map enlarged twofold, bilinearly with aligned corners."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
