"""The words of one request: names with their synonyms, checked once, here."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ovseg.errors import OvsegError
from ovseg.vocabulary.labels import label_set

_LARGEST_FILE = 16 * 2**20  # bytes; a list of words is never larger, a model or a film given by mistake is


@dataclass(frozen=True)
class Vocabulary:
    """K words to look for, in order; immutable and hashable.

    Attributes:
        names: K names, shown in legends; unique (letter case does not count), without blanks at their ends.
        synonyms: K non-empty tuples, the texts that CLIP is asked for each name. A name's score is the maximum over
            its synonyms. The name itself is asked only where its tuple says so.
        origin: where the words come from, for error messages.

    Raises:
        OvsegError: no word at all, a blank word, a word twice, control characters, a trailing comma.
    """

    names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]
    origin: str = "the list of words"

    def __post_init__(self) -> None:
        if not self.names:
            raise OvsegError(f"{self.origin} is empty: give at least one word to look for")
        if len(self.names) != len(self.synonyms):
            raise OvsegError(f"{self.origin} has {len(self.names)} names but {len(self.synonyms)} lists of synonyms")
        seen: dict[str, int] = {}
        for position, (name, texts) in enumerate(zip(self.names, self.synonyms, strict=True), start=1):
            if not texts:
                raise OvsegError(f"word {position} ({name!r}) in {self.origin} has no text to look for")
            for text in (name, *texts):
                _check_text(text, position, self.origin)
            first = seen.setdefault(name.casefold(), position)
            if first != position:
                raise OvsegError(
                    f"the word {name!r} comes twice in {self.origin} (words {first} and {position}): remove one of them"
                )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def class_names(self) -> list[str | tuple[str, ...]]:
        """K entries for the model's ``class_names``, a new list: str, or a tuple of str where there are synonyms."""
        pairs = zip(self.names, self.synonyms, strict=True)
        return [name if texts == (name,) else texts for name, texts in pairs]

    @classmethod
    def from_words(cls, words: Sequence[str | Sequence[str]], origin: str = "the list of words") -> Vocabulary:
        """Words as given in Python or on a command line.

        Args:
            words: each a str, or a sequence of str: synonyms, the first of which is the name.
            origin: where they come from, for error messages.

        Raises:
            OvsegError: as the class; also when one str is given instead of a list.
        """
        if isinstance(words, str):
            raise OvsegError(f"{origin} is the single text {words!r}: give a list, for example ['cat', 'dog']")
        entries = []
        for position, word in enumerate(words, start=1):
            entry = tuple(word) if isinstance(word, (list, tuple)) else (word,)
            for text in entry:
                if not isinstance(text, str):
                    raise OvsegError(f"word {position} in {origin} is {text!r}, which is not a text")
            entries.append(entry)
        for position, entry in enumerate(entries, start=1):
            _check_commas(entry, position, entries, origin)
        stripped = [tuple(text.strip() for text in entry) or ("",) for entry in entries]
        return cls(tuple(entry[0] for entry in stripped), tuple(_unique(entry) for entry in stripped), origin)

    @classmethod
    def from_file(cls, path: str | Path) -> Vocabulary:
        """One word per line, UTF-8: ``name`` or ``name: synonym, synonym``.

        The name itself is always one of the texts asked. Blank lines and lines that begin with ``#`` are left out.

        Raises:
            OvsegError: missing or unreadable file, not UTF-8 text, or as the class; the message names file and line.
        """
        path = Path(path)
        names: list[str] = []
        synonyms: list[tuple[str, ...]] = []
        lines_of: dict[str, int] = {}
        for number, line in enumerate(_read_lines(path), start=1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            name, _, rest = (part.strip() for part in line.partition(":"))
            where = f"line {number} of {path}"
            if not name:
                raise OvsegError(f"{where} has no name before the colon: write name: synonym, synonym")
            if name.endswith(","):
                raise OvsegError(f"{where} ends in a comma ({name!r}): write one word per line, without commas")
            first = lines_of.setdefault(name.casefold(), number)
            if first != number:
                raise OvsegError(
                    f"the word {name!r} comes twice in {path} (lines {first} and {number}): remove one of them"
                )
            texts = [text.strip() for text in rest.split(",")] if rest else []
            if "" in texts:
                raise OvsegError(f"{where} has an empty synonym (a comma too many) after {name!r}")
            for text in (name, *texts):
                _check_text(text, None, where)
            names.append(name)
            synonyms.append(_unique((name, *texts)))
        return cls(tuple(names), tuple(synonyms), origin=str(path))

    @classmethod
    def from_label_set(cls, name: str, synonyms: bool = True) -> Vocabulary:
        """The classes of a known data set, e.g. ``"ade20k_150"`` (:func:`ovseg.vocabulary.label_set_names` lists them).

        Args:
            name: label set.
            synonyms: ask every synonym of a class; False asks the registered name alone, as the published figures do.

        Raises:
            OvsegError: no such label set.
        """
        labels = label_set(name)
        texts = labels.synonyms if synonyms else tuple((n,) for n in labels.names)
        return cls(labels.names, texts, origin=f"label set {name}")


def _unique(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def _check_text(text: str, position: int | None, origin: str) -> None:
    where = origin if position is None else f"word {position} in {origin}"
    if not text.strip():
        raise OvsegError(f"{where} is blank: remove it, or give it a name")
    for character in text:
        if unicodedata.category(character) == "Cs":  # undecodable bytes of a command line arrive as surrogates
            raise OvsegError(f"{where} ({text!r}) is not valid UTF-8 text: type it again or use a vocabulary file")
        if unicodedata.category(character) == "Cc":
            raise OvsegError(f"{where} ({text!r}) holds the control character U+{ord(character):04X}: remove it")


def _check_commas(entry: tuple[str, ...], position: int, entries: Sequence[tuple[str, ...]], origin: str) -> None:
    """``cat, dog`` unquoted reaches us as ``cat,`` and ``dog``; CLIP would read the comma as part of the name."""
    for text in entry:
        if text.strip(" ,") != text.strip():
            bare = [other[0].strip(" ,") for other in entries if other]
            shown = " ".join(f'"{name}"' for name in bare if name) or '"cat" "dog"'
            raise OvsegError(
                f"word {position} in {origin} is {text!r}, with a comma at one end: separate words by blanks, not by "
                f"commas, and quote a name of several words, like {shown}"
            )


def _read_lines(path: Path) -> list[str]:
    try:
        if path.is_dir():
            raise OvsegError(f"{path} is a folder: give a text file with one word per line")
        if path.stat().st_size > _LARGEST_FILE:
            raise OvsegError(f"{path} is larger than {_LARGEST_FILE >> 20} MB: is it really a list of words?")
        return path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise OvsegError(f"there is no vocabulary file {path}") from error
    except UnicodeDecodeError as error:
        raise OvsegError(f"{path} is not UTF-8 text (byte {error.start}): save the list of words as UTF-8") from error
    except OSError as error:
        raise OvsegError(f"cannot read the vocabulary file {path}: {error.strerror}") from error
