"""Words of a caption that images are grounded in: choice by part of speech, and random dropping (OpenSeg, 3.2)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ovseg.errors import OvsegError, argument, shown

# beginnings of Penn tags of the words that are kept
KINDS = {"noun": ("NN",), "noun+adj": ("NN", "JJ"), "noun+adj+verb": ("NN", "JJ", "VB")}


def grounded_words(tagged: Iterable[tuple[str, str]], kind: str = "noun+adj") -> tuple[str, ...]:
    """Return the words of a tagged caption that are nouns, adjectives or verbs, each on its own, as they are spelled.

    Words are in lower case and in their order, each once. What does not consist of letters alone is left out: numbers,
    punctuation, "t-shirt".

    Args:
        tagged: each word with its Penn tag, such as ``("dogs", "NNS")``.
        kind: ``noun`` (tags NN*), ``noun+adj`` (and JJ*) or ``noun+adj+verb`` (and VB*).

    Raises:
        OvsegError: an unknown kind.
    """
    if kind not in KINDS:
        raise OvsegError(f"{shown(kind)} is not a kind of words: choose one of {', '.join(KINDS)}")
    words = (word.lower() for word, tag in tagged if tag.startswith(KINDS[kind]) and word.isalpha())
    return tuple(dict.fromkeys(words))


def drop_words(words: tuple[str, ...], keep_prob: float, rng: np.random.Generator) -> tuple[str, ...]:
    """Return the words without those that chance drops; one of them, drawn at random, where all would be dropped.

    Args:
        words: of one caption; none stay none.
        keep_prob: probability with which each word is kept, independently of the others.
        rng: source of the draws.

    Raises:
        OvsegError: ``keep_prob`` is not a number from 0 to 1.
    """
    if not 0 <= keep_prob <= 1:
        raise OvsegError(f"{argument('keep_prob')} is {shown(keep_prob)}: give a number from 0 to 1")
    if not words:
        return ()
    kept = tuple(word for word, draw in zip(words, rng.random(len(words)), strict=True) if draw < keep_prob)
    return kept or (words[rng.integers(len(words))],)
