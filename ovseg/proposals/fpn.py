"""Trunk of OpenSeg and LSeg+: a feature pyramid fused to one map of stride 4, and the branches that read it.

OpenSeg: Ghiasi et al., ECCV 2022, arXiv 2112.12143, section 3.1::

    res2 -> lateral (+) -> output -> P2 ------------+
    res3 -> lateral (+) -> output -> P3 -> enlarge -+
    res4 -> lateral (+) -> output -> P4 -> enlarge -+-> sum -> F (B, D, h, w) -> branch -> pixel embeddings
    res5 -> lateral --'--> output -> P5 -> enlarge -+
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, get_norm
from detectron2.modeling import Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.errors import OvsegError
from ovseg.proposals import timm_backbone  # noqa: F401 (registers it)
from ovseg.proposals.network import PixelNormalizer, checked_backbone
from ovseg.proposals.views import Part, Views

GROUPS = 32  # of Detectron2's GroupNorm


class FusedPyramid(nn.Module):
    """Feature pyramid (Lin et al., arXiv 1612.03144) whose levels are added at the size of the finest one.

    The levels are those of Detectron2's ``FPN``, but a backbone may keep its stride (dilation): a coarser level is
    enlarged to the size of the finer one, by nearest neighbours.

    Args:
        in_channels: of the backbone's features by name, from the finest to the coarsest.
        out_channels: D, of each level and of the result.
        norm: Detectron2's name of a normalisation; "" for none.
    """

    def __init__(self, in_channels: Mapping[str, int], out_channels: int, norm: str = "GN"):
        super().__init__()
        check_norm(norm, out_channels)
        self.names = tuple(in_channels)
        self.lateral, self.output = nn.ModuleDict(), nn.ModuleDict()
        for name, channels in in_channels.items():
            self.lateral[name] = convolution(channels, out_channels, 1, norm)
            self.output[name] = convolution(out_channels, out_channels, 3, norm)

    def levels(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the levels (B, D, h, w), from the finest (P2) to the coarsest."""
        found: list[Tensor] = []
        top = None
        for name in reversed(self.names):
            lateral = self.lateral[name](features[name])
            top = lateral if top is None else lateral + F.interpolate(top, lateral.shape[-2:], mode="nearest")
            found.insert(0, self.output[name](top))
        return found

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of the levels (B, D, h, w) at the size of the finest; coarser ones are enlarged bilinearly."""
        fused, *coarser = self.levels(features)
        for level in coarser:
            fused = fused + F.interpolate(level, fused.shape[-2:], mode="bilinear", align_corners=False)
        return fused


class FusedTrunk(Part):
    """Backbone and fused pyramid, which several parts of a model read.

    Args:
        backbone, pyramid: the network.
        pixel_mean, pixel_std: of the backbone's input, RGB, 0 .. 255.
        size_divisibility: images are padded at right and bottom, by zeros after the normalisation, to sides that are
            multiples of this.
    """

    def __init__(
        self,
        backbone: Backbone,
        pyramid: FusedPyramid,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int = 32,
    ):
        super().__init__()
        self.backbone, self.pyramid = backbone, pyramid
        self.normalize = PixelNormalizer(pixel_mean, pixel_std)
        self.size_divisibility = size_divisibility

    @classmethod
    def from_config(cls, cfg: CfgNode, dim: int, norm: str) -> FusedTrunk:
        """Build the backbone of a configuration and a pyramid of ``dim`` channels.

        Raises:
            OvsegError: the finest feature of ``MODEL.SEM_SEG_HEAD.IN_FEATURES`` has another stride than 4, or ``norm``
                does not fit ``dim``.
        """
        backbone = checked_backbone(cfg)
        shapes = backbone.output_shape()
        features = sorted(cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES, key=lambda name: (shapes[name].stride, name))
        if shapes[features[0]].stride != 4:
            raise OvsegError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES begins with {features[0]} of stride {shapes[features[0]].stride}: "
                "give a feature of stride 4, too, such as res2"
            )
        pyramid = FusedPyramid({name: shapes[name].channels for name in features}, dim, norm)
        divisibility = max(backbone.size_divisibility, *(shape.stride for shape in shapes.values()))
        return cls(backbone, pyramid, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, divisibility)

    def forward(self, views: Views) -> Tensor:
        """Return the fused map (B, D, h, w) at stride 4 of the padded batch; computed once for all parts."""
        return views.once(("fused", id(self)), lambda: self.pyramid(self.backbone(self._batch(views))))

    def valid(self, views: Views) -> Tensor:
        """Return which places of the map have their centre in the image, at least one; bool (B, h, w)."""
        height, width = self.padded_size(views)
        valid = torch.zeros(len(views.images), height // 4, width // 4, dtype=torch.bool, device=views.images[0].device)
        for inside, image in zip(valid, views.images, strict=True):
            rows, columns = (max(1, (side + 2) // 4) for side in image.shape[1:])
            inside[:rows, :columns] = True
        return valid

    def padded_size(self, views: Views) -> tuple[int, int]:
        """Return height and width of the padded batch."""
        return Views(views.requests, views.images, self.size_divisibility).canvas

    def _batch(self, views: Views) -> Tensor:
        return ImageList.from_tensors([self.normalize(image) for image in views.images], self.size_divisibility).tensor


class PixelBranch(nn.Sequential):
    """Branch from the fused map to pixel embeddings: one layer over the channels, then three 3 x 3 convolutions.

    The last convolution is linear: a trailing ReLU would give all embeddings the same sign. If the embeddings have
    another dimension than the map, a linear layer over the channels follows.

    Args:
        channels: D of the fused map.
        out_channels: dimension of the embeddings.
        norm: Detectron2's name of a normalisation, followed by ReLU, of all layers but the last; "" for none.
    """

    def __init__(self, channels: int, out_channels: int, norm: str = "GN"):
        check_norm(norm, channels)
        layers = [convolution(channels, channels, size, norm, F.relu_) for size in (1, 3, 3)]
        layers.append(convolution(channels, channels, 3, ""))
        if out_channels != channels:
            layers.append(convolution(channels, out_channels, 1, ""))
        super().__init__(*layers)


def convolution(in_channels: int, out_channels: int, size: int, norm: str, activation=None) -> Conv2d:
    """Return a convolution that keeps the size of a map, with a normalisation in place of the bias, if any."""
    made = Conv2d(
        in_channels,
        out_channels,
        size,
        padding=size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=activation,
    )
    weight_init.c2_xavier_fill(made)
    return made


def check_norm(norm: str, channels: int) -> None:
    """Raise OvsegError if the normalisation cannot divide the channels into groups of several."""
    if norm == "GN" and (channels % GROUPS or channels == GROUPS):
        raise OvsegError(
            f"{channels} channels cannot be normalised by GN: give {2 * GROUPS}, {3 * GROUPS} or another multiple of "
            f"{GROUPS}, or another norm"
        )
