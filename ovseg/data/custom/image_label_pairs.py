"""Which image belongs to which label file: what the wildcards of both patterns stand for is the name they share."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ovseg.data.custom.description import Description
from ovseg.data.custom.matching import has_wildcard, match_files, split_suffix
from ovseg.data.custom.names import path_parts
from ovseg.errors import OvsegError
from ovseg.io.files import is_dir
from ovseg.io.inputs import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Pair:
    """An image with its labels.

    Attributes:
        name: what both names share; with slashes for subfolders.
        image: absolute path.
        labels: the file that messages about the labels name.
        entry: what a reader needs besides, such as the image's part of a JSON file.
    """

    name: str
    image: Path
    labels: Path
    entry: Any = None

    @property
    def where(self) -> str:
        """The label file, for messages; with the image where one file has the labels of many."""
        return str(self.labels) if self.entry is None else f"{self.labels} ({self.image.name})"


@dataclass(frozen=True)
class Pairing:
    """The pairs of a data set, by name, and what has no partner.

    Attributes:
        pairs: with image and labels.
        images_alone: images without labels.
        labels_alone: label files without an image; for JSON files the names of images that are not there.
        absent: names of the split's list that have neither.
        homeless: annotations of a JSON file that belong to no image of it, a sentence each.
    """

    pairs: tuple[Pair, ...]
    images_alone: tuple[str, ...] = ()
    labels_alone: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    homeless: tuple[str, ...] = ()


def find(own: Description, key: str, suffixes: Collection[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Files that the patterns of a key match, by the name that an image shares with its labels.

    The name is what the wildcards of the pattern stand for, without the file's extension:
    ``val/*/*_leftImg8bit.png`` finds ``val/bonn/7_leftImg8bit.png`` and calls it ``bonn/7``. A folder stands for all
    files below it.

    Args:
        key: a field of the description that holds patterns.
        suffixes: extensions that count where the pattern leaves them open.

    Raises:
        OvsegError: a pattern without a wildcard, no match at all, or two files of one name; says what is there instead.
    """
    found: dict[str, Path] = {}
    for pattern in getattr(own, key):
        for name, path in _matches(own, key, pattern, suffixes):
            if found.setdefault(name, path) != path:
                raise own.error(key, f"{found[name]} and {path} have the same name {name!r}: keep one, or narrow {key}")
    if not found:
        patterns = ", ".join(map(repr, getattr(own, key)))
        raise own.error(key, f"no file matches {patterns} in {own.root}; {_what_is_there(own, getattr(own, key)[0])}")
    return dict(sorted(found.items()))


def pair(own: Description, images: Mapping[str, Path], labels: Mapping[str, Path]) -> Pairing:
    """Put images and label files of the same name together; with a list of names only those.

    Raises:
        OvsegError: there is no pair; shows names of both sides.
    """
    names = images.keys() | labels.keys() if own.names is None else split_names(own)
    both = [name for name in names if name in images and name in labels]
    if not both:
        raise own.error(own.kind, _no_pair(own, sorted(images), sorted(labels)))
    return Pairing(
        tuple(Pair(name, images[name], labels[name]) for name in sorted(both)),
        tuple(sorted(str(images[name]) for name in names if name in images and name not in labels)),
        tuple(sorted(str(labels[name]) for name in names if name in labels and name not in images)),
        tuple(sorted(name for name in names if name not in images and name not in labels)),
    )


def _matches(own: Description, key: str, pattern: str, suffixes: Collection[str]) -> list[tuple[str, Path]]:
    try:
        found = match_files(own.root, pattern, suffixes)
    except OvsegError as error:
        raise own.error(key, str(error)) from error
    if any(not match.groups for match in found):
        raise own.error(key, f"{pattern!r} has no *, which stands for the name that an image shares with its labels")
    return [("/".join(group for group in match.groups if group), match.path) for match in found]


def split_names(own: Description) -> list[str]:
    """What the split's list names, written as :func:`find` writes names."""
    return list(dict.fromkeys(_without_suffix("/".join(path_parts(name))) for name in own.names or ()))


def _without_suffix(name: str) -> str:
    stem, suffix = split_suffix(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def _what_is_there(own: Description, pattern: str) -> str:
    """The folder in which a pattern starts to find nothing, and what it holds."""
    parts = []
    for part in PurePosixPath(pattern).parts:
        if has_wildcard(part) or not is_dir(own.root / Path(*parts, part)):
            break
        parts.append(part)
    folder = own.root / Path(*parts)
    names = sorted(os.listdir(folder))
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"{folder} holds {shown or 'nothing'}"


def _no_pair(own: Description, images: Sequence[str], labels: Sequence[str]) -> str:
    def some(names: Sequence[str]) -> str:
        return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")

    text = (
        f"no image has labels: {', '.join(map(repr, own.images))} finds the names {some(images)} and "
        f"{', '.join(map(repr, getattr(own, own.kind)))} the names {some(labels)}"
    )
    if own.names is not None and set(images) & set(labels):
        return f"{text}, but the list in `names` has {some(own.names)}"
    near = difflib.get_close_matches(images[0], labels[:1000], n=1, cutoff=0)
    return (
        f"{text}; the nearest to {images[0]!r} is {near[0]!r}: write what differs into the patterns, and * for the rest"
    )
