"""Where what is made of toy scenes is kept: the user's cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ovseg.errors import OvsegError
from ovseg.io.files import cache_dir

# Part of the cache's path: raise it when a scene of the same seed gets other pixels, labels or captions, so that nobody
# reads scenes of the old kind (tests/data/test_cache_formats.py notices).
FORMAT = 1


def scenes_folder() -> Path:
    """Return the folder of the user's cache that holds what is made of scenes."""
    return cache_dir() / "toy" / str(FORMAT)


def record_path(folder: Path, seed: int) -> Path:
    """Return the file that marks a scene as complete."""
    return folder / "records" / f"{seed:07d}.json"


def missing_scenes(folder: Path, seeds: Sequence[int]) -> list[int]:
    """Return the seeds of the scenes that are not complete in a folder."""
    return [seed for seed in seeds if not record_path(folder, seed).is_file()]


@contextlib.contextmanager
def cannot_keep(folder: Path) -> Iterator[None]:
    """Raise OvsegError in place of an OSError when scenes are written."""
    try:
        yield
    except OSError as error:
        raise OvsegError(
            f"cannot keep the toy scenes in {folder} ({error.strerror}): set OVSEG_CACHE to a folder that you can write"
        ) from error
