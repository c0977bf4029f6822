"""Data sets whose name is the path of a YAML file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

_SUFFIXES = (".yaml", ".yml")


def is_own(name: str) -> bool:
    """Whether a data set's name is the path of a YAML file (which need not be there)."""
    return name.lower().endswith(_SUFFIXES)


def folder_name(name: str, others: Sequence[str] = ()) -> str:
    """What folders for results on a data set are called: its name, or the stem of its YAML file.

    Args:
        name: registered.
        others: data sets of the same run; where one has the same stem, a digest of the path is added.
    """
    if not is_own(name):
        return name
    path = Path(name)
    if any(other != name and (Path(other).stem if is_own(other) else other) == path.stem for other in others):
        return f"{path.stem}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    return path.stem
