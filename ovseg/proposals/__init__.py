"""Proposers of masks: backbones, pixel decoders, transformers, matching and losses.

Two networks propose masks, MaskFormer and Mask2Former; they share the backbones, matching and losses. Importing this
package registers the backbones and heads with Detectron2.
"""

from ovseg.proposals.boundary_tree import BoundaryTree
from ovseg.proposals.given_masks import GroundTruth, MaskFiles
from ovseg.proposals.group_tokens import GroupTokens
from ovseg.proposals.mask2former import MSDeformAttnPixelDecoder, OpenVocaMask2FormerHead
from ovseg.proposals.maskformer import BasePixelDecoder, OpenVocabMaskFormerHead, TransformerEncoderPixelDecoder
from ovseg.proposals.network import Mask2Former, MaskFormer, MaskNetwork
from ovseg.proposals.region_queries import RegionQueries
from ovseg.proposals.sam import SAM
from ovseg.proposals.swin import D2SwinTransformer
from ovseg.proposals.zegformer import ZegFormerHead

__all__ = [
    "SAM",
    "BasePixelDecoder",
    "BoundaryTree",
    "D2SwinTransformer",
    "GroundTruth",
    "GroupTokens",
    "MSDeformAttnPixelDecoder",
    "Mask2Former",
    "MaskFiles",
    "MaskFormer",
    "MaskNetwork",
    "OpenVocaMask2FormerHead",
    "OpenVocabMaskFormerHead",
    "RegionQueries",
    "TransformerEncoderPixelDecoder",
    "ZegFormerHead",
]
