"""``SCAN``: Mask2Former's proposals, calibrated by CLIP's semantics (Liu et al., CVPR 2024, arXiv 2312.04089).

Figure 2 of the paper::

                   +-> Mask2Former ---+-> masks -> crops in context -> CS-CLIP -> classes -------------+
    image ---------+                  +-> class embeddings -+                                          +-> fusion
                   |                                        v                                          |
                   +-> CLIP, whole image --+-> tokens -> LookAtClip -> . text embeddings -> classes ---+
                                           +-> class token -> background patches of the crops
"""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from ovseg.clip.adapter import ClipAdapter
from ovseg.errors import OvsegError
from ovseg.meta_arch.calibration import LookAtClip
from ovseg.meta_arch.pixel_scores import RENDERINGS
from ovseg.meta_arch.propose_and_name import ProposeAndName, check_model, common
from ovseg.naming import ContextCrops, ObjectNormalizedMean, QueryEmbedding
from ovseg.proposals.network import MaskNetwork


@META_ARCH_REGISTRY.register()
def SCAN(cfg: CfgNode, variant: str | None = None, add_others: bool = False) -> ProposeAndName:
    """Return the model; :class:`ProposeAndName` documents its inputs and outputs.

    Args:
        cfg: the configuration. With ``CLIP_ENSEMBLE`` False, crops are not classified.
        variant: of the fusion, in place of ``ENSEMBLE_VARIANT``.
        add_others: segment a single word against "others", even if ``ADD_OTHERS`` is False.
    """
    check_model(cfg)
    clip_adapter = ClipAdapter(
        cfg,
        default_weights="datacomp_xl_s13b_b90k",
        mask_prompt_depth=None,
        original_depths=cfg.MODEL.SELECT_ORI_CLIP_ID,
    )
    _check_sizes(cfg, clip_adapter)
    own, crops = QueryEmbedding.from_config(cfg, clip_adapter), ContextCrops.from_config(cfg, clip_adapter)
    model = ProposeAndName(
        proposer=MaskNetwork(cfg, refine=LookAtClip.from_config(cfg, clip_adapter)),
        namers=[own, crops] if cfg.MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE else [own],
        mask_namer=crops,
        fuse=ObjectNormalizedMean.from_config(cfg, variant),
        render=RENDERINGS[cfg.MODEL.MASK_FORMER.TEST.PAINTING].from_config(cfg),
        **common(cfg),
    )
    model.add_others |= add_others
    return model


@META_ARCH_REGISTRY.register()
def SCANDEMO(cfg: CfgNode) -> ProposeAndName:
    """Return :func:`SCAN` as in its published demo: a single word is segmented against "others", "auto" is "plain"."""
    variant = cfg.MODEL.CLIP_ADAPTER.ENSEMBLE_VARIANT
    return SCAN(cfg, variant="plain" if variant == "auto" else variant, add_others=True)


def _check_sizes(cfg: CfgNode, clip_adapter: ClipAdapter) -> None:
    """Raise OvsegError if a key for a size of CLIP has another value than CLIP."""
    visual = clip_adapter.original_clip
    sizes = {
        "SCAN_DIM": clip_adapter.embed_dim,
        "CLIP_VISION_DIM": visual.conv1.out_channels,
        "PATCH_SIZE": visual.grid_size[0],
    }
    for key, size in sizes.items():
        if cfg.MODEL[key] != size:
            raise OvsegError(
                f"MODEL.{key} is {cfg.MODEL[key]}, but CLIP {cfg.MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME} has {size}: set "
                f"the key to {size}"
            )
