"""``LSegPlus``: the per-pixel baseline of OpenSeg (Ghiasi et al., ECCV 2022, arXiv 2112.12143, section 4.3).

LSeg with the backbone and the trunk of OpenSeg, trained on COCO's panoptic classes::

    image -> backbone -> FPN -> levels added at stride 4 -> four convolutions -> pixel embeddings --+-> cosine / tau
    words -> CLIP's text tower (frozen) -> text embeddings -----------------------------------------+

With ``MODEL.CLIP_ADAPTER.TEXT_ENCODER: table``, ``TABLE_COSINE: False`` and ``MODEL.SEEN_BIAS`` it is SPNet (Xian et
al., CVPR 2019) on this trunk: dot products with word vectors, calibrated for words that are not of the training.
"""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from ovseg.clip.adapter import ClipAdapter
from ovseg.meta_arch.per_pixel import PerPixel
from ovseg.meta_arch.propose_and_name import check_model, request_arguments
from ovseg.naming.fused_pixels import FusedPixels
from ovseg.proposals.fpn import FusedTrunk, PixelBranch


@META_ARCH_REGISTRY.register()
def LSegPlus(cfg: CfgNode) -> PerPixel:
    """Return the model; :class:`PerPixel` documents its inputs and outputs.

    Raises:
        OvsegError: see :meth:`ovseg.proposals.fpn.FusedTrunk.from_config`.
    """
    check_model(cfg, with_head=False)
    plus = cfg.MODEL.LSEG_PLUS
    trunk = FusedTrunk.from_config(cfg, plus.HEAD_DIM, plus.NORM)
    clip_adapter = ClipAdapter(cfg, mask_prompt_depth=None, image_tower=False)
    clip_adapter.non_object_embedding.requires_grad_(False)  # there is no such class
    scorer = FusedPixels(
        trunk=trunk,
        branch=PixelBranch(plus.HEAD_DIM, clip_adapter.embed_dim, plus.NORM),
        clip_adapter=clip_adapter,
        tau=plus.TAU_INIT,
        tau_min=plus.TAU_MIN,
        learn_tau=plus.TAU_LEARNED and clip_adapter.cosine,
        ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
    )
    chunk = cfg.MODEL.MASK_FORMER.TEST.CLASS_CHUNK_SIZE
    return PerPixel(scorer=scorer, class_chunk_size=chunk, **request_arguments(cfg))
