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
from ovseg.errors import OvsegError
from ovseg.meta_arch.per_pixel import PerPixel
from ovseg.meta_arch.propose_and_name import check_model, request_arguments
from ovseg.naming.fused_pixels import FusedPixels
from ovseg.proposals import timm_backbone  # noqa: F401 (registers it)
from ovseg.proposals.fpn import FusedPyramid, PixelBranch
from ovseg.proposals.network import checked_backbone


@META_ARCH_REGISTRY.register()
def LSegPlus(cfg: CfgNode) -> PerPixel:
    """Return the model; :class:`PerPixel` documents its inputs and outputs.

    Raises:
        OvsegError: the finest feature of ``MODEL.SEM_SEG_HEAD.IN_FEATURES`` has another stride than 4, or ``NORM``
            does not fit ``HEAD_DIM``.
    """
    check_model(cfg, with_head=False)
    backbone, plus = checked_backbone(cfg), cfg.MODEL.LSEG_PLUS
    shapes = backbone.output_shape()
    features = sorted(cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES, key=lambda name: (shapes[name].stride, name))
    if shapes[features[0]].stride != 4:
        raise OvsegError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES begins with {features[0]} of stride {shapes[features[0]].stride}: give a "
            "feature of stride 4, too, such as res2"
        )
    clip_adapter = ClipAdapter(cfg, mask_prompt_depth=None, image_tower=False)
    clip_adapter.non_object_embedding.requires_grad_(False)  # there is no such class
    scorer = FusedPixels(
        backbone=backbone,
        pyramid=FusedPyramid({name: shapes[name].channels for name in features}, plus.HEAD_DIM, plus.NORM),
        branch=PixelBranch(plus.HEAD_DIM, clip_adapter.embed_dim, plus.NORM),
        clip_adapter=clip_adapter,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        tau=plus.TAU_INIT,
        tau_min=plus.TAU_MIN,
        learn_tau=plus.TAU_LEARNED and clip_adapter.cosine,
        ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        size_divisibility=max(backbone.size_divisibility, *(shape.stride for shape in shapes.values())),
    )
    chunk = cfg.MODEL.MASK_FORMER.TEST.CLASS_CHUNK_SIZE
    return PerPixel(scorer=scorer, class_chunk_size=chunk, **request_arguments(cfg))
