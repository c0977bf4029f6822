"""A hidden note in an output folder: from which sources its files were made, and how."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ovseg.io.files import atomic_path, file_digest

NAME = ".ovseg_prepare.json"

Look = tuple[int, int, int, int]  # bytes, mtime in ns, inode, ctime in ns: equal while a file is untouched
Sign = list  # of one source: its path from the note's folder, its Look and the SHA-256 of its content


def look_at(path: str | Path) -> Look:
    """Return what shows cheaply that a file is untouched.

    The time of modification alone does not: backups, rsync, tar and ``cp -p`` set it to whatever it was elsewhere.
    """
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ino, found.st_ctime_ns


@functools.lru_cache(maxsize=256)
def content_of(path: Path, look: Look) -> str:
    """Return the SHA-256 of a file; ``look`` is part of the key, so a file that all items share is read once."""
    return file_digest(path)


def signs_of(sources: Sequence[Path], folder: Path) -> list[Sign]:
    """Return the signs of an item's sources as a note in ``folder`` holds them."""
    # the look comes first: a file that is replaced meanwhile looks different the next time
    looks = [look_at(path) for path in sources]
    return [
        [os.path.relpath(path, folder), *look, content_of(path, look)]
        for path, look in zip(sources, looks, strict=True)
    ]


@dataclass
class Stamp:
    """The note of one folder.

    Attributes:
        recipe: changes when the same sources would give other files.
        made: name -> signs of the sources of the file.
        left_out: name -> signs of the sources that gave no file, every pixel being ignored.
    """

    recipe: str
    made: dict[str, list[Sign]] = field(default_factory=dict)
    left_out: dict[str, list[Sign]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Stamp | None:
        """Return the note in ``folder``, or None if there is none, or it is damaged.

        Entries of earlier versions, which noted no content, are dropped: their files are compared with their sources.
        """
        try:
            content = json.loads((folder / NAME).read_text(encoding="utf-8"))
            parts = [content.get("made", {}), content["left_out"]]
            return cls(str(content["recipe"]), *({n: list(s) for n, s in part.items() if _whole(s)} for part in parts))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def save(self, folder: Path) -> None:
        """Write the note.

        Raises:
            OvsegError: as :func:`ovseg.io.files.atomic_path`.
        """
        with atomic_path(folder / NAME) as temporary:
            temporary.write_text(json.dumps(vars(self), separators=(",", ":")), encoding="utf-8")

    def changed_source(self, folder: Path, name: str) -> Path | None:
        """Return a source of the file that is there and holds something else than when the file was made."""
        for path, *look, digest in self.made.get(name) or self.left_out.get(name) or ():
            source = Path(os.path.normpath(folder / path))
            try:
                now = look_at(source)
                if list(now) != look and content_of(source, now) != digest:
                    return source
            except (OSError, ValueError):
                continue  # raw files may be removed once all is prepared
        return None


def _whole(signs: Sequence[Sign]) -> bool:
    return len(signs) > 0 and all(
        isinstance(sign, list) and len(sign) == 6 and isinstance(sign[0], str) and isinstance(sign[5], str)
        for sign in signs
    )
