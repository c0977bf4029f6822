"""Pairing of images and label files by the text that the wildcards of both patterns stand for.

Unlike in ``glob``, a name that exists literally, such as ``[train]``, is taken literally, and names are compared after
NFC, since macOS and Linux write different normal forms of Unicode.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ovseg.data.custom.description import Description
from ovseg.data.custom.names import path_parts
from ovseg.errors import OvsegError
from ovseg.io.files import is_dir
from ovseg.io.inputs import IMAGE_SUFFIXES
from ovseg.vocabulary.reading import clean_text

_WILDCARD = re.compile(r"(\*+|\?|\[!?[^]]+\])")


class Match(NamedTuple):
    """A file, and what the wildcards of the pattern stand for, one after the other, with ``/`` between folders."""

    groups: tuple[str, ...]
    path: Path


def has_wildcard(text: str) -> bool:
    return _WILDCARD.search(text) is not None


def split_suffix(path: str) -> tuple[str, str]:
    """Return a path before its suffix, and the suffix with its dot."""
    suffix = PurePosixPath(path).suffix
    return path[: len(path) - len(suffix)], suffix


def match_files(root: Path, pattern: str, suffixes: Collection[str]) -> list[Match]:
    """Return the files that a pattern means; a folder means all files below it, ``**`` any number of folders.

    Brackets that match nothing as a set of characters are taken literally, and backslashes that match nothing as
    slashes. Hidden files and folders are found only where the pattern says so.

    Args:
        root: folder that a relative pattern starts from; its name is not looked at.
        suffixes: extensions that count, lower case, where the pattern leaves them open.

    Raises:
        OvsegError: a folder that cannot be listed, or the whole file system.
    """
    parts = PurePosixPath(clean_text(pattern)).parts
    if parts and parts[0].startswith("/"):
        root, parts = Path(parts[0]), parts[1:]
        if not parts or parts[0] == "**":
            raise OvsegError(f"{pattern.strip()} means every file of this machine: name a folder")
    if not (found := list(_descend(root, parts, suffixes, False))) and "[" in pattern:
        found = list(_descend(root, parts, suffixes, True))
    return found or ("\\" in pattern and match_files(root, pattern.replace("\\", "/"), suffixes)) or []


def _descend(folder: Path, parts: Sequence[str], suffixes: Collection[str], literal: bool) -> Iterator[Match]:
    """Yield matches below ``folder``; with ``literal``, brackets stand for themselves."""
    part, *rest = parts or ("**",)
    if part == "..":
        yield from _descend(folder / part, rest, suffixes, literal)
    elif part == "**":
        for below, place in _folders(folder):
            for groups, path in _descend(place, rest or ("*",), suffixes, literal):
                yield Match((below, *groups) if below else groups, path)
    else:
        entries = _list(folder)
        exact = [entry for entry in entries if clean_text(entry.name) == part and part.strip("*?")]
        for entry in exact or entries:
            if rest or (exact and os.path.isdir(entry)):
                groups = () if exact else _groups(part, entry.name, literal)
                if groups is not None and os.path.isdir(entry):
                    for more, path in _descend(folder / entry.name, rest or ("**", "*"), suffixes, literal):
                        yield Match((*groups, *more), path)
            elif (groups := () if exact else _groups_of_file(part, entry.name, suffixes, literal)) is None:
                continue
            elif os.path.isfile(entry):
                yield Match(groups, folder / entry.name)


def _folders(
    folder: Path, below: str = "", parents: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[str, Path]]:
    """Yield (path below ``folder``, path) of it and all folders in it; links that lead back are not followed."""
    found = folder.stat()
    if (found.st_dev, found.st_ino) in parents:
        return
    yield below, folder
    for entry in _list(folder):
        if not entry.name.startswith(".") and os.path.isdir(entry):
            place = f"{below}/{clean_text(entry.name)}".lstrip("/")
            yield from _folders(folder / entry.name, place, parents | {(found.st_dev, found.st_ino)})


def _list(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise OvsegError(f"cannot look into the folder {folder} ({error.strerror}): check its permissions") from error


def _groups(pattern: str, name: str, literal: bool) -> tuple[str, ...] | None:
    """Return what the wildcards of one part stand for in a name; None if it does not match."""
    if name.startswith(".") and not pattern.startswith("."):
        return None
    shape = "".join(_as_expression(piece, literal) for piece in _WILDCARD.split(pattern))
    match = re.fullmatch(shape, clean_text(name), re.DOTALL)
    return match and match.groups()


def _groups_of_file(pattern: str, name: str, suffixes: Collection[str], literal: bool) -> tuple[str, ...] | None:
    """Return :func:`_groups` of the name of a file without its extension, which must match, too."""
    (stem, suffix), (name_stem, name_suffix) = split_suffix(pattern), split_suffix(clean_text(name))
    if not suffix or has_wildcard(suffix):
        if name_suffix.lower() not in suffixes:
            return None
    elif suffix != name_suffix:
        return None
    groups = _groups(stem, name_stem, literal)
    return groups if not suffix or _groups(f"x{suffix}", f"x{name_suffix}", literal) is not None else None


def _as_expression(piece: str, literal: bool) -> str:
    """Return a piece of a part as a regular expression; wildcards are groups."""
    if piece.startswith("*") and not piece.strip("*"):
        return "(.*)"
    if piece == "?":
        return "(.)"
    if not literal and len(piece) > 2 and piece.startswith("[") and piece.endswith("]"):
        inside = piece[1:-1]
        negated = "^" if inside.startswith("!") else ""
        return f"([{negated}{re.escape(inside.removeprefix('!')).replace(re.escape('-'), '-')}])"
    return re.escape(piece)


@dataclass(frozen=True)
class Pair:
    """An image with its labels.

    Attributes:
        name: what both names share; with slashes for subfolders.
        image: absolute path.
        labels: the file that messages about the labels name.
        entry: what a reader also needs, such as the image's part of a JSON file.
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
    """Return the files that the patterns of a key match, by the name that an image shares with its labels.

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
        with own.errors_of(key):
            matches = match_files(own.root, pattern, suffixes)
        if not all(match.groups for match in matches):
            raise own.error(
                key, f"{pattern!r} has no *, which stands for the name that an image shares with its labels"
            )
        for groups, path in matches:
            name = "/".join(filter(None, groups))
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


def split_names(own: Description) -> list[str]:
    """Return the names of the split's list, written as :func:`find` writes names."""
    names = ["/".join(path_parts(name)) for name in own.names or ()]
    parts = [(name, *split_suffix(name)) for name in names]
    return list(dict.fromkeys(stem if suffix.lower() in IMAGE_SUFFIXES else name for name, stem, suffix in parts))


def _what_is_there(own: Description, pattern: str) -> str:
    """Return a clause with the folder in which a pattern ceases to match, and its content."""
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
