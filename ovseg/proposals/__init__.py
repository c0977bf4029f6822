"""From pixels to mask proposals: backbones, pixel decoders, transformers, matching and losses.

Importing this package registers the backbones and heads with Detectron2.
"""

from ovseg.proposals.head import OpenVocabMaskFormerHead
from ovseg.proposals.pixel_decoder import BasePixelDecoder, TransformerEncoderPixelDecoder
from ovseg.proposals.swin import D2SwinTransformer

__all__ = ["BasePixelDecoder", "D2SwinTransformer", "OpenVocabMaskFormerHead", "TransformerEncoderPixelDecoder"]
