"""Mask2Former's pixel decoder: deformable attention over the coarse maps, then a feature pyramid to the finest.

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation" (Mask2Former), CVPR 2022,
arXiv 2112.01527, section 3.2.1 and appendix; details from the specification of SCAN, section 5.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.errors import OvsegError
from ovseg.proposals.deformable_attention import DeformableAttention, DeformableEncoderLayer, Pyramid
from ovseg.proposals.pixel_decoder import conv, read_features
from ovseg.proposals.position_encoding import sine_position_encoding
from ovseg.proposals.transformer import Encoder, initialise

GROUPS = 32  # of the GroupNorm behind each input projection
FEEDFORWARD = 1024  # inner channels of the encoder's layers; not MASK_FORMER.DIM_FEEDFORWARD
POINTS = 4  # per head and level
LEVELS = 3  # maps that the predictor reads


class DeformableEncoder(nn.Module):
    """A stack of deformable encoder layers over the pixels of several maps together."""

    def __init__(self, levels: int, dim: int, layers: int, heads: int, dropout: float):
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(levels, dim))
        self.encoder = Encoder(
            layers,
            dim,
            pre_norm=False,
            layer_type=DeformableEncoderLayer,
            heads=heads,
            levels=levels,
            points=POINTS,
            feedforward=FEEDFORWARD,
            dropout=dropout,
        )
        initialise(self)
        nn.init.normal_(self.level_embed)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.initialise()

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(B, C, h_l, w_l) of each level -> the same."""
        sizes = [tuple(x.shape[-2:]) for x in maps]
        position = torch.cat(
            [
                sine_position_encoding(*x.shape[-2:], x.shape[1], x.device).flatten(2).transpose(1, 2) + embedding
                for x, embedding in zip(maps, self.level_embed, strict=True)
            ],
            1,
        )
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)  # (B, all pixels, C)
        tokens = self.encoder(tokens, position, Pyramid.of(sizes, tokens.device))
        parts = tokens.split([height * width for height, width in sizes], 1)
        return [part.transpose(1, 2).unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]


@SEM_SEG_HEADS_REGISTRY.register()
class MSDeformAttnPixelDecoder(nn.Module):
    """Deformable encoder over the coarse features, then lateral 1x1 + bilinear upsampling and 3x3 for the finer ones.

    Everything runs in float32 (or float64), under autocast too: half precision is too coarse for places.

    Args:
        input_shape: channels and stride of each input feature.
        encoded: names of the features that the encoder sees, the coarsest of all.
        conv_dim: channels of all inner maps.
        mask_dim: channels of the mask features.
        norm: Detectron2's name of the pyramid's normalisation ("GN"), "" for none.
        layers, heads, dropout: of the encoder.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        encoded: Sequence[str],
        conv_dim: int,
        mask_dim: int,
        norm: str,
        layers: int,
        heads: int,
        dropout: float,
    ):
        super().__init__()
        by_stride = sorted(input_shape, key=lambda name: input_shape[name].stride)
        self.finer = by_stride[: len(by_stride) - len(encoded)]  # finest first
        self.encoded = by_stride[: -len(encoded) - 1 : -1]  # coarsest first
        if sorted(self.encoded) != sorted(encoded) or not encoded:
            raise OvsegError(
                f"MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES is {list(encoded)}: it must be the "
                f"coarsest of MODEL.SEM_SEG_HEAD.IN_FEATURES ({', '.join(by_stride)})"
            )
        if len(by_stride) < LEVELS:
            raise OvsegError(f"MODEL.SEM_SEG_HEAD.IN_FEATURES must have {LEVELS} features or more for Mask2Former")
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(input_shape[name].channels, conv_dim, 1), nn.GroupNorm(GROUPS, conv_dim))
            for name in self.encoded
        )
        for projection, _ in self.input_proj:
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
        self.transformer = DeformableEncoder(len(encoded), conv_dim, layers, heads, dropout)
        self.mask_features = Conv2d(conv_dim, mask_dim, kernel_size=1)
        weight_init.c2_xavier_fill(self.mask_features)
        for i, name in enumerate(self.finer, 1):
            self.add_module(f"adapter_{i}", conv(input_shape[name].channels, conv_dim, 1, norm, relu=False))
            self.add_module(f"layer_{i}", conv(conv_dim, conv_dim, 3, norm, relu=True))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        head, former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
        return {
            "input_shape": read_features(head.IN_FEATURES, input_shape),
            "encoded": head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES,
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
            "layers": head.TRANSFORMER_ENC_LAYERS,
            "heads": former.NHEADS,
            "dropout": former.DROPOUT,
        }

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Decode.

        Args:
            features: the backbone's maps (B, C_i, H / s_i, W / s_i).

        Returns:
            mask features (B, mask_dim, H / 4, W / 4), and the three coarsest decoded maps (B, conv_dim, h, w), coarsest
            first.
        """
        with torch.autocast(self.mask_features.weight.device.type, enabled=False):
            dtype = self.mask_features.weight.dtype
            features = {name: feature.to(dtype) for name, feature in features.items()}
            projected = [p(features[name]) for p, name in zip(self.input_proj, self.encoded, strict=True)]
            maps = self.transformer(projected)
            for i in range(len(self.finer), 0, -1):
                lateral = getattr(self, f"adapter_{i}")(features[self.finer[i - 1]])
                size = lateral.shape[-2:]
                above = F.interpolate(maps[-1], size, mode="bilinear", align_corners=False)
                maps.append(getattr(self, f"layer_{i}")(lateral + above))
            return self.mask_features(maps[-1]), maps[:LEVELS]
