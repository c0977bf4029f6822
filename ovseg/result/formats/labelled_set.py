"""What is written as a data set: images with their regions, and helpers that several formats share."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from ovseg.io.files import atomic_path
from ovseg.result.regions import LabelledImage


@dataclass(frozen=True)
class LabelledSet:
    """Labelled images of one folder, and where and how they are written.

    Attributes:
        images: with regions as they are to be written; iterated once by each format.
        names: K words.
        root: folder of the images, which their names are relative to.
        folder: folder of the format's files.
        tolerance: of polygons, pixels; see :func:`ovseg.result.polygons.outline_of`.
        model: name of the model, for formats that record it.
        copy_images: formats that have the images in their own folder get copies; otherwise symbolic links.
        announce: called with each file of a single image before it is written.
    """

    images: Iterable[LabelledImage]
    names: tuple[str, ...]
    root: Path
    folder: Path
    tolerance: float = 1.0
    model: str = "ovseg"
    copy_images: bool = False
    announce: Callable[[Path], Any] = lambda path: None

    def path(self, image: LabelledImage, folder: str, suffix: str) -> Path:
        """Return the file to write for an image in a subfolder of the format's folder, with another suffix."""
        path = self.folder / folder / PurePosixPath(image.name).with_suffix(suffix)
        self.announce(path)
        return path

    def relative_image(self, image: LabelledImage, file: Path) -> str:
        """Return the path of an image's file from the folder of ``file``, with ``/``; absolute on another drive."""
        place, name = os.path.split(self.root / image.name)
        path = os.path.join(os.path.realpath(place), name)  # the system goes up from the real folder, not from a link
        with contextlib.suppress(ValueError):
            path = os.path.relpath(path, os.path.realpath(file.parent))
        return path.replace(os.sep, "/")

    def add_image(self, image: LabelledImage, folder: str) -> None:
        """Put the file of an image below a subfolder of the format's folder, as a copy or a symbolic link.

        Where the system allows no links, it is a copy. What is there already is replaced.
        """
        target = self.folder / folder / image.name
        self.announce(target)
        with atomic_path(target) as temporary:
            if not self.copy_images:
                with contextlib.suppress(OSError, NotImplementedError):
                    temporary.symlink_to(self.relative_image(image, target))
            if not temporary.is_symlink():
                shutil.copyfile(self.root / image.name, temporary)


@contextlib.contextmanager
def json_list(path: Path, head: Mapping[str, Any], key: str) -> Iterator[tuple[JsonList, dict[str, Any]]]:
    """Write a JSON object with one long list, whose entries are written as they come; atomic.

    Args:
        path: the file.
        head: entries before the list.
        key: of the list.

    Yields:
        what appends entries to the list, and a dict for the entries behind the list, written at the end.
    """
    tail: dict[str, Any] = {}
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write("{")
        for name, value in head.items():
            file.write(f"{json.dumps(name)}: {compact_json(value)},\n")
        file.write(f"{json.dumps(key)}: [")
        yield JsonList(file), tail
        file.write("\n]")
        for name, value in tail.items():
            file.write(f",\n{json.dumps(name)}: {compact_json(value)}")
        file.write("}\n")


class JsonList:
    """Entries of a list in a JSON file that is being written."""

    def __init__(self, file: TextIO):
        self._file = file
        self.count = 0

    def append(self, entry: Any) -> None:
        """Write an entry on a line."""
        self._file.write(f"{',' if self.count else ''}\n{compact_json(entry)}")
        self.count += 1


def compact_json(value: Any) -> str:
    """Return a value as JSON on one line, with letters of all scripts as they are."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def rounded(score: float) -> float:
    """Return a score with six digits behind the point."""
    return round(float(score), 6)
