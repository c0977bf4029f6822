"""``SimBaseline``: MaskFormer's proposals, named by their own embeddings and by CLIP (Xu et al., arXiv 2112.14757).

Figure 2 of the paper::

    image -> MaskFormer --+- masks -> crops -> CLIP ------------------------> classes --+
                          +- class embeddings . CLIP's text embeddings -----> classes --+-> seen/unseen mean -> pixels
    words -> prompts, of templates or learned (tools/tune_text_prompts.py) -> CLIP's text tower

In training, the class embeddings are compared with the words of the training set and a learned "no object".
"""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from ovseg.checkpoint.loading import REGION_CLIP_ADAPTER
from ovseg.clip.adapter import KEYS, ClipAdapter
from ovseg.config.limits import lookup
from ovseg.errors import OvsegError
from ovseg.meta_arch.pixel_scores import RENDERINGS
from ovseg.meta_arch.propose_and_name import ProposeAndName, check_model, common
from ovseg.naming import MaskedCrops, NativeCrops, QueryEmbedding, SeenUnseenMean
from ovseg.proposals.network import MaskNetwork

_CLIP, _REGION = "MODEL.CLIP_ADAPTER.", "MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER."


@META_ARCH_REGISTRY.register()
def SimBaseline(cfg: CfgNode) -> ProposeAndName:
    """Return the model; :class:`ProposeAndName` documents its inputs and outputs.

    Words of which nothing is known count as unseen. With ``CLIP_ENSEMBLE`` False, masks are scored by the proposer's
    class embeddings alone. With ``SEPERATE_ADAPTER``, crops have a CLIP and prompts of their own.
    """
    check_model(cfg)
    check_prompts(cfg)
    adapter = cfg.MODEL.CLIP_ADAPTER
    clip_adapter = text_adapter(cfg)
    region = region_adapter(cfg) if adapter.SEPERATE_ADAPTER else None
    kind = MaskedCrops if adapter.REGION_RESIZED else NativeCrops
    own, crops = QueryEmbedding.from_config(cfg, clip_adapter), kind.from_config(cfg, region or clip_adapter)
    if region is not None:  # registered below: "clip_adapter" is the name of the other one
        del crops.clip_adapter
        object.__setattr__(crops, "clip_adapter", region)
    model = ProposeAndName(
        proposer=MaskNetwork(cfg),
        namers=[own, crops] if adapter.CLIP_ENSEMBLE else [own],
        mask_namer=crops,
        fuse=SeenUnseenMean.from_config(cfg),
        render=RENDERINGS[cfg.MODEL.MASK_FORMER.TEST.PAINTING].from_config(cfg),
        **common(cfg),
    )
    if region is not None:
        model.add_module(REGION_CLIP_ADAPTER.rstrip("."), region)
    return model


@META_ARCH_REGISTRY.register()
def ZeroShotMaskFormer(cfg: CfgNode) -> ProposeAndName:
    """Return :func:`SimBaseline`, by its name in the original's configurations."""
    return SimBaseline(cfg)


def text_adapter(cfg: CfgNode) -> ClipAdapter:
    """Return CLIP with the prompts of ``PROMPT_LEARNER``."""
    return ClipAdapter(cfg, text=cfg.MODEL.CLIP_ADAPTER.PROMPT_LEARNER, mask_prompt_depth=None)


def region_adapter(cfg: CfgNode) -> ClipAdapter:
    """Return the CLIP of the crops, ``REGION_CLIP_ADAPTER``, with its own prompts."""
    own = cfg.clone()
    own.defrost()
    own.MODEL.CLIP_ADAPTER.update(cfg.MODEL.CLIP_ADAPTER.REGION_CLIP_ADAPTER)
    region = ClipAdapter(
        own,
        text=own.MODEL.CLIP_ADAPTER.PROMPT_LEARNER,
        mask_prompt_depth=None,
        prefix=REGION_CLIP_ADAPTER,
        keys={name: key.replace(_CLIP, _REGION) for name, key in KEYS.items()},
    )
    region.non_object_embedding.requires_grad_(False)  # crops are never compared with it
    return region


def check_prompts(cfg: CfgNode) -> None:
    """Raise OvsegError for a file of prompts that are not used."""
    for section in (_CLIP, _REGION):
        if lookup(cfg, f"{section}PROMPT_CHECKPOINT") and lookup(cfg, f"{section}PROMPT_LEARNER") != "learnable":
            raise OvsegError(f"{section}PROMPT_CHECKPOINT is given, so set {section}PROMPT_LEARNER to learnable")
