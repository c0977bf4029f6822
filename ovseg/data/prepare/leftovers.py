"""Half-written files of runs that were killed."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

_NAME = re.compile(r"\..+\.(\d+)\.tmp(\.\w+)?")  # as ovseg.files.atomic_path gives, with the process's number


def find_leftovers(folder: Path) -> list[Path]:
    """Temporary files in a folder, and in those below it, of processes that are gone."""
    return [
        Path(place, name)
        for place, _, names in os.walk(folder)
        for name in names
        if (found := _NAME.fullmatch(name)) and not _alive(int(found[1]))
    ]


def remove_leftovers(folder: Path) -> None:
    """Remove them."""
    for path in find_leftovers(folder):
        with contextlib.suppress(OSError):
            path.unlink()


def _alive(process: int) -> bool:
    if os.name == "nt":  # there, this question ends the process
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        pass
    return True
