"""Raw files: finding and reading them, and what is said when they are not there or damaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ovseg.data.file_list import scan
from ovseg.errors import OvsegError, reason_of
from ovseg.io.images import open_image


class BadFile(OvsegError):
    """One file is damaged or not what it should be; the others may be fine."""


class NothingFound(OvsegError):
    """Files that should be below the root are not there; the command line adds the tree that it expects."""


def find_files(folder: Path, suffix: str, recursive: bool = False) -> dict[str, Path]:
    """Return paths of the files that :func:`scan` finds.

    Raises:
        NothingFound: the folder is missing or holds no such file.
    """
    if not folder.is_dir():
        raise NothingFound(f"folder {folder} is missing")
    if not (files := {name: Path(entry.path) for name, entry in scan(folder, suffix, recursive).items()}):
        raise NothingFound(f"no file in {folder} ends with {suffix}")
    return files


def find_splits(sources: Mapping[str, Path], chosen: Sequence[str] | None) -> list[str]:
    """Return the splits to convert: the chosen ones, else those whose source (a folder or file) exists.

    Raises:
        NothingFound: a chosen source is missing, or none is there.
    """
    found = [split for split in chosen or sources if sources[split].exists()]
    missing = [sources[split] for split in chosen or sources if split not in found]
    if missing and (chosen or not found):
        raise NothingFound(f"{' and '.join(map(str, missing))} {'is' if len(missing) == 1 else 'are'} missing")
    return found


def read_names(path: Path) -> list[str]:
    """Return the names in a list file, one per line, without blank lines.

    Raises:
        NothingFound: the file is missing or empty.
    """
    try:
        names = path.read_text(encoding="utf-8").split()
    except FileNotFoundError as error:
        raise NothingFound(f"list {path} is missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise OvsegError(f"list {path} cannot be read ({error}): unpack its archive again") from error
    if not names:
        raise NothingFound(f"list {path} is empty")
    return names


def raw_labels(path: Path) -> np.ndarray:
    """Return the values of an image file, including palette indices: (H,W), or (H,W,C) for colours.

    Raises:
        BadFile: the file is missing or damaged.
    """
    try:
        with open_image(path) as image:
            return np.array(image)
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise BadFile(f"cannot read {path} ({reason_of(error)}): unpack its archive again") from error
