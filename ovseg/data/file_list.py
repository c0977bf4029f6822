"""Files of a data set: found by their suffix, and identified by one checksum."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from ovseg.errors import OvsegError


def file_list_checksum(files: Iterable[str | os.PathLike]) -> str:
    """Return the SHA-256 of the stems of file names, sorted as byte strings, each with a newline.

    The rule by which the checksums of the published splits are made: equal sums mean the same images, wherever they
    lie and in whatever format.
    """
    stems = sorted(os.fsencode(os.path.splitext(os.path.basename(file))[0]) for file in files)
    return hashlib.sha256(b"".join(stem + b"\n" for stem in stems)).hexdigest()


def scan(folder: Path, suffix: str, recursive: bool = False) -> dict[str, os.DirEntry]:
    """Return the files of a folder that end in ``suffix``, by the rest of their names, without hidden ones.

    Args:
        folder: need not exist.
        suffix: as ``".png"`` or ``"_gtFine_labelIds.png"``.
        recursive: folders below, too; the keys are then relative paths with ``/``.

    Returns:
        Sorted by key. Asking an entry for its ``stat()`` costs little.
    """
    found: dict[str, os.DirEntry] = {}
    pending = [(folder, "")]
    while pending:
        place, prefix = pending.pop()
        try:
            entries = os.scandir(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            raise OvsegError(f"cannot read folder {place} ({error.strerror}): change its permissions") from error
        with entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.endswith(suffix):
                    found[prefix + entry.name.removesuffix(suffix)] = entry
                elif recursive and entry.is_dir():
                    pending.append((Path(entry.path), f"{prefix}{entry.name}/"))
    return dict(sorted(found.items()))
