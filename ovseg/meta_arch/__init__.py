"""Segmentation systems, one file each; importing this package registers them with Detectron2."""

from ovseg.meta_arch.dense_clip import DenseCLIP
from ovseg.meta_arch.lseg import LSeg
from ovseg.meta_arch.lseg_plus import LSegPlus
from ovseg.meta_arch.mask2former import Mask2Former
from ovseg.meta_arch.openseg import OpenSeg
from ovseg.meta_arch.ovseg import OVSeg, OVSegDEMO
from ovseg.meta_arch.ovsegmentor import OVSegmentor
from ovseg.meta_arch.propose_and_name import ProposeAndName
from ovseg.meta_arch.scan import SCAN, SCANDEMO
from ovseg.meta_arch.simbaseline import SimBaseline, ZeroShotMaskFormer
from ovseg.meta_arch.simbaseline_per_pixel import SimBaselinePerPixel, ZeroShotPerPixelModel
from ovseg.meta_arch.zegformer import MaskFormer, ZegFormer

__all__ = [
    "SCAN",
    "SCANDEMO",
    "DenseCLIP",
    "LSeg",
    "LSegPlus",
    "Mask2Former",
    "MaskFormer",
    "OVSeg",
    "OVSegDEMO",
    "OVSegmentor",
    "OpenSeg",
    "ProposeAndName",
    "SimBaseline",
    "SimBaselinePerPixel",
    "ZegFormer",
    "ZeroShotMaskFormer",
    "ZeroShotPerPixelModel",
]
