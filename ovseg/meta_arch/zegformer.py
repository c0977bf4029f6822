"""``ZegFormer``: MaskFormer's proposals, named by their queries and by CLIP (Ding et al., CVPR 2022, arXiv 2112.07910).

Figure 2 of the paper::

    image -> MaskFormer --+- masks -> crops -> CLIP ------------> classes --+
                          +- queries -> linear . text embeddings -> classes -+-> fusion by seen words -> segmentation
    words -> prompts -> CLIP's text tower -----^

Written from the specification (facts only).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from ovseg.checkpoint.loading import PREDICTOR
from ovseg.clip.adapter import KEYS, ClipAdapter
from ovseg.config import DEFAULTS
from ovseg.config.limits import lookup
from ovseg.errors import OvsegError, shown
from ovseg.meta_arch.pixel_scores import RENDERINGS
from ovseg.meta_arch.propose_and_name import ProposeAndName, check_model, common
from ovseg.naming import AlignedCrops, GeometricMean, QueryEmbedding, SeenAveragedMean, SingleNamer
from ovseg.proposals.network import MaskNetwork
from ovseg.proposals.zegformer import ZegFormerPredictor
from ovseg.vocabulary import Vocabulary
from ovseg.vocabulary.templates import get_templates

logger = logging.getLogger(__name__)

HEAD, NAME, CLIP = "ZegFormerHead", "MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME", "MODEL.SEM_SEG_HEAD.CLIP_PRETRAINED"
SEPARATOR = ", "  # between the synonyms in a name, whose text features are averaged


@META_ARCH_REGISTRY.register()
def ZegFormer(cfg: CfgNode) -> ProposeAndName:
    """Return the model; :class:`ProposeAndName` documents its inputs and outputs.

    Without a split into words of the training and others, every word counts as one of the training (``seen``).
    """
    _check(cfg)
    head, former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    clip_adapter = OutsideClip(
        cfg,
        name=head.CLIP_PRETRAINED,
        prefix=PREDICTOR,
        keys=KEYS | {"name": CLIP},
        mask_prompt_depth=None,
        templates=get_templates(cfg.MODEL.PROMPT_ENSEMBLE_TYPE),
        separator=SEPARATOR,
    )
    proposer = MaskNetwork(cfg)
    own = ProjectedQuery.from_config(cfg, clip_adapter)
    own.share(proposer.sem_seg_head.predictor)
    namers, fuse, loadable = [own], SingleNamer(), {}
    if head.CLIP_CLASSIFICATION:
        proposer.sem_seg_head.predictor.clip_model = clip_adapter.clip_model
        namers.append(AlignedCrops.from_config(cfg, clip_adapter, get_templates("zegformer_crops"), own.no_object))
        fuse = GeometricMean(weight=0.0)  # the crops alone
        if former.ENSEMBLING or former.ENSEMBLING_ALL_CLS:
            fuse = SeenAveragedMean.from_config(cfg)
    else:  # files of evaluation have CLIP nonetheless
        loadable = {f"{PREDICTOR}clip_model.": clip_adapter.clip_model}
    model = ProposeAndName(
        proposer=proposer,
        namers=namers,
        fuse=fuse,
        render=RENDERINGS[former.TEST.PAINTING].from_config(cfg),
        resize_masks=former.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE,
        **common(cfg) | _requests(cfg),
    )
    model.loadable = loadable
    return model


@META_ARCH_REGISTRY.register()
def MaskFormer(cfg: CfgNode) -> ProposeAndName:
    """Return :func:`ZegFormer`, by its name in the original's configurations."""
    return ZegFormer(cfg)


class OutsideClip(ClipAdapter):
    """:class:`ClipAdapter` that adds nothing to the state of the model: CLIP is in the head, or in no checkpoint."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.requires_grad_(False)

    def state_dict(self, *args: Any, destination: dict | None = None, **options: Any) -> dict:
        """Return ``destination`` unchanged."""
        return {} if destination is None else destination


class ProjectedQuery(QueryEmbedding):
    """:class:`QueryEmbedding` with the scale and the background vector of :class:`ZegFormerPredictor`."""

    def share(self, predictor: ZegFormerPredictor) -> None:
        """Use the parameters of a predictor, which is registered elsewhere."""
        self._predictor = (predictor,)  # a tuple, which nn.Module does not register

    def class_logits(self, vocabulary: Vocabulary) -> Callable[[Tensor], Tensor]:
        predictor = self._predictor[0]
        text = self.clip_adapter.text_rows(vocabulary.texts, vocabulary.templates)
        return partial(predictor.class_logits, text=text.to(predictor.bg_feature.device))

    def no_object(self, embeddings: Tensor) -> Tensor:
        """Return the logits (Q,) of the background for class embeddings (Q, D)."""
        return self._predictor[0].class_logits(embeddings, embeddings[:0])[:, 0]


def _requests(cfg: CfgNode) -> dict[str, Any]:
    """Return the arguments of :class:`ovseg.meta_arch.word_model.WordModel` that the system's own keys give."""
    calibrate = cfg.MODEL.MASK_FORMER.GZERO_CALIBRATE
    if calibrate > 0 and cfg.MODEL.SEEN_BIAS:
        raise OvsegError("MODEL.MASK_FORMER.GZERO_CALIBRATE and MODEL.SEEN_BIAS are the same number: set one of them")
    arguments = {"seen_by_default": True, "mask_threshold": 0.5}
    if calibrate > 0:
        arguments["seen_bias"] = calibrate
    return arguments | {
        which: given
        for which, key in (("test_sets", "TEST_CLASS_JSON"), ("train_sets", "TRAIN_CLASS_JSON"))
        if (given := _given(cfg, f"MODEL.SEM_SEG_HEAD.{key}"))
    }


def _given(cfg: CfgNode, key: str) -> Sequence[str]:
    """Return the JSON file of a key, alone; none for the key's default."""
    value = lookup(cfg, key)
    if value and not value.endswith(".json"):
        raise OvsegError(f"{key} is {shown(value)}: give a JSON file with a list of class names")
    return () if value == DEFAULTS[key] else (value,) if value else ()


def _check(cfg: CfgNode) -> None:
    """Raise OvsegError for a configuration that cannot be built, or names CLIP twice."""
    check_model(cfg)
    head, former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    if head.NAME != HEAD:
        raise OvsegError(f"MODEL.SEM_SEG_HEAD.NAME is {shown(head.NAME)}, but ZegFormer has its own: set it to {HEAD}")
    if former.ENSEMBLING and former.ENSEMBLING_ALL_CLS:
        raise OvsegError("MODEL.MASK_FORMER.ENSEMBLING and ENSEMBLING_ALL_CLS are both True: set one of them to False")
    if head.CLIP_CLASSIFICATION and cfg.MODEL.CLIP_ADAPTER.TEXT_ENCODER == "table":
        raise OvsegError(
            "MODEL.SEM_SEG_HEAD.CLIP_CLASSIFICATION is True, but the words have vectors of a table, which CLIP's crops "
            "cannot be compared with: set it to False, or MODEL.CLIP_ADAPTER.TEXT_ENCODER to clip"
        )
    if (former.ENSEMBLING or former.ENSEMBLING_ALL_CLS) and not head.CLIP_CLASSIFICATION:
        logger.warning(
            "MODEL.SEM_SEG_HEAD.CLIP_CLASSIFICATION is False: there is nothing to fuse with the queries' scores"
        )
    name = lookup(cfg, NAME)
    if name not in (DEFAULTS[NAME], head.CLIP_PRETRAINED):
        raise OvsegError(f"{NAME} is {shown(name)}, but ZegFormer reads {CLIP}: set that")
