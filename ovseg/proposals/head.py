"""``OpenVocabMaskFormerHead``: backbone features -> mask proposals with embeddings."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ovseg.errors import OvsegError
from ovseg.proposals.predictor import OpenVocabPredictor

logger = logging.getLogger(__name__)


@SEM_SEG_HEADS_REGISTRY.register()
class OpenVocabMaskFormerHead(nn.Module):
    """Pixel decoder and transformer predictor.

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
    def from_config(cls, cfg, input_shape: Mapping[str, ShapeSpec]) -> dict:
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
            hidden_dim=former.HIDDEN_DIM,
            num_queries=former.NUM_OBJECT_QUERIES,
            embedding_dim=head.EMBEDDING_DIM,
            embed_hidden_dim=head.EMBED_HIDDEN_DIM,
            embed_layers=head.EMBED_LAYERS,
            mask_dim=head.MASK_DIM,
            enforce_input_proj=former.ENFORCE_INPUT_PROJ,
            encoder_layers=former.ENC_LAYERS,
            decoder_layers=former.DEC_LAYERS,
            heads=former.NHEADS,
            feedforward=former.DIM_FEEDFORWARD,
            dropout=former.DROPOUT,
            pre_norm=former.PRE_NORM,
        )
        return {"pixel_decoder": pixel_decoder, "predictor": predictor, "transformer_in_feature": source}

    def forward(self, features: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Propose masks: see :meth:`OpenVocabPredictor.forward` for the result."""
        mask_features, encoded = self.pixel_decoder(features)
        source = (
            encoded if self.transformer_in_feature == "transformer_encoder" else features[self.transformer_in_feature]
        )
        return self.predictor(source, mask_features)
