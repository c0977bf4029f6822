"""Extraction of nouns and noun phrases from captions by an offline tagger (OVSeg, specification, section 12.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from textblob.en.inflect import singularize

from ovseg.errors import OvsegError
from ovseg.vocabulary.taggers import Tagger, correct_tags, get_tagger, tag

FORMS = ("noun", "phrase", "both")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Nouns that denote the image, a place in it or an amount: no region shows them.
STOP_NOUNS = _words(
    """
    photo photograph image picture pic scene view shot close-up closeup snapshot side left right top bottom front back
    background foreground middle center centre corner edge end part piece bit area place thing stuff object item kind
    type sort style variety number amount lot lots couple pair group bunch set row line series half rest way time day
    today moment one ones other others someone something anything everything nothing anyone everyone somebody nobody
    none distance display
    """
)
# Adjectives that a crop resized to a square cannot show, or that only count or compare.
STOP_ADJECTIVES = _words(
    """
    large larger largest small smaller smallest big bigger biggest little tiny huge giant enormous medium several many
    much few more most less least other another same such own different various certain some any each every next near
    close closer far left right top bottom front back upper lower first second third last only main able available
    possible ready visible whole entire full
    """
)
_UNCHANGED = frozenset(
    {"clothes", "jeans", "pants", "shorts", "trousers", "scissors", "tongs", "binoculars", "sunglasses"}
)
_IRREGULAR = {"shelves": "shelf", "bookshelves": "bookshelf", "people": "person", "dice": "die", "skies": "sky"}
_WORD = re.compile(r"[^\W\d_]{2,}(?:-[^\W\d_]+)*")


class NounExtractor(Protocol):
    """Extractor of the nouns of captions."""

    name: str

    def nouns(self, caption: str) -> tuple[str, ...]:
        """Return the nouns of a caption in their order, lower case, singular, each once."""


def get_extractor(
    backend: str | tuple[str, Tagger] = "textblob",
    form: str = "noun",
    known: Iterable[str] = (),
    stop_words: bool = True,
) -> NounExtractor:
    """Return an extractor of nouns.

    Args:
        backend: name of a tagger, see :func:`ovseg.vocabulary.taggers.get_tagger`; or its name and the tagger.
        form: ``"noun"``: nouns without adjectives, compounds kept ("fire hydrant"); ``"phrase"``: nouns with their
            adjectives ("striped red star"); ``"both"``: the phrase, then its noun.
        known: if given, return these words where a phrase contains one of them, and nothing else.
        stop_words: leave out :data:`STOP_NOUNS` and :data:`STOP_ADJECTIVES`.

    Raises:
        OvsegError: unknown backend or form, or spaCy or its model is not installed.
    """
    if form not in FORMS:
        raise OvsegError(f"nouns cannot be given as {form!r}: choose one of {', '.join(FORMS)}")
    name, tagger = (backend, get_tagger(backend)) if isinstance(backend, str) else backend
    if known := tuple(known):
        return KnownWordExtractor(name, tagger, known, stop_words)
    return PhraseExtractor(name, tagger, form, stop_words)


@dataclass(frozen=True)
class PhraseExtractor:
    """Extractor of phrases adjective* noun+ of a tagged caption; see :func:`get_extractor`."""

    name: str
    tagger: Tagger
    form: str = "noun"
    stop_words: bool = True

    def nouns(self, caption: str) -> tuple[str, ...]:
        """Return the nouns or phrases of a caption."""
        found = []
        for adjectives, nouns in _phrases(self.tagger, caption, self.stop_words):
            if self.form != "noun":
                found.append(" ".join([*adjectives, *nouns]))
            if self.form != "phrase":
                found.append(" ".join(nouns))
        return tuple(dict.fromkeys(found))


class KnownWordExtractor:
    """Extractor of given words within noun phrases, longest match first; see :func:`get_extractor`."""

    def __init__(self, name: str, tagger: Tagger, known: Sequence[str], stop_words: bool = True):
        self.name = name
        self.stop_words = stop_words
        self._tagger = tagger
        self._known = {tuple(word.lower().split()): word for word in known}
        self._longest = max(map(len, self._known))

    def nouns(self, caption: str) -> tuple[str, ...]:
        """Return the known words of a caption, in the given spelling."""
        phrases = _phrases(self._tagger, caption, self.stop_words)
        found = (self._find((*adjectives, *nouns)) for adjectives, nouns in phrases)
        return tuple(dict.fromkeys(word for word in found if word is not None))

    def _find(self, phrase: tuple[str, ...]) -> str | None:
        for length in range(min(self._longest, len(phrase)), 0, -1):
            for start in range(len(phrase) - length, -1, -1):  # the head is at the end
                if (word := self._known.get(phrase[start : start + length])) is not None:
                    return word
        return None


def names_one_of(noun: str, words: Iterable[str] | frozenset[str]) -> bool:
    """Return whether a phrase equals or ends in one of some lower-case words: "striped red star" in {"red star"}."""
    parts = noun.lower().split()
    return any(" ".join(parts[start:]) in words for start in range(len(parts)))


def _phrases(tagger: Tagger, caption: str, stop_words: bool) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the adjectives and nouns of each phrase; with ``stop_words``, without these."""
    tokens = tag(tagger, caption)
    # "medium" is tagged as a noun
    tags = correct_tags(["JJ" if word in STOP_ADJECTIVES else penn for word, penn, _ in tokens])
    adjectives: list[str] = []
    nouns: list[str] = []
    for (word, _, lemma), penn in zip([*tokens, ("", "", None)], [*tags, ""], strict=True):
        is_noun = penn.startswith("NN")
        if nouns and not is_noun:
            yield adjectives, nouns
            adjectives, nouns = [], []
        if not _WORD.fullmatch(word) or not (is_noun or penn.startswith("JJ")):
            if nouns:
                yield adjectives, nouns
            adjectives, nouns = [], []
        elif is_noun:
            singular = lemma or _singular(word, penn)
            if not (stop_words and {singular, word} & STOP_NOUNS):
                nouns.append(singular)
        elif not (stop_words and word in STOP_ADJECTIVES):
            adjectives.append(word)


def _singular(word: str, tag: str) -> str:
    if not tag.endswith("S") or word in _UNCHANGED or word.endswith(("ss", "us", "is")):
        return word
    return _IRREGULAR.get(word) or singularize(word)
