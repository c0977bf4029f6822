"""``compete``: one segmentation from masks that other programs have found for each word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ovseg.errors import OvsegError, shown
from ovseg.io.images import ImageLike, as_rgb
from ovseg.io.run_lengths import decode_mask
from ovseg.result.segmentation import Segmentation
from ovseg.vocabulary import Vocabulary
from ovseg.vocabulary.reading import fold_text


def compete(
    masks_per_word: Mapping[str, Any],
    vocabulary: str | Sequence[str | Sequence[str]] | Vocabulary,
    image: ImageLike | None = None,
    *,
    threshold: float = 0.0,
    mask_threshold: float = 0.5,
) -> Segmentation:
    """Return one segmentation from the masks of each word, which compete for the pixels.

    The score of a word at a pixel is the maximum over its masks, and over those of its synonyms, of score x mask. The
    word with the highest score gets the pixel, the first of the vocabulary among equals. A pixel is unlabelled if no
    mask covers it, if the highest score does not exceed the threshold, or if a background word wins.

    For the results of programs such as SAM 3, or Grounding DINO with SAM, which are asked one word at a time::

        found = {"cat": (masks, scores), "kitten": (masks_of_kittens, scores_of_kittens), "sofa": ([], [])}
        ovseg.compete(found, [("cat", "kitten"), "sofa"], "photo.jpg").save("out.png")

    Args:
        masks_per_word: text -> (masks, scores) of n masks. Masks: (n, H, W) bool or probabilities 0 .. 1, an array, a
            tensor, or a list of arrays (H, W) or of COCO run-length codes; a single one may be (H, W). Scores: (n,)
            numbers from 0 to 1, or one number for all. Texts are names or synonyms of the vocabulary, ignoring letter
            case; those without masks may be absent.
        vocabulary: words as for :class:`ovseg.Segmenter`; its background words are unlabelled where they win.
        image: the image, of the size of the masks, for drawings; None for a grey one.
        threshold: score that a pixel must exceed.
        mask_threshold: probability of a mask above which a pixel belongs to it; other pixels get nothing from it.

    Raises:
        OvsegError: a text is not of the vocabulary, masks and scores differ in number, masks differ in size from each
            other or the image, or values are not in 0 .. 1; or there is no mask and no image.
    """
    words = Vocabulary.of(vocabulary)
    for name, value in (("threshold", threshold), ("mask_threshold", mask_threshold)):
        if not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise OvsegError(f"{name} is {shown(value)}: give a number from 0 to 1")
    if not isinstance(masks_per_word, Mapping):
        raise OvsegError(f"masks_per_word is a {type(masks_per_word).__name__}: give {{word: (masks, scores)}}")
    places = _places(words)
    pixels, source = (None, None) if image is None else as_rgb(image)
    size = None if pixels is None else pixels.shape[:2]
    found: list[tuple[int, np.ndarray, np.ndarray]] = []
    for text, given in masks_per_word.items():
        if (folded := fold_text(str(text))) not in places:
            raise OvsegError(
                f"{text!r} is no word or synonym of the vocabulary ({', '.join(words.names[:10])}): add it, or leave "
                "its masks out"
            )
        masks, scores = _masks_and_scores(text, given)
        if not len(masks):
            continue
        size = size or masks.shape[1:]
        if masks.shape[1:] != size:
            raise OvsegError(
                f"the masks of {text!r} have {masks.shape[2]}x{masks.shape[1]} pixels, but "
                f"{'other masks have' if pixels is None else 'the image has'} {size[1]}x{size[0]}: give all in one size"
            )
        found.append((places[folded], masks, scores))
    if size is None:
        raise OvsegError("masks_per_word has no mask, and image is None: give the image, for the size of the result")
    best, labels = np.zeros(size, np.float32), np.zeros(size, np.int32)
    for place, masks, scores in sorted(found, key=lambda entry: entry[0]):  # stable; the first word wins a tie
        for mask, score in zip(masks, scores, strict=True):
            value = np.where(mask > mask_threshold, mask * score, 0).astype(np.float32)
            better = value > best
            labels[better], best[better] = place, value[better]
    best[best <= threshold] = 0  # unlabelled
    if pixels is None:
        pixels = np.full((*size, 3), 128, np.uint8)
    return Segmentation.from_maps(labels, best, words.foreground, pixels, source, background=words.background)


def _places(words: Vocabulary) -> dict[str, int]:
    """Return the index of the word of each text; names go before synonyms of other words."""
    pairs = list(zip(words.texts, words.classes, strict=True))
    return {fold_text(text): place for text, place in (*reversed(pairs), *((n, k) for k, n in enumerate(words.names)))}


def _masks_and_scores(text: str, given: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return masks, bool or float32 (n, H, W), and scores, float32 (n,), of one text."""
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise OvsegError(f"the entry of {text!r} in masks_per_word is a {type(given).__name__}: give (masks, scores)")
    try:
        masks = _as_array(given[0])
        scores = np.asarray(_on_cpu(given[1]), dtype=np.float32)
    except (ValueError, TypeError, KeyError) as error:
        raise OvsegError(
            f"the masks of {text!r} cannot be read: give (n, H, W) masks of one size, or COCO run-length codes, and "
            "(n,) scores"
        ) from error
    if masks.size == 0 and (scores.size == 0 or scores.ndim == 0):
        return np.zeros((0, 1, 1), bool), np.zeros(0, np.float32)
    if masks.ndim == 2:
        masks = masks[None]
    if masks.ndim == 4 and masks.shape[1] == 1:  # as networks return them
        masks = masks[:, 0]
    if scores.ndim == 0:
        scores = np.full(len(masks), scores)
    if masks.ndim != 3 or not masks.size or scores.shape != (len(masks),):
        raise OvsegError(
            f"{text!r} has masks of the shape {list(masks.shape)} and scores of the shape {list(scores.shape)}: give "
            "(n, H, W) masks and (n,) scores"
        )
    for name, values in (("masks", masks), ("scores", scores)):
        if not (values.dtype == bool or (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1)):
            raise OvsegError(f"the {name} of {text!r} are not all from 0 to 1: give bool or probabilities, not logits")
    return masks, scores


def _as_array(masks: Any) -> np.ndarray:
    if isinstance(masks, (list, tuple)):
        if not masks:
            return np.zeros((0, 1, 1), bool)
        masks = np.stack([_decoded(mask) if isinstance(mask, Mapping) else np.asarray(_on_cpu(mask)) for mask in masks])
    array = np.asarray(_on_cpu(masks))
    if array.dtype.kind in "ui" and array.size and array.max() <= 1:
        return array.astype(bool)
    return array if array.dtype == bool else array.astype(np.float32)


def _decoded(code: Mapping[str, Any]) -> np.ndarray:
    height, width = (int(side) for side in code["size"])
    return decode_mask(code["counts"], height, width)


def _on_cpu(values: Any) -> Any:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else values
