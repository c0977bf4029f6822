"""Folders of files that come with the package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def shipped(folder: str) -> Path:
    """Return a folder that comes with the package: ``"configs"`` or ``"weights"``.

    In a wheel it is in the package, in a clone next to it; the paths between the files of both folders are the same.
    """
    inside = _PACKAGE / folder
    return inside if inside.is_dir() else _PACKAGE.parent / folder
