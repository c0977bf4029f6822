"""From pixels to mask proposals: backbones, pixel decoders, transformers, matching and losses.

Two ways to propose, side by side: MaskFormer (``pixel_decoder``, ``predictor``) and Mask2Former
(``multi_scale_pixel_decoder``, ``multi_scale_predictor``); they share everything else. Importing this package registers
the backbones and heads with Detectron2.
"""

from ovseg.proposals.head import OpenVocabMaskFormerHead, OpenVocaMask2FormerHead
from ovseg.proposals.multi_scale_pixel_decoder import MSDeformAttnPixelDecoder
from ovseg.proposals.pixel_decoder import BasePixelDecoder, TransformerEncoderPixelDecoder
from ovseg.proposals.swin import D2SwinTransformer

__all__ = [
    "BasePixelDecoder",
    "D2SwinTransformer",
    "MSDeformAttnPixelDecoder",
    "OpenVocaMask2FormerHead",
    "OpenVocabMaskFormerHead",
    "TransformerEncoderPixelDecoder",
]
