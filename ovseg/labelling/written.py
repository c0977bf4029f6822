"""Lists of the files that a format has for single images, to remove those of images that are gone."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TextIO

from ovseg.io.files import explained_writing, write_text

PATTERN = "files-{}.jsonl"


class WrittenFiles:
    """The files of a format: names are added to its list before they are written, so that any end of a run keeps it.

    Args:
        list_file: a name per line, as JSON; those of earlier runs are in it.
        folder: of the format, which the names are relative to.
    """

    def __init__(self, list_file: Path, folder: Path):
        self.list_file, self.folder = list_file, folder
        self._before = _read(list_file)
        self._now: dict[str, None] = {}
        self._file: TextIO

    def announce(self, path: Path) -> None:
        """Add a file that is about to be written."""
        name = path.relative_to(self.folder).as_posix()
        if name not in self._now and name not in self._before:
            with explained_writing(self.list_file):
                self._file.write(_line(name))
                self._file.flush()
        self._now[name] = None

    @contextlib.contextmanager
    def replaced(self) -> Iterator[WrittenFiles]:
        """Remove the files of earlier runs that the block did not announce, if it succeeds; no others."""
        with explained_writing(self.list_file):
            self._file = self.list_file.open("a", encoding="ascii")
            self._file.write("\n")  # behind an unfinished line
        with contextlib.closing(self._file):
            yield self
        for name in self._before.keys() - self._now.keys():
            with explained_writing(self.folder / name), contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(self.folder / name)
        write_text(self.list_file, "".join(map(_line, self._now)))


def _line(name: str) -> str:
    return json.dumps(name) + "\n"


def _read(list_file: Path) -> dict[str, None]:
    """Return the names of a list; damaged ones, and those that lead out of the folder, are left out."""
    names = {}
    with contextlib.suppress(FileNotFoundError):
        for line in list_file.read_bytes().splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                name = json.loads(line)
                if isinstance(name, str) and name and not {"..", "/"} & {*PurePosixPath(name).parts}:
                    names[name] = None
    return names
