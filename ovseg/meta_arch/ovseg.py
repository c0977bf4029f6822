"""``OVSeg``: MaskFormer's proposals, named by mask-adapted CLIP (Liang et al., CVPR 2023, arXiv 2210.04150)."""

from __future__ import annotations

from detectron2.modeling import META_ARCH_REGISTRY

from ovseg.meta_arch.segmenter_base import ProposalNamer


@META_ARCH_REGISTRY.register()
class OVSeg(ProposalNamer):
    """MaskFormer proposes; a CLIP adapted to masked crops names; the geometric mean of both decides.

    See :class:`ProposalNamer` for inputs, outputs and the steps, which are OVSeg's as they are there.
    """


@META_ARCH_REGISTRY.register()
def OVSegDEMO(cfg) -> OVSeg:
    """The published name of :class:`OVSeg` with the demo's way of painting."""
    return OVSeg(cfg, painting="class_winner")
