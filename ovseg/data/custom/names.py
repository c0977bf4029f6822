"""Data sets whose name is the path of a YAML file, and comparison of names."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ovseg.config.per_dataset import is_path
from ovseg.vocabulary.reading import clean_text


def folder_name(name: str, others: Sequence[str] = ()) -> str:
    """Return the name of folders for results on a data set: its name, or the stem of its YAML file.

    Args:
        name: registered.
        others: data sets of the same run; where one has the same stem, a digest of the path is added.
    """
    if not is_path(name):
        return name
    path = Path(name)
    if any(other != name and (Path(other).stem if is_path(other) else other) == path.stem for other in others):
        return f"{path.stem}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    return path.stem


def text_key(text: str) -> str:
    """Return the text by which names, labels and categories are compared: casefolded, stripped, only visible."""
    return clean_text("".join(c for c in text if unicodedata.category(c) != "Cf")).casefold()


def path_parts(text: str) -> tuple[str, ...]:
    """Return the parts of a path of any system, after NFC, without drive, root, ``.`` and ``..``."""
    parts = PurePosixPath(clean_text(text).replace("\\", "/")).parts
    return tuple(part for part in parts if part not in ("/", "//", ".", "..") and not re.fullmatch("[A-Za-z]:", part))
