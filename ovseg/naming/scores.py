"""Class scores of masks, the namer that reads the proposer's class embeddings, and the fusion of two namers.

A namer is a :class:`ovseg.proposals.views.Part` that is called with :class:`ovseg.proposals.views.Views`, the masks and
the vocabulary of each image, and returns the :class:`Scores` of each image; None for images without a vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from detectron2.config import CfgNode
from fvcore.common.registry import Registry
from torch import Tensor

from ovseg.clip.adapter import ClipAdapter
from ovseg.errors import OvsegError
from ovseg.io.devices import to_device
from ovseg.proposals.views import Masks, Part, Views
from ovseg.vocabulary import Vocabulary

NAMERS = Registry("NAMER")
NAMERS.__doc__ = "Namers by an element of ``MODEL.NAMER.NAME``: called with the configuration and the CLIP adapter."
FUSIONS = Registry("FUSION")
FUSIONS.__doc__ = "Fusions by the value of ``MODEL.FUSION.NAME``: called with the configuration."
LOG_EPSILON = 1e-8
LOG_DATASETS = ("ade20k_full_sem_seg_val", "pascal_context_459_sem_seg_val")  # where the original uses "log"


@dataclass(frozen=True)
class Scores:
    """The class probabilities of the masks of one image by one namer.

    Attributes:
        probabilities: float32 (V, K), of the masks that the namer has scored, in their order. If they sum to less
            than 1, the rest is the probability of "no object".
        seen: bool (Q,), which masks the namer has scored, V of them; None for all.
        estimated: bool (V,), which of these are estimates by an earlier namer's scores; None for none.
    """

    probabilities: Tensor
    seen: Tensor | None = None
    estimated: Tensor | None = None

    def of_all(self, unseen: float) -> Tensor:
        """Return probabilities (Q, K), with the value ``unseen`` for masks without scores."""
        if self.seen is None:
            return self.probabilities
        filled = self.probabilities.new_full((len(self.seen), self.probabilities.shape[1]), unseen)
        return filled.masked_scatter_(self.seen[:, None], self.probabilities)

    def of_namer(self) -> Tensor:
        """Return probabilities (Q, K), NaN for masks that the namer itself has not scored."""
        if self.estimated is None:
            return self.of_all(torch.nan)
        return replace(self, probabilities=self.probabilities.masked_fill(self.estimated[:, None], torch.nan)).of_all(
            torch.nan
        )


def best_synonym(logits: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Reduce logits of texts to those of classes, the maximum over the texts of each class.

    Args:
        logits: (..., S + 1), for the S texts of the vocabulary and, last, "no object".

    Returns:
        (..., K + 1).
    """
    if len(vocabulary.texts) == len(vocabulary):
        return logits
    index = to_device(torch.tensor((*vocabulary.classes, len(vocabulary))), logits.device).expand(logits.shape)
    reduced = logits.new_full((*logits.shape[:-1], len(vocabulary) + 1), -torch.inf)
    return reduced.scatter_reduce(-1, index, logits, "amax")


@NAMERS.register()
class QueryEmbedding(Part):
    """Namer by the proposer's class embeddings: cosines to CLIP's text embeddings.

    Args:
        clip_adapter: CLIP, for the embeddings of the words and of "no object".
        drop_no_object: leave "no object" out of the softmax; otherwise the class probabilities sum to less than 1.
    """

    explains: ClassVar[str] = "own"

    def __init__(self, clip_adapter: ClipAdapter, drop_no_object: bool = False):
        super().__init__()
        self.clip_adapter = clip_adapter
        self.drop_no_object = drop_no_object

    @classmethod
    def from_config(cls, cfg: CfgNode, clip_adapter: ClipAdapter) -> QueryEmbedding:
        if clip_adapter.embed_dim != cfg.MODEL.SEM_SEG_HEAD.EMBEDDING_DIM:
            adapter = cfg.MODEL.CLIP_ADAPTER
            source = adapter.TEXT_TABLE or f"CLIP {adapter.CLIP_MODEL_NAME}"
            raise OvsegError(
                f"MODEL.SEM_SEG_HEAD.EMBEDDING_DIM is {cfg.MODEL.SEM_SEG_HEAD.EMBEDDING_DIM}, but {source} has "
                f"embeddings of {clip_adapter.embed_dim} dimensions: set the key to {clip_adapter.embed_dim}"
            )
        return cls(clip_adapter, cfg.MODEL.CLIP_ADAPTER.DROP_NO_OBJECT_BEFORE_SOFTMAX)

    def forward(self, views: Views, masks: Sequence[Masks], words: Sequence[Vocabulary | None]) -> list[Scores | None]:
        """Return the scores of each image, of all masks; None for images without a vocabulary."""
        scores: list[Scores | None] = []
        for found, vocabulary in zip(masks, words, strict=True):
            if vocabulary is None:
                scores.append(None)
                continue
            if found.embeddings is None:
                raise OvsegError(
                    "the masks of the proposer have no class embeddings: set MODEL.NAMER.NAME to MaskedCrops or "
                    "ContextCrops"
                )
            logits = best_synonym(self.class_logits(vocabulary)(found.embeddings), vocabulary)  # (Q, K + 1)
            own = logits[:, :-1].softmax(-1) if self.drop_no_object else logits.softmax(-1)[:, :-1]
            scores.append(Scores(own))
        return scores

    def class_logits(self, vocabulary: Vocabulary) -> Callable[[Tensor], Tensor]:
        """Return the function embeddings (..., D) -> logits (..., S + 1) of the texts, "no object" last."""
        text = self.clip_adapter.text_matrix(vocabulary.texts, vocabulary.templates)
        return partial(self.clip_adapter.similarity, text=text)


@FUSIONS.register()
class SingleNamer:
    """Scores of a single namer; masks without scores get zeros."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> SingleNamer:
        return cls()

    def __call__(self, scores: Sequence[Scores], dataset_name: str | None = None, seen: Tensor | None = None) -> Tensor:
        """Return float32 (Q, K)."""
        if len(scores) != 1:
            raise OvsegError("there are two namers: set MODEL.FUSION.NAME to GeometricMean or ObjectNormalizedMean")
        return scores[0].of_all(unseen=0.0)


@FUSIONS.register()
class GeometricMean:
    """Weighted geometric mean, own^(1 - weight) * other^weight (OVSeg, arXiv 2210.04150, equation 4).

    For a mask that the other namer has not scored, the factor of the other namer is 1. With a weight that is not
    positive, the scores of the other namer alone are used.

    Args:
        weight: of the second namer.
        void_by_other: factor of :func:`recalled_from_void` before the mean; 0 for none.
    """

    def __init__(self, weight: float, void_by_other: float = 0.0):
        self.weight, self.void_by_other = weight, void_by_other

    @classmethod
    def from_config(cls, cfg: CfgNode) -> GeometricMean:
        return cls(cfg.MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE_WEIGHT, cfg.MODEL.FUSION.VOID_BY_CLIP)

    def __call__(self, scores: Sequence[Scores], dataset_name: str | None = None, seen: Tensor | None = None) -> Tensor:
        """Fuse the scores of two namers, the first of which has scored all masks.

        Args:
            scores: of each namer; the scores of a single namer are returned unchanged.
            dataset_name: of the data set that the image belongs to, if any.
            seen: bool (K,), which classes the first namer was trained with; only some fusions use it.

        Returns:
            float32 (Q, K).
        """
        if len(scores) == 1:
            return scores[0].of_all(unseen=0.0)
        _, other = scores
        if self.weight <= 0:
            return other.of_all(unseen=0.0)
        return self.own(scores) ** (1 - self.weight) * other.of_all(unseen=1.0) ** self.weight

    def own(self, scores: Sequence[Scores]) -> Tensor:
        """Return the probabilities of the first namer as they enter the mean, float32 (Q, K)."""
        own = scores[0].of_all(unseen=0.0)
        if not self.void_by_other:
            return own
        return recalled_from_void(own, scores[1].of_all(unseen=0.0), self.void_by_other)


@FUSIONS.register()
class SeenUnseenMean(GeometricMean):
    """SimBaseline's fusion: the geometric mean, with the weights exchanged for the classes of the training.

    Those get own^weight * other^(1 - weight), all others own^(1 - weight) * other^weight (Xu et al., arXiv 2112.14757,
    equation 4). A weight that is not positive means the scores of the other namer alone, for all classes.
    """

    def __call__(self, scores: Sequence[Scores], dataset_name: str | None = None, seen: Tensor | None = None) -> Tensor:
        """Fuse the scores of two namers, see :meth:`GeometricMean.__call__`; without ``seen``, no class is seen."""
        if len(scores) == 1 or self.weight <= 0 or seen is None:
            return super().__call__(scores, dataset_name)
        weights = torch.where(seen, 1 - self.weight, self.weight)  # of the other namer, (K,)
        return self.own(scores) ** (1 - weights) * scores[1].of_all(unseen=1.0) ** weights


@FUSIONS.register()
class ObjectNormalizedMean(GeometricMean):
    """SCAN's fusion: the geometric mean, normalised over the classes on some data sets.

    Args:
        weight: of the second namer.
        variant: "plain", the geometric mean; "log", also normalised; "auto", as in the original: "log" on
            :data:`LOG_DATASETS`. Scores of one namer alone are never normalised.
        void_by_other: see :class:`GeometricMean`.
    """

    def __init__(self, weight: float, variant: str = "auto", void_by_other: float = 0.0):
        super().__init__(weight, void_by_other)
        self.variant = variant

    @classmethod
    def from_config(cls, cfg: CfgNode, variant: str | None = None) -> ObjectNormalizedMean:
        """Return the fusion of the configuration, or with another variant."""
        adapter = cfg.MODEL.CLIP_ADAPTER
        return cls(adapter.CLIP_ENSEMBLE_WEIGHT, variant or adapter.ENSEMBLE_VARIANT, cfg.MODEL.FUSION.VOID_BY_CLIP)

    def __call__(self, scores: Sequence[Scores], dataset_name: str | None = None, seen: Tensor | None = None) -> Tensor:
        fused = super().__call__(scores, dataset_name, seen)
        log = self.variant == "log" or (self.variant == "auto" and dataset_name in LOG_DATASETS)
        if log and self.weight > 0 and len(scores) == 2:
            return normalise_over_classes(fused, self.own(scores))
        return fused


def recalled_from_void(own: Tensor, other: Tensor, factor: float) -> Tensor:
    """Return probabilities of classes, for masks in which the other namer recognises a class less "no object".

    The probability of "no object", p = 1 - sum_k own[k], is multiplied by 1 - factor x max_k other[k], and the class
    probabilities are scaled to sum to 1 minus that. A mask whose p is 1 keeps its zeros.

    Args:
        own: (Q, K), which sum to at most 1.
        other: (Q, K); zeros change nothing.
        factor: 0 .. 1.
    """
    objects = own.sum(-1, keepdim=True)
    void = (1 - objects).clamp_min(0)
    less = void * (1 - factor * other.amax(-1, keepdim=True))
    return own * torch.where(objects > 0, (1 - less) / objects.clamp_min(torch.finfo(own.dtype).tiny), 1)


@FUSIONS.register()
class SeenAveragedMean:
    """ZegFormer's fusion: the namer that was trained weighs more for its words, and CLIP for all others.

    CLIP's probabilities of the words of the training ("seen") are replaced by their mean, mask by mask, so that CLIP
    ranks only the others; then own^w * clip^(1 - w) of seen words, own^(1 - w) * clip^w of others (arXiv 2112.07910,
    section 3.3; specification, section 2).

    Args:
        all_classes: treat all words as others.
        weight: w, from 0 to 1.
    """

    def __init__(self, all_classes: bool = False, weight: float = 2 / 3):
        self.all_classes, self.weight = all_classes, weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> SeenAveragedMean:
        return cls(cfg.MODEL.MASK_FORMER.ENSEMBLING_ALL_CLS)

    def __call__(self, scores: Sequence[Scores], dataset_name: str | None = None, seen: Tensor | None = None) -> Tensor:
        """Return float32 (Q, K); see :class:`GeometricMean`."""
        if len(scores) != 2:
            raise OvsegError("this fusion needs two namers: set MODEL.NAMER.NAME to QueryEmbedding and another")
        own, clip = scores[0].of_all(unseen=0.0), scores[1].of_all(unseen=1.0)
        if self.all_classes or seen is None or not seen.any():
            return own ** (1 - self.weight) * clip**self.weight
        clip = torch.where(seen, clip[:, seen].mean(1, keepdim=True), clip)
        return torch.where(
            seen, own**self.weight * clip ** (1 - self.weight), own ** (1 - self.weight) * clip**self.weight
        )


def normalise_over_classes(fused: Tensor, own: Tensor) -> Tensor:
    """Scale each mask's scores to sum to the probability that it is an object, and smooth them (SCAN's variant "log").

    Equivalent to the original's computation by logarithms (specification of SCAN, section 9, step 5).

    Args:
        fused: (Q, K) from :class:`GeometricMean`.
        own: (Q, K) probabilities by the class embeddings; 1 minus their sum is the probability of "no object".
    """
    objects = own.sum(-1, keepdim=True)
    scores = fused / fused.sum(-1, keepdim=True).clamp_min(torch.finfo(fused.dtype).tiny) * objects + LOG_EPSILON
    return scores / (scores.sum(-1, keepdim=True) + (1 - objects) + LOG_EPSILON)
