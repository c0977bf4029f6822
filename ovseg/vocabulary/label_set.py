"""The label sets of the known data sets: names as registered, and synonyms; package data, read when first asked for.

The files hold facts, names and numbers, with their sources; synonyms are from an Apache-2.0 copy of OpenSeg's lists.
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

_FOLDER = resources.files(__package__).joinpath("label_sets")


@dataclass(frozen=True)
class LabelSet:
    """One data set's classes, in the order of their train ids 0..K-1.

    Attributes:
        name: e.g. ``"ade20k_150"``.
        tag: what tables of results call it, e.g. ``"A-150"``.
        title: one line for people.
        source: where the names come from.
        ignore_label: the pixel value that is no class.
        names: K names without blanks at their ends, unique.
        registry_names: K names verbatim as the published systems register them (blanks and commas kept).
        synonyms: K tuples of text queries, the leading one first; the score of a class is the maximum over them.
        dataset_ids: K numbers as in the raw annotation, None where there is none.
        splits: train ids by name of a subset: ``base`` and ``novel``, or classes by frequency; mostly empty.
        background: what becomes of pixels outside all things, when classes are asked by their names:
            ``"none"``, nothing special; ``"ignored"``, they do not count; or they are a class of their own, which is
            asked as the ``"word"`` that it is named, by ``"leftover words"`` (a pixel that gets one of them is
            background), or by ``"synonyms"`` (the name and the left-over words, the best of which counts).
        background_id: the class of those pixels, None where they have none.
        background_words: the left-over words (OpenSeg, spec 7.4).
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
    """Names of all label sets, sorted; those of :mod:`ovseg.vocabulary.derived` among them."""
    files = (entry.name for entry in _FOLDER.iterdir())
    return tuple(sorted([*DERIVED, *(name.removesuffix(".json") for name in files if name.endswith(".json"))]))


@functools.cache
def label_set(name: str) -> LabelSet:
    """Read one label set.

    Raises:
        OvsegError: no such label set; the message names the nearest ones.
    """
    if name not in label_set_names():
        near = difflib.get_close_matches(name.casefold().replace("-", "_"), label_set_names(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(label_set_names())}"
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
