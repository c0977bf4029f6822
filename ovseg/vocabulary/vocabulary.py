"""``Vocabulary``: the words of one request, names with their synonyms, from the user to the text embeddings."""

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
    """K words to look for, in order; immutable, hashable, equal when the same is asked.

    Attributes:
        names: K names, shown in legends; unique (letter case does not count), composed (Unicode NFC), without blanks
            at their ends or invisible characters, as the synonyms.
        synonyms: K non-empty tuples, the texts that CLIP is asked for each name. A name's score is the maximum over
            its synonyms. The name itself is asked only where its tuple says so.
        origin: where the words come from, for error messages; no part of what makes vocabularies equal.
        background: the last B of the names, if they are asked only so that what is none of the others has a word to
            go to: a :class:`ovseg.segmenter.Segmenter` leaves their pixels unlabelled.
        templates: prompts that the texts are put into, each with one ``{}``; None for the model's own
            (``MODEL.CLIP_ADAPTER.TEXT_TEMPLATES``).
        verbatim: names and texts are taken as they are, without the checks below, and may repeat: the registered class
            names of data sets, which published figures depend on.

    Raises:
        OvsegError: no word at all, a blank word, a word twice, control characters, background alone or not at the end.
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
        """The names that are no background."""
        return self.names[: len(self.names) - len(self.background)]

    @property
    def class_names(self) -> list[str | tuple[str, ...]]:
        """K entries for the model's ``class_names``, a new list: str, or a tuple of str where there are synonyms."""
        pairs = zip(self.names, self.synonyms, strict=True)
        return [name if texts == (name,) else texts for name, texts in pairs]

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The S texts of all names, in order; those of a name follow each other."""
        return tuple(text for texts in self.synonyms for text in texts)

    @cached_property
    def classes(self) -> tuple[int, ...]:
        """For each of the S texts the index of its name."""
        return tuple(index for index, texts in enumerate(self.synonyms) for _ in texts)

    @cached_property
    def version(self) -> str:
        """12 hexadecimal digits that tell names, texts, background and templates, and their order.

        The same in every process and version of Python: SHA-256 of the plain JSON of what :meth:`__eq__` compares.
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
        """Words as given in Python or on a command line.

        Args:
            words: each a str, or a sequence of str: synonyms, the first of which is the name.
            origin: where they come from, for error messages.
            background: in the same form, see the class.

        Raises:
            OvsegError: as the class; also a comma at a word's end, or when one str is given instead of a list.
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
        """Take the words of a model's input as they are, see the attribute ``verbatim``.

        Args:
            class_names: K entries, each a str or a sequence of synonyms, the first of which is the name.
            origin: where they come from, for error messages.
            templates: see the class.

        Raises:
            OvsegError: no word at all, a blank word, or one str instead of a list.
        """
        if isinstance(class_names, str):
            raise OvsegError(f"{origin} must be a list of words, not the text {class_names!r}")
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
        """``"person, child; dog"``: words divided by semicolons, a word's synonyms by commas, the name first.

        Raises:
            OvsegError: as the class; also for a comma or semicolon too many.
        """
        entries = read_string(text, origin)
        return cls(tuple(entry[0] for entry in entries), tuple(entries), origin)

    @classmethod
    def from_file(cls, path: str | Path) -> Vocabulary:
        """One word per line, UTF-8: ``name`` or ``name: synonym, synonym``.

        The name itself is always one of the texts asked. Blank lines and lines that begin with ``#`` are left out.

        Raises:
            OvsegError: missing or unreadable file, not UTF-8 text, or as the class; the message names file and line.
        """
        entries = read_file(Path(path))
        return cls(tuple(entry[0] for entry in entries), tuple(entries), str(path))

    @classmethod
    def from_label_set(cls, name: str, variant: str = "synonyms") -> Vocabulary:
        """The classes of a known data set, e.g. ``"ade20k_150"`` (:func:`ovseg.vocabulary.label_set_names` lists them).

        Args:
            name: label set.
            variant: ``"synonyms"`` asks every synonym of a class; ``"names"`` its registered name alone, as the
                published figures of OVSeg and SCAN do, and background as :attr:`LabelSet.background` tells.

        Raises:
            OvsegError: no such label set or variant.
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
        texts = [(n,) for n in labels.names]
        if labels.background == "synonyms":
            texts[labels.background_id] += labels.background_words
        return cls(labels.names, tuple(texts), origin)

    @classmethod
    def of(
        cls, words: str | Sequence[str | Sequence[str]] | Vocabulary, origin: str = "the list of words"
    ) -> Vocabulary:
        """A vocabulary from any form: itself, a text with semicolons (:meth:`from_string`), or a list.

        Raises:
            OvsegError: as those; also for a text without a semicolon: is it one word, or several?
        """
        if isinstance(words, Vocabulary):
            return words
        if isinstance(words, str) and ";" in words:
            return cls.from_string(words, origin)
        return cls.from_words(words, origin)

    def as_string(self) -> str:
        """What :meth:`from_string` reads back as the same words; background and templates are not told.

        Raises:
            OvsegError: a text holds a comma or semicolon, or a name is not the first of the texts asked for it.
        """
        for name, texts in zip(self.names, self.synonyms, strict=True):
            if name != texts[0] or any(mark in text for text in texts for mark in ",;"):
                raise OvsegError(
                    f"{name!r} in {self.origin} cannot be written as a text of words: use a file or a list"
                )
        return "; ".join(", ".join(texts) for texts in self.synonyms)

    def with_others(self) -> Vocabulary:
        """Return the same words and one more, "others", unchecked."""
        names, synonyms = (*self.names, "others"), (*self.synonyms, ("others",))
        return Vocabulary(names, synonyms, self.origin, (), self.templates, verbatim=True)

    def names_only(self) -> Vocabulary:
        """The same words, each asked by its name alone."""
        return replace(self, synonyms=tuple((name,) for name in self.names))

    def with_templates(self, templates: str | Sequence[str] | None) -> Vocabulary:
        """The same words in other prompts: a set's name (``"vild"``, ``"imagenet"``), a list, or None for the model's.

        Raises:
            OvsegError: unknown set, or a template without exactly one ``{}``.
        """
        named = get_templates(templates) if isinstance(templates, str) else templates
        return replace(self, templates=tuple(named) if isinstance(named, Iterable) else named)

    def with_background(self, words: Sequence[str | Sequence[str]]) -> Vocabulary:
        """The same words and more background words, which compete for pixels and leave theirs unlabelled.

        Args:
            words: in the form of :meth:`from_words`.

        Raises:
            OvsegError: bad words, or one that is here already.
        """
        void = read_list(words, f"the background of {self.origin}")
        names = tuple(entry[0] for entry in void)
        return replace(
            self,
            names=self.names + names,
            synonyms=self.synonyms + tuple(void),
            background=self.background + names,
        )

    def union(self, other: Vocabulary) -> Vocabulary:
        """The words of both, in order; a name in both (letter case does not count) gets the synonyms of both.

        What is background in one and looked for in the other is looked for.

        Raises:
            OvsegError: both have templates, and not the same.
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
        """Some of the words, in the order given (letter case does not count), and all of the background.

        Raises:
            OvsegError: a name that is not here (the nearest one is told), twice, or none at all.
        """
        chosen = [self._index(name) for name in names]
        void = [index for index in range(len(self.foreground), len(self)) if index not in chosen]
        return replace(
            self,
            names=tuple(self.names[index] for index in chosen + void),
            synonyms=tuple(self.synonyms[index] for index in chosen + void),
            background=tuple(self.names[index] for index in void),
        )

    def rename(self, names: Mapping[str, str]) -> Vocabulary:
        """The same words shown under other names, ``{old: new}``; CLIP is asked what it was asked before.

        Raises:
            OvsegError: an old name that is not here (the nearest one is told), or a new one that is taken.
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
