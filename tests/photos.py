"""Folders of images for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_photos(folder: Path, count: int) -> list[str]:
    """Write images of random pixels and of several sizes, and return their file names, which have a space."""
    rng = np.random.default_rng(0)
    names = [f"IMG {number:02d}.png" for number in range(count)]
    for name in names:
        size = (int(rng.integers(40, 90)), int(rng.integers(40, 90)), 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / name)
    return names
