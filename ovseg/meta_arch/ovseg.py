"""``OVSeg``: MaskFormer's proposals, named by mask-adapted CLIP (Liang et al., CVPR 2023, arXiv 2210.04150).

Figure 2 of the paper::

    image -> MaskFormer --+- masks -> crops -> CLIP with mask prompts -> classes --+
                          +- class embeddings . CLIP's text embeddings -> classes -+-> geometric mean -> segmentation
    words -> "a photo of a {word}" -> CLIP's text tower
"""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from ovseg.clip.adapter import ClipAdapter
from ovseg.meta_arch.pixel_scores import RENDERINGS
from ovseg.meta_arch.propose_and_name import ProposeAndName, check_model, common
from ovseg.naming import GeometricMean, MaskedCrops, QueryEmbedding
from ovseg.proposals.network import MaskNetwork


@META_ARCH_REGISTRY.register()
def OVSeg(cfg: CfgNode, rendering: str | None = None) -> ProposeAndName:
    """Return the model; :class:`ProposeAndName` documents its inputs and outputs.

    With ``CLIP_ENSEMBLE`` False, masks are scored by the proposer's class embeddings alone.
    """
    check_model(cfg)
    clip_adapter = ClipAdapter(cfg)
    own, crops = QueryEmbedding.from_config(cfg, clip_adapter), MaskedCrops.from_config(cfg, clip_adapter)
    return ProposeAndName(
        proposer=MaskNetwork(cfg),
        namers=[own, crops] if cfg.MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE else [own],
        mask_namer=crops,
        fuse=GeometricMean.from_config(cfg),
        render=RENDERINGS[rendering or cfg.MODEL.MASK_FORMER.TEST.PAINTING].from_config(cfg),
        **common(cfg),
    )


@META_ARCH_REGISTRY.register()
def OVSegDEMO(cfg: CfgNode) -> ProposeAndName:
    """Return :func:`OVSeg` with the rendering of the published demo."""
    return OVSeg(cfg, rendering="class_winner")
