"""Extraction of nouns and noun phrases from captions by an offline tagger (OVSeg, specification, section 12.1)."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from textblob.en.inflect import singularize
from textblob.en.taggers import PatternTagger

from ovseg.errors import OvsegError

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
_MARKUP = re.compile(r"<[^<>]*>")  # such as CC12M's <PERSON> for names

Token = tuple[str, str, str | None]  # word, Penn tag, lemma if known
Tagger = Callable[[str], Iterable[Token]]


class NounExtractor(Protocol):
    """Extractor of the nouns of captions."""

    name: str

    def nouns(self, caption: str) -> tuple[str, ...]:
        """Return the nouns of a caption in their order, lower case, singular, each once."""


def get_extractor(backend: str = "textblob", form: str = "noun", known: Iterable[str] = ()) -> NounExtractor:
    """Return an extractor of nouns.

    Args:
        backend: ``"textblob"`` (offline, nothing to install) or ``"spacy:MODEL"`` (an installed model).
        form: ``"noun"``: nouns without adjectives, compounds kept ("fire hydrant"); ``"phrase"``: nouns with their
            adjectives ("striped red star"); ``"both"``: the phrase, then its noun.
        known: if given, return these words where a phrase contains one of them, and nothing else.

    Raises:
        OvsegError: unknown backend or form, or spaCy or its model is not installed.
    """
    if form not in FORMS:
        raise OvsegError(f"nouns cannot be given as {form!r}: choose one of {', '.join(FORMS)}")
    kind, _, model = backend.partition(":")
    if kind == "textblob" and not model:
        tagger: Tagger = _tag_with_textblob
    elif kind == "spacy":
        tagger = _spacy_tagger(model)
    else:
        raise OvsegError(f"there is no tagger {backend!r}: choose textblob or spacy:MODEL, e.g. spacy:en_core_web_sm")
    if known := tuple(known):
        return KnownWordExtractor(backend, tagger, known)
    return PhraseExtractor(backend, tagger, form)


@dataclass(frozen=True)
class PhraseExtractor:
    """Extractor of phrases adjective* noun+ of a tagged caption; see :func:`get_extractor`."""

    name: str
    tagger: Tagger
    form: str = "noun"

    def nouns(self, caption: str) -> tuple[str, ...]:
        """Return the nouns or phrases of a caption."""
        found = []
        for adjectives, nouns in _phrases(self.tagger, caption):
            if self.form != "noun":
                found.append(" ".join([*adjectives, *nouns]))
            if self.form != "phrase":
                found.append(" ".join(nouns))
        return tuple(dict.fromkeys(found))


class KnownWordExtractor:
    """Extractor of given words within noun phrases, longest match first; see :func:`get_extractor`."""

    def __init__(self, name: str, tagger: Tagger, known: Sequence[str]):
        self.name = name
        self._tagger = tagger
        self._known = {tuple(word.lower().split()): word for word in known}
        self._longest = max(map(len, self._known))

    def nouns(self, caption: str) -> tuple[str, ...]:
        """Return the known words of a caption, in the given spelling."""
        found = (self._find((*adjectives, *nouns)) for adjectives, nouns in _phrases(self._tagger, caption))
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


def _phrases(tagger: Tagger, caption: str) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the adjectives and nouns of each phrase, without stop words."""
    tokens = list(tagger(_MARKUP.sub(" ", caption).lower()))
    # "medium" is tagged as a noun
    tags = _correct(["JJ" if word in STOP_ADJECTIVES else tag for word, tag, _ in tokens])
    adjectives: list[str] = []
    nouns: list[str] = []
    for (word, _, lemma), tag in zip([*tokens, ("", "", None)], [*tags, ""], strict=True):
        is_noun = tag.startswith("NN")
        if nouns and not is_noun:
            yield adjectives, nouns
            adjectives, nouns = [], []
        if not _WORD.fullmatch(word) or not (is_noun or tag.startswith("JJ")):
            if nouns:
                yield adjectives, nouns
            adjectives, nouns = [], []
        elif is_noun:
            singular = lemma or _singular(word, tag)
            if not {singular, word} & STOP_NOUNS:
                nouns.append(singular)
        elif word not in STOP_ADJECTIVES:
            adjectives.append(word)


def _correct(tags: Sequence[str]) -> list[str]:
    """Correct frequent errors of taggers in captions: "a green cross" (verb), "a dotted blue heart" (participle)."""
    corrected: list[str] = []
    for index, tag in enumerate(tags):
        before = corrected[-1] if corrected else ""
        after = tags[index + 1] if index + 1 < len(tags) else ""
        inside = before.startswith("JJ") or before in ("DT", "PRP$")
        nominal = after.startswith(("NN", "JJ"))
        if tag in ("VB", "VBP") and inside and not nominal:
            tag = "NN"
        elif nominal and (
            (inside and tag in ("VBN", "VBG", "VBD")) or (tag == "VBN" and before in ("", "IN", "CC", ","))
        ):
            tag = "JJ"
        corrected.append(tag)
    return corrected


def _singular(word: str, tag: str) -> str:
    if not tag.endswith("S") or word in _UNCHANGED or word.endswith(("ss", "us", "is")):
        return word
    return _IRREGULAR.get(word) or singularize(word)


def _tag_with_textblob(caption: str) -> Iterator[Token]:
    for word, tag in _pattern_tagger().tag(caption):
        yield word, tag, None


@functools.cache
def _pattern_tagger() -> PatternTagger:
    return PatternTagger()


def _spacy_tagger(model: str) -> Tagger:
    if not model:
        raise OvsegError("spacy is not a tagger without a model: add one, for example spacy:en_core_web_sm")
    try:
        import spacy
    except ImportError as error:
        raise OvsegError("spaCy is not installed: pip install spacy, or use textblob, which needs nothing") from error
    try:
        pipeline = spacy.load(model, exclude=["ner"])
    except OSError as error:
        raise OvsegError(
            f"spaCy's model {model} is not installed: python -m spacy download {model}, or use textblob"
        ) from error

    def tag(caption: str) -> Iterator[Token]:
        for token in pipeline(caption):
            yield token.text, token.tag_, token.lemma_.lower() if token.tag_ in ("NNS", "NNPS") else None

    return tag
