"""Words before images: their text embeddings, computed once, and warnings of words far from a model's training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from ovseg.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

NAMED = 10  # words that a warning names
REMEMBERED = 10_000  # words that no warning names again


def encode_words(model: nn.Module, vocabulary: Vocabulary) -> None:
    """Compute the text embeddings of words, which the model keeps for later calls.

    Raises:
        OvsegError: a word is too long for the text encoder.
    """
    if (clip_adapter := getattr(model, "clip_adapter", None)) is not None:  # a namer need not use CLIP
        clip_adapter.text_matrix(vocabulary.texts, vocabulary.templates)
    scorer: Any = getattr(model, "scorer", None)
    if hasattr(scorer, "encode_words"):  # OVSegmentor's text encoder
        scorer.encode_words(vocabulary)


def unfamiliar_words(model: Any, vocabulary: Vocabulary) -> list[str]:
    """Return the names that are far from all names of the model's training; none if the model does not know these."""
    namers = [namer for namer in getattr(model, "namers", ()) if hasattr(namer, "unfamiliar")]
    return [name for namer in namers for name in namer.unfamiliar(vocabulary)]


class UnfamiliarWarnings:
    """Warnings of unfamiliar words, which name each word once.

    The memory of them is limited: visitors of a server write ever new words.
    """

    def __init__(self) -> None:
        self._named: set[str] = set()

    def __len__(self) -> int:
        return len(self._named)

    def warn(self, words: Sequence[str]) -> None:
        """Log a warning of those words that no earlier one was about."""
        new = [word for word in words if word not in self._named]
        if not new:
            return
        if len(self._named) + len(new) > REMEMBERED:
            self._named.clear()
        self._named.update(new[:REMEMBERED])
        logger.warning(
            "not among the names this model was trained on, so its masks are less certain: %s%s",
            ", ".join(new[:NAMED]),
            f" and {len(new) - NAMED} more" if len(new) > NAMED else "",
        )
