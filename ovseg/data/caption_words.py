"""Words of captions as ``INPUT.CAPTION`` wants them: from a tagger, or from a file that was made once."""

from __future__ import annotations

import functools
import hashlib
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode

from ovseg.data.word_file import WordFile
from ovseg.data.worlds import words_of
from ovseg.errors import OvsegError
from ovseg.grounding.words import grounded_words
from ovseg.vocabulary.nouns import STOP_ADJECTIVES, STOP_NOUNS, get_extractor
from ovseg.vocabulary.taggers import Tagger, correct_tags, tag, usable_tagger

logger = logging.getLogger(__name__)

KEYS = {name: f"INPUT.CAPTION.{name.upper()}" for name in ("tagger", "form", "pos", "stop_words", "words")}
_HYPHEN = re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_])")


@dataclass(frozen=True)
class WordSettings:
    """Keys of ``INPUT.CAPTION`` that determine the words of a caption.

    Attributes:
        tagger: see :func:`ovseg.vocabulary.taggers.get_tagger`.
        form: ``word``: each noun, adjective or verb on its own, as it is spelled; ``phrase``: nouns with their
            adjectives, singular; ``known``: words of a vocabulary where a phrase contains one.
        pos: with ``word``, which of them, see :func:`ovseg.grounding.words.grounded_words`.
        stop_words: leave out words that no region shows, such as "photo" and "many".
        words: with ``known``, the vocabulary.
    """

    tagger: str = "textblob"
    form: str = "word"
    pos: str = "noun+adj"
    stop_words: bool = False
    words: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> WordSettings:
        """Return the settings of a configuration.

        Raises:
            OvsegError: ``FORM`` is known and ``WORDS`` names no vocabulary.
        """
        own = cfg.INPUT.CAPTION
        if own.FORM == "known" and not own.WORDS:
            raise OvsegError(
                "INPUT.CAPTION.FORM is known, but INPUT.CAPTION.WORDS is empty: name a label set, a file with one word "
                "per line, or the words of a world, such as toy"
            )
        known = words_of(own.WORDS) if own.FORM == "known" else ()
        return cls(own.TAGGER, own.FORM, own.POS, own.STOP_WORDS, known)

    def record(self) -> dict[str, Any]:
        """Return what words depend on, for the head of a word file."""
        record: dict[str, Any] = {"tagger": self.tagger, "form": self.form, "stop_words": self.stop_words}
        if self.form == "word":
            record["pos"] = self.pos
        if self.form == "known":
            digest = hashlib.sha256("\n".join(self.words).encode()).hexdigest()
            record["words"] = f"{len(self.words)} words, sha256 {digest[:16]}"
        return record


class TaggedWords:
    """Extractor of the words of captions by a tagger; each caption is tagged once.

    Args:
        settings: with a tagger that need not be installed: a warning says which other one is used.
    """

    def __init__(self, settings: WordSettings):
        self.settings = settings
        self.tagger, extract = _extractor(settings)
        self._extract = functools.lru_cache(100_000)(extract)

    def __reduce__(self) -> tuple[type, tuple[WordSettings]]:
        return TaggedWords, (self.settings,)  # pipelines of spaCy cannot be pickled

    def __call__(self, caption: str) -> tuple[str, ...]:
        """Return the words of a caption, each once, in their order."""
        return self._extract(caption)


def configured_words(cfg: CfgNode, captions: Callable[[], Iterable[str]]) -> Callable[[str], tuple[str, ...]]:
    """Return a function from a caption to its words; the log says where they come from.

    They are read from ``INPUT.CAPTION.WORD_FILE`` (made by ``tools/extract_caption_words.py``) if it is given, else
    captions are tagged while training.

    Args:
        captions: returns all captions, to check that the file has them.

    Raises:
        OvsegError: the file is damaged, or was made of other captions or with other settings.
    """
    settings, path = WordSettings.from_config(cfg), cfg.INPUT.CAPTION.WORD_FILE
    if not path:
        words = TaggedWords(settings)
        logger.info("words of captions: by the tagger %s, %s", words.tagger, _shown(settings.record()))
        return words
    file = WordFile.read(path)
    ours, theirs = settings.record(), file.settings
    for name in ours:
        if ours[name] != theirs.get(name):
            raise OvsegError(
                f"INPUT.CAPTION.WORD_FILE {path} was made with {KEYS[name]} {theirs.get(name)}, but it is {ours[name]} "
                "now: set it to that, or run tools/extract_caption_words.py again"
            )
    file.check_captions(captions())
    logger.info("words of captions: %s, by the tagger %s, %s", path, file.tagger, _shown(ours))
    return file


def _shown(record: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in record.items() if name != "tagger")


def _extractor(settings: WordSettings) -> tuple[str, Callable[[str], tuple[str, ...]]]:
    name, tagger = usable_tagger(settings.tagger)
    if settings.form == "word":
        return name, functools.partial(_single_words, tagger, settings.pos, settings.stop_words)
    return name, get_extractor((name, tagger), "phrase", settings.words, settings.stop_words).nouns


def _single_words(tagger: Tagger, pos: str, stop_words: bool, caption: str) -> tuple[str, ...]:
    tokens = tag(tagger, _HYPHEN.sub(" ", caption))  # "black-haired" gives two words
    tags = correct_tags([penn for _, penn, _ in tokens])
    words = grounded_words(zip((word for word, _, _ in tokens), tags, strict=True), pos)
    return tuple(word for word in words if word not in STOP_NOUNS | STOP_ADJECTIVES) if stop_words else words
