"""Mask2Former: deformable attention over several scales, and queries that attend inside of their masks.

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation" (Mask2Former), CVPR 2022,
arXiv 2112.01527, section 3.2 and appendix; details, the open class head and the number of layers from the
specification of SCAN, section 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
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
from ovseg.proposals.maskformer import MLP, conv, input_projection, mask_logits, predictor_arguments, read_features
from ovseg.proposals.transformer import (
    CrossAttention,
    Encoder,
    FeedForward,
    SelfAttention,
    initialise,
    sine_position_encoding,
)

GROUPS = 32  # of the GroupNorm after each input projection
FEEDFORWARD = 1024  # inner channels of the encoder's layers; not MASK_FORMER.DIM_FEEDFORWARD
POINTS = 4  # per head and level
LEVELS = 3  # maps that the predictor reads
MULTI_SCALE = "multi_scale_pixel_decoder"

resize = partial(F.interpolate, mode="bilinear", align_corners=False)


@SEM_SEG_HEADS_REGISTRY.register()
class OpenVocaMask2FormerHead(nn.Module):
    """Deformable pixel decoder and a masked transformer predictor over its three coarsest maps.

    Args:
        pixel_decoder: see :class:`MSDeformAttnPixelDecoder`.
        predictor: see :class:`MultiScalePredictor`.
    """

    @configurable
    def __init__(self, *, pixel_decoder: MSDeformAttnPixelDecoder, predictor: MultiScalePredictor):
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        head, former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
        for key, value, wanted in (
            ("SEM_SEG_HEAD.PIXEL_DECODER_NAME", head.PIXEL_DECODER_NAME, MSDeformAttnPixelDecoder.__name__),
            ("MASK_FORMER.TRANSFORMER_IN_FEATURE", former.TRANSFORMER_IN_FEATURE, MULTI_SCALE),
            # the encoder is the pixel decoder's: SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS
            ("MASK_FORMER.ENC_LAYERS", former.ENC_LAYERS, 0),
        ):
            if value != wanted:
                raise OvsegError(f"MODEL.{key} is {value!r}, but OpenVocaMask2FormerHead needs {wanted!r}: set the key")
        return {
            "pixel_decoder": MSDeformAttnPixelDecoder(cfg, input_shape),
            "predictor": MultiScalePredictor(in_channels=head.CONVS_DIM, **predictor_arguments(cfg)),
        }

    def forward(self, features: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Propose masks: see :meth:`MultiScalePredictor.forward` for the result."""
        mask_features, maps = self.pixel_decoder(features)
        return self.predictor(maps, mask_features)


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
        """Return the encoded maps, (B, C, h_l, w_l) of each level, of the same sizes."""
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
    """Deformable encoder over the coarse features, then a feature pyramid (1x1, bilinear, 3x3) for the finer ones.

    Runs in float32 (or float64), also under autocast: half precision is too coarse for coordinates.

    Args:
        input_shape: channels and stride of each input feature.
        encoded: names of the features that the encoder reads, the coarsest ones.
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
        """Return mask features and the maps that the predictor reads.

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


class MultiScalePredictor(nn.Module):
    """Transformer decoder whose layers attend to one map each, inside the masks of the previous prediction.

    Args:
        in_channels: channels of the maps.
        hidden_dim: width C of the transformer.
        num_queries: Q.
        embedding_dim, embed_hidden_dim, embed_layers: of the class embedding's MLP.
        mask_dim: channels of the mask features.
        enforce_input_proj: project the maps even where their channels already match.
        decoder_layers: number of layers; the published Mask2Former has one less than its configuration file states.
        heads, feedforward, pre_norm: of every layer. There is no dropout.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        hidden_dim: int,
        num_queries: int,
        embedding_dim: int,
        embed_hidden_dim: int,
        embed_layers: int,
        mask_dim: int,
        enforce_input_proj: bool,
        decoder_layers: int,
        heads: int,
        feedforward: int,
        pre_norm: bool,
    ):
        super().__init__()
        layer = {"dropout": 0.0, "pre_norm": pre_norm}
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttention(hidden_dim, heads, **layer) for _ in range(decoder_layers)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttention(hidden_dim, heads, **layer) for _ in range(decoder_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForward(hidden_dim, feedforward, **layer) for _ in range(decoder_layers)
        )
        initialise(self)
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(LEVELS, hidden_dim)
        self.input_proj = nn.ModuleList(
            input_projection(in_channels, hidden_dim, enforce_input_proj) for _ in range(LEVELS)
        )
        self.class_embed = MLP(hidden_dim, embed_hidden_dim, embedding_dim, embed_layers)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)

    def forward(self, maps: Sequence[Tensor], mask_features: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Predict from the queries alone and after every layer, the last one last; in evaluation mode only the last.

        Args:
            maps: three of (B, in_channels, h_l, w_l), coarsest first.
            mask_features: (B, mask_dim, H / 4, W / 4).

        Returns:
            Per prediction the class embeddings (B, Q, embedding_dim), not normalised, and the mask logits
            (B, Q, H / 4, W / 4).
        """
        projected = [projection(x) for projection, x in zip(self.input_proj, maps, strict=True)]
        positions = [
            sine_position_encoding(*x.shape[-2:], x.shape[1], x.device).flatten(2).transpose(1, 2) for x in projected
        ]
        memories = [
            x.flatten(2).transpose(1, 2) + embedding
            for x, embedding in zip(projected, self.level_embed.weight, strict=True)
        ]  # (B, h*w, C) each
        # resizing is linear: masks of reduced features equal reduced masks and cost less; in evaluation the full-size
        # masks of these layers are not needed
        reduced = [resize(mask_features, x.shape[-2:]) for x in maps] if not self.training else None

        x = self.query_feat.weight[None].expand(len(mask_features), -1, -1)
        query_position = self.query_embed.weight
        predictions = []
        blocks = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for i, (cross_attention, self_attention, feedforward) in enumerate(blocks):
            level = i % LEVELS
            if reduced is None:
                predictions.append(self._predict(x, mask_features))
                masks = resize(predictions[-1][1].detach(), maps[level].shape[-2:])
            else:
                masks = mask_logits(self.mask_embed(self.decoder_norm(x)), reduced[level])
            x = cross_attention(x, memories[level], positions[level], query_position, inside(masks))
            x = feedforward(self_attention(x, query_position))
        return [*predictions, self._predict(x, mask_features)]

    def _predict(self, x: Tensor, mask_features: Tensor) -> tuple[Tensor, Tensor]:
        x = self.decoder_norm(x)
        return self.class_embed(x), mask_logits(self.mask_embed(x), mask_features)


def inside(logits: Tensor) -> Tensor:
    """Return where masked attention is allowed, everywhere for empty masks; logits (B, Q, h, w) -> bool (B, Q, h*w)."""
    allowed = logits.flatten(2) >= 0
    return allowed | ~allowed.any(-1, keepdim=True)
