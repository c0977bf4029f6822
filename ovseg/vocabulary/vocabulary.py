"""``Vocabulary``: the words of a request, names with their synonyms."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ovseg.errors import OvsegError
from ovseg.vocabulary.label_set import label_set
from ovseg.vocabulary.reading import check_text, clean_text, fold_text, read_file, read_list, read_string, unique
from ovseg.vocabulary.templates import check_templates, get_templates

VARIANTS = ("names", "synonyms")


@dataclass(frozen=True)
class Vocabulary:
    """K words to segment, in order; immutable, hashable, and equal if names, texts, background and templates are.

    Attributes:
        names: K names, shown in legends; unique (letter case does not count), composed (Unicode NFC), without blanks
            at their ends or invisible characters, as the synonyms.
        synonyms: K non-empty tuples, the texts that CLIP encodes for each name; the score of a name is the maximum over
            them. The name itself is encoded only if its tuple contains it.
        origin: source of the words, for error messages; not compared.
        background: background words, the last B of the names: they compete for pixels, and
            :class:`ovseg.segmenter.Segmenter` leaves their pixels unlabelled.
        templates: prompt templates of the texts, each with one ``{}``; None for those of the model
            (``MODEL.CLIP_ADAPTER.TEXT_TEMPLATES``).
        verbatim: names and texts are neither checked nor changed, and may repeat: for registered class names of data
            sets, on which published results depend.

    Raises:
        OvsegError: there is no word, a word is blank, repeated or has control characters, or the background words are
            not the last or are the only ones.
    """

    names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]
    origin: str = field(default="the list of words", compare=False)
    background: tuple[str, ...] = ()
    templates: tuple[str, ...] | None = None
    verbatim: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if self.verbatim:
            return
        if not self.names:
            raise OvsegError(f"{self.origin} is empty: give at least one word to look for")
        if len(self.names) != len(self.synonyms):
            raise OvsegError(f"{self.origin} has {len(self.names)} names but {len(self.synonyms)} lists of synonyms")
        seen: dict[str, int] = {}
        for position, (name, texts) in enumerate(zip(self.names, self.synonyms, strict=True), start=1):
            if not texts:
                raise OvsegError(f"word {position} ({name!r}) in {self.origin} has no text to look for")
            for text in (name, *texts):
                check_text(text, f"word {position} in {self.origin}")
            first = seen.setdefault(fold_text(name), position)
            if first != position:
                raise OvsegError(
                    f"the word {name!r} comes twice in {self.origin} (words {first} and {position}): remove one of them"
                )
        clean = {
            "names": tuple(map(clean_text, self.names)),
            "synonyms": tuple(unique([clean_text(text) for text in texts]) for texts in self.synonyms),
            "background": tuple(map(clean_text, self.background)),
        }
        for attribute, value in clean.items():
            object.__setattr__(self, attribute, value)
        if self.background != self.names[len(self.foreground) :]:
            raise OvsegError(f"the background words of {self.origin} must be its last words: {self.background}")
        if not self.foreground:
            raise OvsegError(f"{self.origin} has background words only: give at least one word to look for")
        if self.templates is not None:
            check_templates(self.templates, f"the templates of {self.origin}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def foreground(self) -> tuple[str, ...]:
        """Names without the background words."""
        return self.names[: len(self.names) - len(self.background)]

    @property
    def class_names(self) -> list[str | tuple[str, ...]]:
        """New list of K entries for the model's ``class_names``: str, or a tuple of str for a name with synonyms."""
        pairs = zip(self.names, self.synonyms, strict=True)
        return [name if texts == (name,) else texts for name, texts in pairs]

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """S texts of all names, in the order of the names."""
        return tuple(text for texts in self.synonyms for text in texts)

    @cached_property
    def classes(self) -> tuple[int, ...]:
        """Index of the name of each of the S texts."""
        return tuple(index for index, texts in enumerate(self.synonyms) for _ in texts)

    @cached_property
    def version(self) -> str:
        """12 hexadecimal digits that identify names, texts, background and templates, in their order.

        A SHA-256 of JSON, equal in every process and version of Python.
        """
        content = [self.names, self.synonyms, self.background, self.templates]
        text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()[:12]

    @classmethod
    def from_words(
        cls,
        words: Sequence[str | Sequence[str]],
        origin: str = "the list of words",
        background: Sequence[str | Sequence[str]] = (),
    ) -> Vocabulary:
        """Return the vocabulary of words that are given in Python or on a command line.

        Args:
            words: each a str, or a sequence of synonyms, the first of which is the name.
            origin: source of the words, for error messages.
            background: in the same form, see the class.

        Raises:
            OvsegError: as the class; also for a comma at the end of a word, or one str instead of a list.
        """
        entries = read_list(words, origin)
        return cls(tuple(entry[0] for entry in entries), tuple(entries), origin).with_background(background)

    @classmethod
    def from_class_names(
        cls,
        class_names: Sequence[str | Sequence[str]],
        origin: str = "class_names",
        templates: Sequence[str] | None = None,
    ) -> Vocabulary:
        """Return the vocabulary of a model's input, unchanged: see the attribute ``verbatim``.

        Args:
            class_names: K entries, each a str or a sequence of synonyms, the first of which is the name.
            origin: source of the words, for error messages.
            templates: see the class.

        Raises:
            OvsegError: there is no word, a word is blank, or one str is given instead of a list.
        """
        if isinstance(class_names, str):
            raise OvsegError(f"{origin} must be a list of words, not the text {class_names!r}: give [{class_names!r}]")
        try:
            entries = tuple((entry,) if isinstance(entry, str) else tuple(entry) for entry in class_names)
        except TypeError as error:
            raise OvsegError(f"{origin} is not a list of words, each a text or a list of synonyms") from error
        if not entries:
            raise OvsegError(f"{origin} is empty: give at least one word")
        if not all(entry and all(isinstance(text, str) and text.strip() for text in entry) for entry in entries):
            raise OvsegError(f"{origin} has a blank word: remove it")
        names = tuple(entry[0] for entry in entries)
        return cls(names, entries, origin, (), None if templates is None else tuple(templates), verbatim=True)

    @classmethod
    def from_string(cls, text: str, origin: str = "the text of words") -> Vocabulary:
        """Return the vocabulary of ``"person, child; dog"``: words separated by semicolons, synonyms by commas.

        The first text of a word is its name.

        Raises:
            OvsegError: as the class; also for an extra comma or semicolon.
        """
        entries = read_string(text, origin)
        return cls(tuple(entry[0] for entry in entries), tuple(entries), origin)

    @classmethod
    def from_file(cls, path: str | Path) -> Vocabulary:
        """Return the vocabulary of a UTF-8 file with one word per line, ``name`` or ``name: synonym, synonym``.

        The name is always one of the texts. If all lines are ``id:name,name`` with ascending ids (prompt-engineered
        lists), the first of the names is that of the word, and ids are not used. Blank lines and lines that begin with
        ``#`` are left out.

        Raises:
            OvsegError: missing or unreadable file, not UTF-8 text, or as the class; the message names file and line.
        """
        entries = read_file(Path(path))
        return cls(tuple(entry[0] for entry in entries), tuple(entries), str(path))

    @classmethod
    def from_class_list(cls, path: str | Path) -> Vocabulary:
        """Return the vocabulary of a file as :meth:`from_file`, unchanged, whose classes may share names.

        Raises:
            OvsegError: missing or unreadable file, or not a list of words.
        """
        return cls.from_class_names(read_file(Path(path)), str(path))

    @classmethod
    def from_label_set(cls, name: str, variant: str = "synonyms") -> Vocabulary:
        """Return the classes of a label set, such as ``"ade20k_150"`` (see :func:`ovseg.vocabulary.label_set_names`).

        Args:
            name: name of the label set.
            variant: ``"synonyms"`` for every synonym of a class; ``"names"`` for its registered name alone, as in the
                published results of OVSeg and SCAN, and background by :attr:`LabelSet.background`.

        Raises:
            OvsegError: the label set or variant does not exist.
        """
        if variant not in VARIANTS:
            raise OvsegError(f"there is no variant {variant!r} of label set {name}: choose {' or '.join(VARIANTS)}")
        labels = label_set(name)
        origin = f"label set {name}"
        if variant == "synonyms":
            return cls(labels.names, labels.synonyms, origin)
        if labels.background == "leftover words":
            things = tuple(n for index, n in enumerate(labels.names) if index != labels.background_id)
            names = things + labels.background_words
            return cls(names, tuple((n,) for n in names), origin, labels.background_words)
        texts: list[tuple[str, ...]] = [(n,) for n in labels.names]
        if labels.background == "synonyms" and labels.background_id is not None:
            texts[labels.background_id] += labels.background_words
        return cls(labels.names, tuple(texts), origin)

    @classmethod
    def of(
        cls, words: str | Sequence[str | Sequence[str]] | Vocabulary, origin: str = "the list of words"
    ) -> Vocabulary:
        """Return the vocabulary of any form: itself, a text with semicolons (:meth:`from_string`), or a list.

        Raises:
            OvsegError: as :meth:`from_string` and :meth:`from_words`; also for a text without a semicolon.
        """
        if isinstance(words, Vocabulary):
            return words
        if isinstance(words, str) and ";" in words:
            return cls.from_string(words, origin)
        return cls.from_words(words, origin)

    def with_others(self) -> Vocabulary:
        """Return the same words and one more, "others", unchecked."""
        names, synonyms = (*self.names, "others"), (*self.synonyms, ("others",))
        return Vocabulary(names, synonyms, self.origin, (), self.templates, verbatim=True)

    def names_only(self) -> Vocabulary:
        """Return the same words without synonyms."""
        return replace(self, synonyms=tuple((name,) for name in self.names))

    def with_templates(self, templates: str | Sequence[str] | None) -> Vocabulary:
        """Return the same words with other templates: the name of a set, a list, or None for those of the model.

        Raises:
            OvsegError: the set is unknown, or a template does not have exactly one ``{}``.
        """
        named = get_templates(templates) if isinstance(templates, str) else templates
        return replace(self, templates=tuple(named) if isinstance(named, Iterable) else named)

    def with_background(self, words: Sequence[str | Sequence[str]]) -> Vocabulary:
        """Return the same words with more background words, whose pixels are unlabelled.

        Args:
            words: in the form of :meth:`from_words`.

        Raises:
            OvsegError: see the class; or a word exists already.
        """
        void = read_list(words, f"the background of {self.origin}")
        names = tuple(entry[0] for entry in void)
        return replace(
            self, names=self.names + names, synonyms=self.synonyms + tuple(void), background=self.background + names
        )

    def union(self, other: Vocabulary) -> Vocabulary:
        """Return the words of both, in order; a name in both (ignoring letter case) gets the synonyms of both.

        A word that is background in only one of them is not background in the union.

        Raises:
            OvsegError: both have templates, which differ.
        """
        if self.templates and other.templates and self.templates != other.templates:
            raise OvsegError(f"{self.origin} and {other.origin} have different templates: set them on the union")
        entries: dict[str, tuple[str, tuple[str, ...]]] = {}
        looked_for: set[str] = set()
        for part in (self, other):
            looked_for |= {name.casefold() for name in part.foreground}
            for name, texts in zip(part.names, part.synonyms, strict=True):
                known, before = entries.get(name.casefold(), (name, ()))
                entries[name.casefold()] = (known, unique((*before, *texts)))
        ordered = sorted(entries, key=lambda folded: folded not in looked_for)  # stable: background last
        names = tuple(entries[folded][0] for folded in ordered)
        return Vocabulary(
            names,
            tuple(entries[folded][1] for folded in ordered),
            f"{self.origin} and {other.origin}",
            names[len(looked_for) :],
            self.templates or other.templates,
        )

    def subset(self, names: Sequence[str]) -> Vocabulary:
        """Return some of the words, in the given order (ignoring letter case), and all background words.

        Raises:
            OvsegError: a name does not exist (the nearest one is shown) or repeats, or there is none.
        """
        chosen = [self._index(name) for name in names]
        void = [index for index in range(len(self.foreground), len(self)) if index not in chosen]
        return replace(
            self,
            names=tuple(self.names[index] for index in chosen + void),
            synonyms=tuple(self.synonyms[index] for index in chosen + void),
            background=tuple(self.names[index] for index in void),
        )

    def take(self, indices: Sequence[int]) -> Vocabulary:
        """Return the words at some indices, ascending."""
        kept = tuple(self.names[index] for index in indices)
        void = tuple(self.names[index] for index in indices if index >= len(self.foreground))
        return replace(self, names=kept, synonyms=tuple(self.synonyms[index] for index in indices), background=void)

    def texts_as_words(self) -> Vocabulary:
        """Return the S texts as words without synonyms, unchecked, as a text may belong to several words."""
        texts = tuple((text,) for text in self.texts)
        return Vocabulary(self.texts, texts, self.origin, (), self.templates, verbatim=True)

    def rename(self, names: Mapping[str, str]) -> Vocabulary:
        """Return the same words with other names, ``{old: new}``; the texts that CLIP encodes do not change.

        Raises:
            OvsegError: an old name does not exist (the nearest one is shown), or a new one exists already.
        """
        new = {self._index(old): name for old, name in names.items()}
        renamed = tuple(new.get(index, name) for index, name in enumerate(self.names))
        return replace(self, names=renamed, background=renamed[len(self.foreground) :])

    def _index(self, name: str) -> int:
        folded = {known.casefold(): index for index, known in enumerate(self.names)}
        if (key := fold_text(name)) in folded:
            return folded[key]
        near = difflib.get_close_matches(key, folded, n=1, cutoff=0.5)
        hint = f": did you mean {self.names[folded[near[0]]]!r}?" if near else ""
        raise OvsegError(f"{self.origin} has no word {name!r}{hint}")
