"""Heads: backbone features -> mask proposals with embeddings, by MaskFormer or by Mask2Former."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ovseg.errors import OvsegError
from ovseg.proposals.multi_scale_pixel_decoder import MSDeformAttnPixelDecoder
from ovseg.proposals.multi_scale_predictor import MultiScalePredictor
from ovseg.proposals.predictor import OpenVocabPredictor

MULTI_SCALE = "multi_scale_pixel_decoder"


@SEM_SEG_HEADS_REGISTRY.register()
class OpenVocabMaskFormerHead(nn.Module):
    """Pixel decoder and a transformer predictor over one feature map.

    Args:
        pixel_decoder: see :mod:`ovseg.proposals.pixel_decoder`.
        predictor: see :class:`OpenVocabPredictor`.
        transformer_in_feature: the backbone's feature that the transformer reads, or "transformer_encoder"
            for the pixel decoder's encoded map.
    """

    @configurable
    def __init__(self, *, pixel_decoder: nn.Module, predictor: OpenVocabPredictor, transformer_in_feature: str):
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
        predictor = OpenVocabPredictor(
            in_channels=in_channels,
            encoder_layers=former.ENC_LAYERS,
            dropout=former.DROPOUT,
            **_predictor_arguments(cfg),
        )
        return {"pixel_decoder": pixel_decoder, "predictor": predictor, "transformer_in_feature": source}

    def forward(self, features: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Propose masks: see :meth:`OpenVocabPredictor.forward` for the result."""
        mask_features, maps = self.pixel_decoder(features)
        encoded = self.transformer_in_feature == "transformer_encoder"
        return self.predictor(maps[0] if encoded else features[self.transformer_in_feature], mask_features)


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
            "predictor": MultiScalePredictor(in_channels=head.CONVS_DIM, **_predictor_arguments(cfg)),
        }

    def forward(self, features: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Propose masks: see :meth:`MultiScalePredictor.forward` for the result."""
        mask_features, maps = self.pixel_decoder(features)
        return self.predictor(maps, mask_features)


def _predictor_arguments(cfg: CfgNode) -> dict[str, Any]:
    """What both predictors are told."""
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
