"""Corrections of a segmentation by hand: other words for regions, which survive another rendering."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from ovseg.result.segmentation import UNLABELLED, Segmentation, mean_scores
from ovseg.vocabulary import Vocabulary
from ovseg.vocabulary.reading import fold_text


@dataclass(frozen=True, eq=False)
class Edit:
    """A new word for the pixels of a word.

    Attributes:
        word: the word that the pixels have; None for unlabelled ones.
        name: the word that they get, of the segmentation or a new one; None for unlabelled pixels.
        bits: of a region (H, W), as :func:`numpy.packbits` packs it, other pixels of the word are not changed; None
            for all pixels of the word.
    """

    word: str | None
    name: str | None
    bits: np.ndarray | None = None

    @classmethod
    def of(cls, word: str | None, name: str | None, region: np.ndarray | None = None) -> Edit:
        """Return the edit of a region (H, W) bool, or without one, of all pixels of a word.

        Raises:
            OvsegError: the name is blank, or has control characters.
        """
        if name is not None:
            (name,) = Vocabulary.from_words([name], "the new name").names
        return cls(word, name, None if region is None else np.packbits(region))

    def where(self, labels: np.ndarray, label: int) -> np.ndarray:
        """Return the pixels that change, (H, W) bool, in a map where the word has a label."""
        chosen = labels == label
        if self.bits is not None:
            chosen &= np.unpackbits(self.bits, count=labels.size).reshape(labels.shape).astype(bool)
        return chosen


def edited(result: Segmentation, edits: Iterable[Edit]) -> Segmentation:
    """Return a segmentation after some edits, in their order; new words come last in ``names``.

    An edit of a word that the segmentation does not have changes nothing. Scores of words are means over their new
    pixels, if the segmentation has a score map.
    """
    labels, names = result.label_map, list(result.names)
    for edit in edits:
        label, target = (UNLABELLED if word is None else _index(names, word) for word in (edit.word, edit.name))
        if label is None:
            continue
        if target is None:
            target = len(names)
            names.append(str(edit.name))
        labels = np.where(edit.where(labels, label), np.int32(target), labels)
    if labels is result.label_map:
        return result
    if result.score_map is None:
        scores = np.append(result.scores, np.zeros(len(names) - len(result.scores), np.float32))
    else:
        scores = mean_scores(labels, result.score_map, len(names))
    return replace(result, label_map=labels, names=tuple(names), scores=scores)


def _index(names: list[str], word: str) -> int | None:
    folded = fold_text(word)
    return next((index for index, name in enumerate(names) if fold_text(name) == folded), None)
