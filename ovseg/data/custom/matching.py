"""Glob patterns that give what their wildcards stand for, whatever characters folders have in their names.

Python's ``glob`` takes a folder called ``[train]`` for a pattern, and does not find a name that is written in another
normal form of Unicode, as macOS and Linux write them; both are common in people's data. Here a name that is there
literally is taken literally, and names are compared after NFC.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ovseg.errors import OvsegError
from ovseg.vocabulary.reading import clean_text

_WILDCARD = re.compile(r"(\*+|\?|\[!?[^]]+\])")


class Match(NamedTuple):
    """A file, and what the wildcards of the pattern stand for, one after the other, with ``/`` between folders."""

    groups: tuple[str, ...]
    path: Path


def has_wildcard(text: str) -> bool:
    """Whether a pattern leaves something open."""
    return _WILDCARD.search(text) is not None


def split_suffix(path: str) -> tuple[str, str]:
    """Before and from the last dot of the last part."""
    suffix = PurePosixPath(path).suffix
    return path[: len(path) - len(suffix)], suffix


def match_files(root: Path, pattern: str, suffixes: Collection[str]) -> list[Match]:
    """Files that a pattern means; a folder means all files below it, ``**`` any number of folders.

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
    """Files below ``folder``; ``literal`` takes brackets for themselves."""
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
    """(path below ``folder``, path) of it and all folders within; links that lead back are not followed."""
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
    """What the wildcards of one part stand for in a name; None where it does not match."""
    if name.startswith(".") and not pattern.startswith("."):
        return None
    shape = "".join(_as_expression(piece, literal) for piece in _WILDCARD.split(pattern))
    match = re.fullmatch(shape, clean_text(name), re.DOTALL)
    return match and match.groups()


def _groups_of_file(pattern: str, name: str, suffixes: Collection[str], literal: bool) -> tuple[str, ...] | None:
    """As :func:`_groups`; extensions are no part of a name."""
    (stem, suffix), (name_stem, name_suffix) = split_suffix(pattern), split_suffix(clean_text(name))
    if not suffix or has_wildcard(suffix):
        if name_suffix.lower() not in suffixes:
            return None
    elif suffix != name_suffix:
        return None
    groups = _groups(stem, name_stem, literal)
    return groups if not suffix or _groups(f"x{suffix}", f"x{name_suffix}", literal) is not None else None


def _as_expression(piece: str, literal: bool) -> str:
    """A piece of a part as a regular expression; wildcards are groups."""
    if piece.startswith("*") and not piece.strip("*"):
        return "(.*)"
    if piece == "?":
        return "(.)"
    if not literal and len(piece) > 2 and piece.startswith("[") and piece.endswith("]"):
        inside = piece[1:-1]
        negated = "^" if inside.startswith("!") else ""
        return f"([{negated}{re.escape(inside.removeprefix('!')).replace(re.escape('-'), '-')}])"
    return re.escape(piece)
