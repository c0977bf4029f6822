"""The label sets of the known data sets: names as registered, and synonyms; package data, read when first asked for."""

from __future__ import annotations

import difflib
import functools
import json
from dataclasses import dataclass
from importlib import resources

from ovseg.errors import OvsegError

_FOLDER = resources.files(__package__).joinpath("label_sets")


@dataclass(frozen=True)
class LabelSet:
    """One data set's classes, in the order of their train ids 0..K-1.

    Attributes:
        name: the file's name, e.g. ``"ade20k_150"``.
        title: one line for people.
        source: where the names come from.
        ignore_label: the pixel value that is no class.
        registered_as: Detectron2 names of the data sets that use these classes.
        names: K names without blanks at their ends, unique.
        registry_names: K names verbatim as the published systems register them (blanks and commas kept).
        synonyms: K tuples of text queries, the leading one first; the score of a class is the maximum over them.
        dataset_ids: K numbers as in the raw annotation, None where there is none.
    """

    name: str
    title: str
    source: str
    ignore_label: int
    registered_as: tuple[str, ...]
    names: tuple[str, ...]
    registry_names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]
    dataset_ids: tuple[int | None, ...]


@functools.cache
def label_set_names() -> tuple[str, ...]:
    """Names of all label sets, sorted."""
    return tuple(sorted(entry.name[: -len(".json")] for entry in _FOLDER.iterdir() if entry.name.endswith(".json")))


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
    data = json.loads(_FOLDER.joinpath(f"{name}.json").read_text(encoding="utf-8"))
    classes = data["classes"]
    return LabelSet(
        name=data["name"],
        title=data["title"],
        source=data["source"],
        ignore_label=data["ignore_label"],
        registered_as=tuple(data["registered_as"]),
        names=tuple(c["name"] for c in classes),
        registry_names=tuple(c.get("registry_name", c["name"]) for c in classes),
        synonyms=tuple(tuple(c.get("synonyms", [c["name"]])) for c in classes),
        dataset_ids=tuple(c["dataset_id"] for c in classes),
    )
