"""Label sets of the known data sets: registered names and synonyms, read lazily from package data.

The files contain names and numbers with their sources; synonyms are from an Apache-2.0 copy of OpenSeg's lists.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from ovseg.errors import OvsegError
from ovseg.vocabulary.derived import DERIVED

_FOLDER = resources.files("ovseg.vocabulary").joinpath("label_sets")


@dataclass(frozen=True)
class LabelSet:
    """The classes of a data set, in the order of their train ids 0..K-1.

    Attributes:
        name: e.g. ``"ade20k_150"``.
        tag: name in tables of results, e.g. ``"A-150"``.
        title: description in one line.
        source: origin of the names.
        ignore_label: pixel value of ignored pixels.
        names: K unique names without leading and trailing blanks.
        registry_names: K names verbatim as the published systems register them (blanks and commas kept).
        synonyms: K tuples of text queries, the main one first; the score of a class is the maximum over them.
        dataset_ids: K numbers of the raw annotation, None where there is none.
        splits: train ids by name of a subset: ``base`` and ``novel``, or classes by frequency; mostly empty.
        background: treatment of pixels outside all things, with class names as queries: ``"none"``, no special
            treatment; ``"ignored"``; or a class of its own, queried by its name (``"word"``), by ``"leftover words"``
            (a pixel with one of them is background), or by ``"synonyms"`` (the maximum over the name and the leftover
            words).
        background_id: class of these pixels, None if they have none.
        background_words: the leftover words (OpenSeg, specification 7.4).
    """

    name: str
    tag: str
    title: str
    source: str
    ignore_label: int
    names: tuple[str, ...]
    registry_names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]
    dataset_ids: tuple[int | None, ...]
    splits: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False)
    background: str = "none"
    background_id: int | None = None
    background_words: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


@functools.cache
def label_set_names() -> tuple[str, ...]:
    """Return the sorted names of all label sets, including those of :mod:`ovseg.vocabulary.derived`."""
    files = (entry.name for entry in _FOLDER.iterdir())
    return tuple(sorted([*DERIVED, *(name.removesuffix(".json") for name in files if name.endswith(".json"))]))


@functools.cache
def label_set(name: str) -> LabelSet:
    """Read one label set.

    Raises:
        OvsegError: there is no such label set; the message suggests similar names.
    """
    if name not in label_set_names():
        near = difflib.get_close_matches(name.casefold().replace("-", "_"), label_set_names(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(label_set_names())}"
        raise OvsegError(f"there is no label set {name!r}: {hint}")
    data = DERIVED[name](_read) if name in DERIVED else _read(name)
    classes = data["classes"]
    return LabelSet(
        name=name,
        tag=data["tag"],
        title=data["title"],
        source=data["source"],
        ignore_label=data["ignore_label"],
        names=tuple(c["name"] for c in classes),
        registry_names=tuple(c.get("registry_name", c["name"]) for c in classes),
        synonyms=tuple(tuple(c.get("synonyms", [c["name"]])) for c in classes),
        dataset_ids=tuple(c["dataset_id"] for c in classes),
        splits={split: tuple(members) for split, members in data.get("splits", {}).items()},
        background=data.get("background", "none"),
        background_id=data.get("background_id"),
        background_words=tuple(data.get("background_words", ())),
    )


def _read(name: str) -> dict[str, Any]:
    return json.loads(_FOLDER.joinpath(f"{name}.json").read_text(encoding="utf-8"))
