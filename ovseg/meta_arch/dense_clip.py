"""``DenseCLIP``: CLIP's image tower without pooling, as a segmenter that was never trained to be one.

Figure 2 of MaskCLIP (Zhou et al., ECCV 2022, arXiv 2112.01071); the "ALIGN baseline" of OpenSeg (arXiv 2112.12143)::

    image -> CLIP's image tower without pooling -> features --+-> cosines -> [denoise] -> [smooth] -> pixels
    words -> "a photo of a {word}" -> CLIP's text tower ------+

With proposals, it is ``ProposeAndName`` with the namer ``PooledMap``.
"""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from ovseg.clip.adapter import ClipAdapter
from ovseg.meta_arch.per_pixel import PerPixel
from ovseg.meta_arch.propose_and_name import check_model, request_arguments
from ovseg.naming.dense import DenseScores


@META_ARCH_REGISTRY.register()
def DenseCLIP(cfg: CfgNode) -> PerPixel:
    """Return the model; :class:`PerPixel` documents its inputs and outputs. It has no weights but CLIP's."""
    check_model(cfg, with_head=False)
    clip_adapter = ClipAdapter(cfg, mask_prompt_depth=None)
    return PerPixel(
        scorer=DenseScores.from_config(cfg, clip_adapter),
        class_chunk_size=cfg.MODEL.MASK_FORMER.TEST.CLASS_CHUNK_SIZE,
        **request_arguments(cfg),
    )
