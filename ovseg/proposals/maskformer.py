"""Head of MaskFormer: masks and their class embeddings from the features of a backbone.

Cheng et al., "Per-Pixel Classification is Not All You Need for Semantic Segmentation" (MaskFormer), NeurIPS 2021,
arXiv 2107.06278, section 3.3 and appendix; details from the specification, section 6.3. The class head is open: an
embedding in CLIP's joint space (OVSeg, arXiv 2210.04150, section 3.1).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.errors import OvsegError, shown
from ovseg.proposals.transformer import Encoder, Transformer, initialise, sine_position_encoding


@SEM_SEG_HEADS_REGISTRY.register()
class OpenVocabMaskFormerHead(nn.Module):
    """MaskFormer's head: pixel decoder and a transformer predictor over one feature map.

    Args:
        pixel_decoder: :class:`BasePixelDecoder` or :class:`TransformerEncoderPixelDecoder`.
        predictor: see :class:`MaskPredictor`.
        transformer_in_feature: the backbone's feature that the transformer reads, or "transformer_encoder"
            for the pixel decoder's encoded map.
    """

    @configurable
    def __init__(self, *, pixel_decoder: nn.Module, predictor: MaskPredictor, transformer_in_feature: str):
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.transformer_in_feature = transformer_in_feature

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        head, former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
        pixel_decoder = SEM_SEG_HEADS_REGISTRY.get(head.PIXEL_DECODER_NAME)(cfg, input_shape)
        source = former.TRANSFORMER_IN_FEATURE
        if source == "transformer_encoder":
            if head.PIXEL_DECODER_NAME == "BasePixelDecoder":
                raise OvsegError(
                    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = transformer_encoder needs "
                    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = TransformerEncoderPixelDecoder"
                )
            in_channels = head.CONVS_DIM
        elif source in input_shape:
            in_channels = input_shape[source].channels
        else:
            raise OvsegError(
                f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = {source!r} is not a feature of the backbone: "
                f"choose one of {', '.join(input_shape)}, or transformer_encoder"
            )
        predictor = cls.build_predictor(
            cfg, in_channels=in_channels, encoder_layers=former.ENC_LAYERS, dropout=former.DROPOUT
        )
        return {"pixel_decoder": pixel_decoder, "predictor": predictor, "transformer_in_feature": source}

    @classmethod
    def build_predictor(cls, cfg: CfgNode, **arguments: Any) -> MaskPredictor:
        """Return the predictor; ``arguments`` of it do not follow from the keys of :func:`predictor_arguments`."""
        return OpenVocabPredictor(**arguments, **predictor_arguments(cfg))

    def forward(self, features: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Propose masks: see :meth:`MaskPredictor.forward` for the result."""
        mask_features, maps = self.pixel_decoder(features)
        encoded = self.transformer_in_feature == "transformer_encoder"
        return self.predictor(maps[0] if encoded else features[self.transformer_in_feature], mask_features)


@SEM_SEG_HEADS_REGISTRY.register()
class ZeroShotMaskFormerHead(OpenVocabMaskFormerHead):
    """:class:`OpenVocabMaskFormerHead` under its name in the configurations of SimBaseline."""


@SEM_SEG_HEADS_REGISTRY.register()
class BasePixelDecoder(nn.Module):
    """Feature pyramid, from the coarsest map to the finest: lateral 1x1 + nearest upsampling, then 3x3.

    Args:
        input_shape: channels and stride of each input feature.
        conv_dim: channels of all inner maps.
        mask_dim: channels of the result.
        norm: Detectron2's name of the normalisation ("GN"), "" for none.
    """

    @configurable
    def __init__(self, input_shape: Mapping[str, ShapeSpec], *, conv_dim: int, mask_dim: int, norm: str):
        super().__init__()
        # finest first, as the numbers in the modules' names count: adapter_1, layer_1 ... layer_4
        self.in_features = sorted(input_shape, key=lambda name: input_shape[name].stride)
        coarsest = len(self.in_features)
        for i, name in enumerate(self.in_features, 1):
            channels = input_shape[name].channels
            if i < coarsest:
                self.add_module(f"adapter_{i}", conv(channels, conv_dim, 1, norm, relu=False))
                channels = conv_dim
            self.add_module(f"layer_{i}", self._output_layer(i, coarsest, channels, conv_dim, norm))
        self.mask_features = Conv2d(conv_dim, mask_dim, kernel_size=3, padding=1)
        weight_init.c2_xavier_fill(self.mask_features)

    @staticmethod
    def _output_layer(i: int, coarsest: int, channels: int, conv_dim: int, norm: str) -> Conv2d:
        return conv(channels, conv_dim, 3, norm, relu=True)

    @classmethod
    def from_config(cls, cfg, input_shape: Mapping[str, ShapeSpec]) -> dict:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": read_features(head.IN_FEATURES, input_shape),
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
        }

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return mask features and the maps that the predictor reads.

        Args:
            features: the backbone's maps (B, C_i, H / s_i, W / s_i).

        Returns:
            mask features (B, mask_dim, H / 4, W / 4), and a list with the transformer encoder's map of the coarsest
            feature (B, conv_dim, h, w), empty without such an encoder.
        """
        *finer, coarsest = self.in_features
        encoded = self.encode(features[coarsest])
        y = getattr(self, f"layer_{len(self.in_features)}")(features[coarsest] if encoded is None else encoded)
        for i in range(len(finer), 0, -1):
            lateral = getattr(self, f"adapter_{i}")(features[finer[i - 1]])
            y = getattr(self, f"layer_{i}")(lateral + F.interpolate(y, lateral.shape[-2:], mode="nearest"))
        return self.mask_features(y), [] if encoded is None else [encoded]

    def encode(self, coarsest: Tensor) -> Tensor | None:
        """Return the coarsest map (B, C, h, w) encoded; None without an encoder."""
        return None


@SEM_SEG_HEADS_REGISTRY.register()
class TransformerEncoderPixelDecoder(BasePixelDecoder):
    """:class:`BasePixelDecoder` with a transformer encoder on the coarsest feature.

    Args:
        encoder_layers, heads, feedforward, dropout, pre_norm: of the encoder.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        encoder_layers: int,
        heads: int,
        feedforward: int,
        dropout: float,
        pre_norm: bool,
        conv_dim: int,
        mask_dim: int,
        norm: str,
    ):
        super().__init__(input_shape, conv_dim=conv_dim, mask_dim=mask_dim, norm=norm)
        self.input_proj = Conv2d(input_shape[self.in_features[-1]].channels, conv_dim, kernel_size=1)
        weight_init.c2_xavier_fill(self.input_proj)
        self.transformer = nn.Module()  # published checkpoints have the names "transformer.encoder"
        self.transformer.encoder = Encoder(
            encoder_layers, conv_dim, pre_norm, heads=heads, feedforward=feedforward, dropout=dropout
        )
        initialise(self.transformer)

    @staticmethod
    def _output_layer(i: int, coarsest: int, channels: int, conv_dim: int, norm: str) -> Conv2d:
        return conv(conv_dim if i == coarsest else channels, conv_dim, 3, norm, relu=True)

    @classmethod
    def from_config(cls, cfg, input_shape: Mapping[str, ShapeSpec]) -> dict:
        former = cfg.MODEL.MASK_FORMER
        return super().from_config(cfg, input_shape) | {
            "encoder_layers": cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS,
            "heads": former.NHEADS,
            "feedforward": former.DIM_FEEDFORWARD,
            "dropout": former.DROPOUT,
            "pre_norm": former.PRE_NORM,
        }

    def encode(self, coarsest: Tensor) -> Tensor:
        x = self.input_proj(coarsest)
        position = sine_position_encoding(*x.shape[-2:], x.shape[1], x.device)
        y = self.transformer.encoder(x.flatten(2).transpose(1, 2), position.flatten(2).transpose(1, 2))
        return y.transpose(1, 2).reshape(x.shape)


class MaskPredictor(nn.Module):
    """Transformer over one feature map, whose queries predict a mask and, in child classes, a class embedding.

    Args:
        in_channels: channels of the feature map.
        hidden_dim: width C of the transformer.
        num_queries: Q.
        mask_dim: channels of the mask features.
        enforce_input_proj: project the input even where its channels already match.
        transformer: the remaining arguments of :class:`Transformer`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        hidden_dim: int,
        num_queries: int,
        mask_dim: int,
        enforce_input_proj: bool,
        **transformer,
    ):
        super().__init__()
        self.transformer = Transformer(dim=hidden_dim, **transformer)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.input_proj = input_projection(in_channels, hidden_dim, enforce_input_proj)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)

    def forward(self, features: Tensor, mask_features: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Predict after every decoder layer, the last one last; in evaluation mode after the last one only.

        Args:
            features: (B, in_channels, h, w).
            mask_features: (B, mask_dim, H / 4, W / 4).

        Returns:
            Per layer the class embeddings (B, Q, embedding_dim), not normalised, and the mask logits
            (B, Q, H / 4, W / 4).
        """
        x = self.input_proj(features)
        position = sine_position_encoding(*x.shape[-2:], x.shape[1], x.device)
        outputs = self.transformer(x, position, self.query_embed.weight)
        if not self.training:
            outputs = outputs[-1:]
        return [(self.embed(x), mask_logits(self.mask_embed(x), mask_features)) for x in outputs]

    def embed(self, x: Tensor) -> Tensor:
        """Return class embeddings (B, Q, embedding_dim) of the decoder's outputs (B, Q, C)."""
        raise NotImplementedError


class OpenVocabPredictor(MaskPredictor):
    """:class:`MaskPredictor` with an embedding in CLIP's joint space by an MLP.

    Args:
        embedding_dim, embed_hidden_dim, embed_layers: of the MLP.
        predictor: the arguments of :class:`MaskPredictor`.
    """

    def __init__(self, *, embedding_dim: int, embed_hidden_dim: int, embed_layers: int, **predictor):
        super().__init__(**predictor)
        self.class_embed = MLP(predictor["hidden_dim"], embed_hidden_dim, embedding_dim, embed_layers)

    def embed(self, x: Tensor) -> Tensor:
        return self.class_embed(x)


class MLP(nn.Module):
    """Linear layers with ReLU between them; (..., in_dim) -> (..., out_dim)."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, layers: int):
        super().__init__()
        widths = [in_dim] + [hidden_dim] * (layers - 1) + [out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def input_projection(in_channels: int, hidden_dim: int, enforce: bool) -> nn.Module:
    """Return a 1x1 convolution to the transformer's channels; the identity if they already match, unless enforced."""
    if in_channels == hidden_dim and not enforce:
        return nn.Identity()
    projection = nn.Conv2d(in_channels, hidden_dim, kernel_size=1)
    weight_init.c2_xavier_fill(projection)
    return projection


def mask_logits(mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
    """Return mask logits; (B, Q, mask_dim), (B, mask_dim, h, w) -> (B, Q, h, w)."""
    return torch.einsum("bqc,bchw->bqhw", mask_embeddings, mask_features)


def conv(in_channels: int, out_channels: int, kernel: int, norm: str, relu: bool) -> Conv2d:
    """Return a convolution that keeps the size, with a normalisation, or a bias if ``norm`` is "".

    Raises:
        OvsegError: Detectron2 has no such normalisation.
    """
    try:
        normalisation = get_norm(norm, out_channels)
    except KeyError as error:
        raise OvsegError(
            f"MODEL.SEM_SEG_HEAD.NORM is {shown(norm)}: give a normalisation of Detectron2, such as GN, or '' for none"
        ) from error
    layer = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel,
        padding=kernel // 2,
        bias=norm == "",
        norm=normalisation,
        activation=F.relu if relu else None,
    )
    weight_init.c2_xavier_fill(layer)
    return layer


def read_features(names: Sequence[str], offered: Mapping[str, ShapeSpec]) -> dict[str, ShapeSpec]:
    """Return the features of the backbone that a decoder reads.

    Raises:
        OvsegError: there is none, or the backbone lacks one.
    """
    if not names or set(names) - set(offered):
        raise OvsegError(f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {shown(names)}: choose among {', '.join(offered)}")
    return {name: offered[name] for name in names}


def predictor_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Return the arguments that the predictors of MaskFormer and Mask2Former share."""
    head, former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    return {
        "hidden_dim": former.HIDDEN_DIM,
        "num_queries": former.NUM_OBJECT_QUERIES,
        "embedding_dim": head.EMBEDDING_DIM,
        "embed_hidden_dim": head.EMBED_HIDDEN_DIM,
        "embed_layers": head.EMBED_LAYERS,
        "mask_dim": head.MASK_DIM,
        "enforce_input_proj": former.ENFORCE_INPUT_PROJ,
        "decoder_layers": former.DEC_LAYERS,
        "heads": former.NHEADS,
        "feedforward": former.DIM_FEEDFORWARD,
        "pre_norm": former.PRE_NORM,
    }
