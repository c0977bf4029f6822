"""``ProposeAndName``: the model that is composed of a proposer, namers, their fusion and a rendering."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from ovseg.clip.adapter import ClipAdapter
from ovseg.config import refuse_keys_without_effect
from ovseg.config.limits import check_config, check_kind
from ovseg.errors import OvsegError, shown
from ovseg.meta_arch.acceleration import accelerate
from ovseg.meta_arch.mask_sums import resize
from ovseg.meta_arch.pixel_scores import RENDERINGS, ClassWinner
from ovseg.meta_arch.word_model import WordModel, output_size, outputs_of
from ovseg.naming import FUSIONS, NAMERS, MaskedCrops, PooledMap, QueryEmbedding, Scores, SingleNamer
from ovseg.naming.crops import has_pixel
from ovseg.proposals.given_masks import resize_masks
from ovseg.proposals.network import MaskNetwork
from ovseg.proposals.views import PROPOSERS, Masks, Part, Views
from ovseg.vocabulary import Vocabulary

MASKS_AT_A_TIME = 16
WITHOUT_NAMES = {"proposals", "soft_proposals"}  # outputs that need no namer


@META_ARCH_REGISTRY.register()
class ProposeAndName(WordModel):
    """Model that segments images by proposing masks, scoring each mask for each word, and rendering the scores.

    ::

        image -> proposer -> masks (Q, H, W) ----+-> namer 1 -> scores (Q, K) --+
                                                 +-> namer 2 -> scores (V, K) --+-> fuse -> (Q, K) -> render -> pixels
        words ---------------------------------------^

    Input and output: see :class:`WordModel`. In training a request also has ``instances``: ``gt_classes`` int64 (n,),
    ``gt_masks`` bool (n, H, W); or ``sem_seg``, labels (H, W). More outputs in evaluation mode:

    * ``proposals``: bool (Q, height, width), mask probability > 0.5; ``soft_proposals``: float32, the probability
    * ``explanations``: the scores of each mask by each namer, see :func:`explain`
    * ``scored_masks``: the arguments (fused scores, masks, words, bias) of :meth:`render_scored`

    Args:
        proposer: see :data:`ovseg.proposals.views.PROPOSERS`.
        namers: one or two, see :mod:`ovseg.naming.scores`. The first trains with the proposer.
        fuse: scores of all namers -> (Q, K), see :class:`ovseg.naming.scores.GeometricMean`.
        render: scores of masks -> scores of pixels, see :class:`ovseg.meta_arch.pixel_scores.MaskSum`.
        mask_namer: the namer of :meth:`name_masks`; default: the :class:`MaskedCrops` or :class:`PooledMap` of the
            namers.
        mask_threshold: probability above which a pixel belongs to a mask in ``explanations``.
        resize_masks: resize the logits of a network's masks to the result before they become probabilities, or masks
            from elsewhere, in place of the scores of pixels.
        model: the remaining arguments of :class:`WordModel`.
    """

    @configurable
    def __init__(
        self,
        *,
        proposer: Part,
        namers: Sequence[Part],
        fuse: Callable[[Sequence[Scores], str | None, Tensor | None], Tensor],
        render: Callable[..., dict[str, Any]],
        mask_namer: MaskedCrops | PooledMap | None = None,
        mask_threshold: float = 0.5,
        resize_masks: bool = False,
        **model: Any,
    ):
        super().__init__((proposer, *namers), **model)
        self.add_others |= render.adds_others
        self.fuse, self.render = fuse, render
        of_masks = [part for part in namers if isinstance(part, (MaskedCrops, PooledMap))]
        self._mask_namer = [mask_namer] if mask_namer else of_masks
        self.mask_threshold, self.resize_masks = mask_threshold, resize_masks

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the combination of ``MODEL.PROPOSER``, ``MODEL.NAMER``, ``MODEL.FUSION`` and ``MODEL.RENDERING``."""
        check_model(cfg, with_head=False)
        names, proposer = list(cfg.MODEL.NAMER.NAME), _entry(PROPOSERS, cfg.MODEL.PROPOSER.NAME, "MODEL.PROPOSER.NAME")
        kinds = [_entry(NAMERS, name, "MODEL.NAMER.NAME") for name in names]
        if isinstance(proposer, type) and issubclass(proposer, MaskNetwork):
            check_head(cfg)
        elif cfg.MODEL.PROPOSER.PRECISION != "fp32":
            raise OvsegError(
                f"MODEL.PROPOSER.PRECISION is {cfg.MODEL.PROPOSER.PRECISION}, but {cfg.MODEL.PROPOSER.NAME} does not "
                "read it: set it to fp32"
            )
        if not 1 <= len(set(names)) == len(names) <= 2 or (len(names) == 2 and names[0] != "QueryEmbedding"):
            raise OvsegError(
                f"MODEL.NAMER.NAME is {names}: give one namer, or QueryEmbedding and another, such as "
                "['QueryEmbedding', 'MaskedCrops']"
            )
        if "QueryEmbedding" in names and not getattr(proposer, "gives_embeddings", True):
            raise OvsegError(
                f"the masks of {cfg.MODEL.PROPOSER.NAME} have no class embeddings for the namer QueryEmbedding: set "
                "MODEL.NAMER.NAME to MaskedCrops or PooledMap"
            )
        fusion = cfg.MODEL.FUSION.NAME or ("SingleNamer" if len(names) == 1 else "GeometricMean")
        void = cfg.MODEL.FUSION.VOID_BY_CLIP
        if void and fusion in ("SingleNamer", "SeenAveragedMean"):
            raise OvsegError(
                f"MODEL.FUSION.VOID_BY_CLIP is {void}, but {fusion} does not read it: set it to 0, or FUSION.NAME "
                "to GeometricMean with two namers"
            )
        rendering = cfg.MODEL.RENDERING.NAME or cfg.MODEL.MASK_FORMER.TEST.PAINTING
        clip_adapter = ClipAdapter(cfg, original_depths=() if "ContextCrops" in names else None)
        return common(cfg) | {
            "proposer": proposer(cfg),
            "namers": [kind.from_config(cfg, clip_adapter) for kind in kinds],
            "fuse": _entry(FUSIONS, fusion, "MODEL.FUSION.NAME").from_config(cfg),
            "render": _entry(RENDERINGS, rendering, "MODEL.RENDERING.NAME").from_config(cfg),
        }

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Segment images, or compute the losses in training mode; the class documents inputs and outputs."""
        views = self.views(batched_inputs)
        if self.training:
            if not hasattr(self.proposer, "losses"):
                kind = type(self.proposer).__name__
                raise OvsegError(f"the proposer {kind} has nothing to train: use train_net.py --eval-only")
            return self._losses(views)
        masks = self.proposer(views)
        words = [self.words_of(request) if outputs_of(request) - WITHOUT_NAMES else None for request in views.requests]
        scores, results = [], []
        for namer in self.namers:
            scores.append(namer(views, masks, words))
            masks = [_with_scores(*found) for found in zip(masks, scores[-1], strict=True)]
        if self.resize_masks:
            masks = [_of_result(found, views, index) for index, found in enumerate(masks)]
        for of_image in zip(views.requests, masks, words, *scores, strict=True):
            results.append(self._answer(*of_image))
        return results

    @property
    def proposer(self) -> Part:
        return self.parts[0]

    @property
    def namers(self) -> tuple[Part, ...]:
        return self.parts[1:]

    @property
    def mask_namer(self) -> MaskedCrops | PooledMap | None:
        return self._mask_namer[0] if self._mask_namer else None

    def accelerate(self, compiled: bool = False, graphs: bool = False) -> None:
        """Compile and record the networks, see :func:`ovseg.meta_arch.acceleration.accelerate`."""
        accelerate(self, compiled, graphs)

    def with_proposer(self, proposer: Part) -> ProposeAndName:
        """Return a model of the masks of another proposer, with the namers of this one, whose modules both share.

        Args:
            proposer: without class embeddings, so that a namer of these is left out.

        Raises:
            OvsegError: class embeddings are the only namer.
        """
        namers = [part for part in self.namers if not isinstance(part, QueryEmbedding)] or self._mask_namer
        if not namers:
            raise OvsegError(
                "this model names masks by class embeddings of its own proposer alone: choose one with a namer of any "
                "masks, such as MaskedCrops or PooledMap"
            )
        model = ProposeAndName(
            proposer=proposer,
            namers=namers,
            fuse=self.fuse if len(namers) == len(self.namers) else SingleNamer(),
            render=self.render,
            mask_threshold=self.mask_threshold,
            resize_masks=self.resize_masks,
            add_others=self.add_others,
            granularity=self.granularity,
            closed_vocabulary=self.closed_vocabulary,
            seen_by_default=self.seen_by_default,
            seen_bias=self.seen_bias,
            test_sets=self.test_sets,
            train_sets=self.train_sets,
        )
        return model.to(self.device).train(self.training)

    def name_masks(self, request: Mapping[str, Any], masks: Tensor) -> Tensor:
        """Return the class probabilities by CLIP of given masks, without proposals.

        Args:
            request: see the class.
            masks: (n, H, W) of the image's size, each with a pixel.

        Returns:
            float32 (n, K).
        """
        if self.mask_namer is None:
            raise OvsegError(
                "this model has no namer of given masks: add MaskedCrops, ContextCrops or PooledMap to MODEL.NAMER.NAME"
            )
        views, words = self.views([request]), self.words_of(request)
        masks, size = masks.to(self.device), tuple(views.images[0].shape[1:])
        if masks.shape[1:] != size:  # the image is larger than the model takes it
            masks = resize_masks(masks.bool(), size)
        given = Masks(masks.float())
        return self.render.of_words(self.mask_namer(views, [given], [words])[0].probabilities, words)

    @property
    def scores_are_independent(self) -> bool:
        """Whether the score of a word does not depend on the other words, from its cosines to those of pixels."""
        alone = len(self.namers) == 1 and isinstance(self.fuse, SingleNamer) and self.granularity is None
        return alone and self.render.is_independent and getattr(self.namers[0], "scores_are_independent", False)

    @property
    def num_proposals(self) -> int:
        """Number of masks of an image, of proposers for which it is constant."""
        return self.proposer.num_proposals

    def _losses(self, views: Views) -> dict[str, Tensor]:
        namer = self.namers[0]
        if hasattr(namer, "caption_losses"):  # learns from captions: masks have no classes
            return namer.caption_losses(views, self.proposer) | self.proposer.losses(views)
        if not getattr(self.proposer, "gives_embeddings", True):
            kind = type(self.proposer).__name__
            raise OvsegError(
                f"the masks of {kind} have no classes, and {type(namer).__name__} does not train: train it in OpenSeg, "
                "with MODEL.OPENSEG.GROUNDING_LOSS_WEIGHT 0 for masks alone"
            )
        return self.proposer.losses(views, self._class_logits(views))

    def _class_logits(self, views: Views) -> Callable[[Tensor], Tensor]:
        if not hasattr(self.namers[0], "class_logits"):
            raise OvsegError(
                f"the namer {type(self.namers[0]).__name__} does not train: to train a proposer, MODEL.NAMER.NAME must "
                "begin with QueryEmbedding"
            )
        return self.namers[0].class_logits(self.training_words(views))

    def _answer(
        self, request: Mapping[str, Any], masks: Masks, words: Vocabulary | None, *scores: Scores
    ) -> dict[str, Any]:
        """Return the outputs of a request for one image."""
        size, outputs = output_size(request), outputs_of(request)
        result: dict[str, Any] = {}
        if "soft_proposals" in outputs:
            result["soft_proposals"] = resize(masks.probabilities, size)
        if "proposals" in outputs:  # a few at a time: bytes instead of floats at the size of the result
            pieces = masks.probabilities.split(MASKS_AT_A_TIME)
            result["proposals"] = torch.cat([resize(few, size) > 0.5 for few in pieces])
        if words is not None:
            result |= self.render_request(request, masks, words, scores, outputs)
        return {name: value for name, value in result.items() if name in (*outputs, "score_map")}

    def render_request(
        self,
        request: Mapping[str, Any],
        masks: Masks,
        words: Vocabulary,
        scores: Sequence[Scores],
        outputs: Collection[str],
    ) -> dict[str, Any]:
        """Fuse the scores of all namers for one image, and return those of ``outputs`` that depend on words."""
        fused = self.fuse(scores, request.get("meta", {}).get("dataset_name"), self.seen_of(request, words))
        scored = fused, masks.probabilities, words, self.bias_of(request, words)
        result = self.render_scored(*scored, output_size(request), outputs, self.granularity_of(request))
        if "explanations" in outputs:
            if len(self.namers) == 1:
                scores = [replace(scores[0], probabilities=self.render.of_words(scores[0].probabilities, words))]
            of_words = self.render.of_words(fused, words)
            result["explanations"] = explain(self.namers, masks.probabilities, scores, of_words, self.mask_threshold)
        if "scored_masks" in outputs:
            result["scored_masks"] = scored
        return result

    def render_scored(
        self,
        scores: Tensor,
        masks: Tensor,
        words: Vocabulary,
        bias: Tensor | None,
        size: tuple[int, int],
        outputs: Collection[str],
        granularity: float | None = None,
    ) -> dict[str, Any]:
        """Render fused scores (Q, K) of masks (Q, H, W); with a granularity, by :class:`ClassWinner`."""
        render = self.render
        if granularity is not None:
            scores = render.of_words(scores, words)
            render = ClassWinner(self.mask_threshold, render.class_chunk_size, render.resize_mode, granularity)
        return render(scores, masks, words, size, outputs, bias)


def common(cfg: CfgNode) -> dict[str, Any]:
    """Return the arguments of :class:`ProposeAndName` that all systems read from the same keys."""
    return request_arguments(cfg) | {"mask_threshold": cfg.MODEL.CLIP_ADAPTER.MASK_THR}


def request_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Return the arguments of :class:`WordModel` that all systems read from the same keys."""
    return {
        "seen_bias": cfg.MODEL.SEEN_BIAS,
        "add_others": cfg.MODEL.MASK_FORMER.TEST.ADD_OTHERS,
        "granularity": cfg.MODEL.RENDERING.GRANULARITY,
        "test_sets": cfg.DATASETS.TEST,
        "train_sets": cfg.DATASETS.TRAIN,
    }


def check_model(cfg: CfgNode, with_head: bool = True) -> None:
    """Raise OvsegError for a configuration that cannot be built.

    Args:
        cfg: the configuration.
        with_head: check the names of the head of :class:`MaskNetwork`, too.
    """
    check_config(cfg)  # again: it may come from Detectron2's own get_cfg
    refuse_keys_without_effect(cfg)
    if with_head:
        check_head(cfg)


def check_head(cfg: CfgNode) -> None:
    """Raise OvsegError unless the configuration names a head and a pixel decoder of this package."""
    for key in ("MODEL.SEM_SEG_HEAD.NAME", "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME"):
        check_kind(cfg, key)


def explain(
    namers: Sequence[Part], masks: Tensor, scores: Sequence[Scores], fused: Tensor, threshold: float
) -> dict[str, Tensor]:
    """Return the scores by each namer, areas and boxes of the masks that have a pixel above the threshold.

    Args:
        namers: the namers; the attribute ``explains`` is the key of their scores in the result, "own" or "clip".
        masks: (Q, H, W) probabilities.
        scores: by each namer.
        fused: (Q, K).
        threshold: probability above which a pixel belongs to a mask.

    Returns:
        ``own``, ``clip`` and ``fused`` float32 (V, K), NaN for an absent namer; ``fractions`` (V,) of the image's
        area; ``boxes`` (V, 4) x0, y0, x1, y1 in parts of the image's width and height.
    """
    seen = has_pixel(masks, threshold)
    binary = masks[seen] > threshold
    height, width = binary.shape[1:]
    sides = []
    for occupied, length in ((binary.any(1), width), (binary.any(2), height)):  # columns (V, W), rows (V, H)
        places = torch.arange(length, device=binary.device)
        first = torch.where(occupied, places, length).amin(1)
        sides.append((first / length, (torch.where(occupied, places, -1).amax(1) + 1) / length))
    (x0, x1), (y0, y1) = sides
    nothing = torch.full_like(fused[seen], torch.nan)
    by_namer = {namer.explains: given.of_namer()[seen] for namer, given in zip(namers, scores, strict=True)}
    return {
        "own": by_namer.get("own", nothing),
        "clip": by_namer.get("clip", nothing),
        "fused": fused[seen],
        "fractions": binary.flatten(1).float().mean(1),
        "boxes": torch.stack((x0, y0, x1, y1), dim=1),
    }


def _with_scores(masks: Masks, scores: Scores | None) -> Masks:
    """Return masks with the scores of a namer that has scored all of them."""
    return masks if scores is None or scores.seen is not None else replace(masks, scores=scores.probabilities)


def _of_result(masks: Masks, views: Views, index: int) -> Masks:
    """Return the masks of an image with probabilities of the size of its result, from resized logits if it has any."""
    size = output_size(views.requests[index])
    if masks.given is not None:
        return replace(masks, probabilities=resize_masks(masks.given, size).float())
    if masks.logits is None:
        return masks
    height, width = views.images[index].shape[1:]
    logits = resize(resize(masks.logits, views.canvas)[:, :height, :width], size)
    return replace(masks, probabilities=logits.sigmoid())


def _entry(registry: Iterable[tuple[str, Any]] | Mapping[str, Any], name: str, key: str) -> Any:
    """Return an entry of a registry.

    Raises:
        OvsegError: the name is not registered; the message has the configuration key and the registered names.
    """
    entries = dict(registry.items() if isinstance(registry, Mapping) else registry)
    if name not in entries:
        raise OvsegError(f"{key} is {shown(name)}: choose one of {', '.join(entries)}")
    return entries[name]
