"""How the results of the graphs of a model are combined: what ``export.json`` states and ``runtime.py`` follows."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ovseg.clip.adapter import LOGIT_SCALE
from ovseg.meta_arch.pixel_scores import AreaWeightedSum, ClassWinner, MaskSum
from ovseg.meta_arch.propose_and_name import ProposeAndName
from ovseg.naming import (
    ContextCrops,
    GeometricMean,
    MaskedCrops,
    ObjectNormalizedMean,
    QueryEmbedding,
    SeenUnseenMean,
    SingleNamer,
    TrainedRegions,
)
from ovseg.naming.region_model import OTHERS, OTHERS_LOGIT
from ovseg.naming.selection import ALL_CROPS
from ovseg.proposals.network import MaskNetwork
from ovseg.segmenter import Segmenter
from ovseg.vocabulary import Vocabulary

RENDERINGS = {MaskSum: "mask_sum", ClassWinner: "class_winner", AreaWeightedSum: "area_weighted_sum"}
FUSIONS = (GeometricMean, SeenUnseenMean, ObjectNormalizedMean, SingleNamer)


def words_of(segmenter: Segmenter, vocabulary: Vocabulary) -> tuple[dict[str, Any], np.ndarray | None]:
    """Return the words of an export, and their text embeddings float32 (S, D) or (S + 1, D); None if it has none.

    The last row of the latter is that of "no object". Rows are those of the texts of all words: ``count`` words, of
    which ``names`` may be found; ``of_texts`` is the index of the word of each text.
    """
    words = segmenter.model.words_of({"class_names": vocabulary})
    about = described(vocabulary, words)
    if (clip := getattr(segmenter.model, "clip_adapter", None)) is not None:
        return about, _array(clip.text_matrix(words.texts, words.templates))
    scorer: Any = getattr(segmenter.model, "scorer", None)
    if hasattr(scorer, "encode_words"):  # OVSegmentor's text encoder
        return about, _array(scorer.encode_words(words)[1])
    if hasattr(scorer, "word_embeddings"):
        return about, _array(scorer.word_embeddings(words))
    return about, None


def described(vocabulary: Vocabulary, words: Vocabulary) -> dict[str, Any]:
    """Return what ``export.json`` states of a vocabulary, and of it as the model takes it, with "others" or without."""
    return {
        "names": list(vocabulary.foreground),
        "background": list(vocabulary.background),
        "count": len(words),
        "texts": list(words.texts),
        "of_texts": list(words.classes),
        "templates": None if words.templates is None else list(words.templates),
    }


def input_of(segmenter: Segmenter, fixed: tuple[int, int] | None) -> dict[str, Any]:
    """Return how images become the input of the first graph; mean and deviation are of RGB values 0 .. 255."""
    first = segmenter.model.parts[0]
    normalize = getattr(first, "normalize", None) or getattr(getattr(first, "trunk", None), "normalize", None)
    mean, std = getattr(normalize, "mean", None), getattr(normalize, "std", None)
    if mean is None:
        clip = getattr(segmenter.model, "clip_adapter", None)
        of_groups = getattr(first, "proposer", None)
        mean = getattr(of_groups, "pixel_mean", None) if clip is None else clip.pixel_mean
        std = getattr(of_groups, "pixel_std", None) if clip is None else clip.pixel_std
    return {
        "min_size": segmenter.min_size,
        "max_size": segmenter.max_size,
        "antialias": segmenter.antialias,
        "mean": numbers(mean),
        "std": numbers(std),
        "divisibility": max(int(getattr(first, "size_divisibility", 32)), 1),
        "size": None if fixed is None else list(fixed),
    }


def recipe_of(segmenter: Segmenter) -> tuple[dict[str, Any] | None, str]:
    """Return what ``runtime.py`` needs to combine the graphs; None, and why, for a system that it does not know."""
    model = segmenter.model
    if reason := _why_none(segmenter):
        return None, reason
    own = next((namer for namer in model.namers if isinstance(namer, QueryEmbedding)), None)
    crops = next((namer for namer in model.namers if isinstance(namer, MaskedCrops)), None)
    return {
        "own": None if own is None else {"scale": LOGIT_SCALE, "drop_no_object": own.drop_no_object},
        "crops": None if crops is None else crops_of(crops),
        "regions": next((regions_of(namer) for namer in model.namers if isinstance(namer, TrainedRegions)), None),
        "fusion": fusion_of(model.fuse),
        "rendering": rendering_of(model.render, model.granularity, model.mask_threshold, segmenter.min_score),
    }, ""


def fusion_of(fuse: Any) -> dict[str, Any]:
    """Return how the scores of two namers are fused, for one of :data:`FUSIONS`."""
    return {
        "weight": getattr(fuse, "weight", 1.0),
        "void": getattr(fuse, "void_by_other", 0.0),
        "normalised": getattr(fuse, "variant", "plain") == "log",
    }


def rendering_of(
    render: Any, granularity: float | None, mask_threshold: float, min_score: float | None
) -> dict[str, Any]:
    """Return how scores of masks become labels, for one of :data:`RENDERINGS` and settings of the model."""
    winner = isinstance(render, ClassWinner) or granularity is not None
    return {
        "name": "class_winner" if winner else RENDERINGS[type(render)],
        "threshold": mask_threshold if granularity is not None else getattr(render, "mask_threshold", None),
        "granularity": getattr(render, "granularity", 1.0) if granularity is None else granularity,
        "min_score": min_score,
    }


def crops_of(namer: MaskedCrops) -> dict[str, Any]:
    """Return how crops are cut, and what replaces parts of them."""
    clip = namer.clip_adapter
    context = None
    if isinstance(namer, ContextCrops):
        context = {"ratio": namer.replace_ratio, "seed": namer.replace_seed, "blocks": len(namer.replace_blocks)}
    mean = numbers(clip.pixel_mean)
    return {
        "scale": LOGIT_SCALE,
        "size": clip.image_size,
        "mean": mean,
        "std": numbers(clip.pixel_std),
        "fill": mean if namer.mask_fill == "mean" else [0.0, 0.0, 0.0],
        "expand": namer.mask_expand_ratio,
        "threshold": namer.mask_threshold,
        "matting": namer.mask_matting,
        "masked": namer.mask_crops,
        "interpolation": clip.preprocessing.interpolation,
        "prompts": namer.mask_prompts,
        "patch": getattr(getattr(clip.clip_model.visual, "conv1", None), "kernel_size", (0,))[0],
        "whole": clip.preprocessing.whole_interpolation,
        "context": context,
    }


def regions_of(namer: TrainedRegions) -> dict[str, Any]:
    """Return how images and texts are given to a function of regions."""
    clip = namer.clip_adapter
    return {
        "threshold": namer.mask_threshold,
        "mean": numbers(clip.pixel_mean),
        "std": numbers(clip.pixel_std),
        "others": sorted(OTHERS),
        "others_logit": OTHERS_LOGIT,
    }


def _why_none(segmenter: Segmenter) -> str:
    """Return why ``runtime.py`` cannot combine the graphs of a model; "" if it can."""
    model, known = segmenter.model, (QueryEmbedding, MaskedCrops, ContextCrops, TrainedRegions)
    if not isinstance(model, ProposeAndName):
        return "runtime.py combines proposed masks and crops, and this system has none"
    for namer in model.namers:
        if type(namer) not in known:
            return f"runtime.py does not know the namer {type(namer).__name__}"
    if not model.clip_adapter.cosine:
        return "the words have vectors of a table, which are not compared by cosine"
    if any(getattr(namer, "selection", ALL_CROPS) != ALL_CROPS for namer in model.namers):
        return "runtime.py classifies all masks: set MODEL.NAMER.MAX_CROPS to 0 and DUPLICATE_IOU to 1"
    render, fuse = model.render, model.fuse
    if type(render) not in RENDERINGS or type(fuse) not in FUSIONS or model.resize_masks:
        return f"runtime.py does not know {type(render).__name__} with {type(fuse).__name__} and these settings"
    if model.seen_bias or render.resize_mode != "bilinear" or segmenter.many_views is not None:
        return "runtime.py knows neither SEEN_BIAS nor several views of an image, and resizes scores bilinearly"
    if not segmenter.antialias or segmenter.image_format != "RGB":
        return "runtime.py resizes RGB images with antialiasing (INPUT.ANTIALIAS_TEST, INPUT.FORMAT)"
    if any(getattr(namer, "replace_seed", 0) < 0 for namer in model.namers):
        return "with a negative REPLACE_SEED, patches are drawn from Python's global stream"
    if not isinstance(model.proposer, MaskNetwork) and isinstance(model.namers[0], QueryEmbedding):
        return "the proposer is no network with class embeddings"
    return ""


def numbers(values: Any) -> list[float] | None:
    """Return the values of a tensor or sequence as a list."""
    if values is None:
        return None
    return [float(value) for value in (values.flatten().tolist() if isinstance(values, Tensor) else values)]


def _array(rows: Tensor) -> np.ndarray:
    return rows.detach().float().cpu().numpy()
