"""A palette of well distinguishable colours for words."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import cv2
import numpy as np
import supervision as sv

# colours of Okabe and Ito, distinguishable with any kind of colour vision
_FIRST_COLORS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#F0E442", "#D55E00")
_COUNT = 128
_LIGHTNESS = (25, 92)  # CIE L*; excludes black and white


def colors_of(labels: Iterable[int], before: Mapping[int, sv.Color] = MappingProxyType({})) -> dict[int, sv.Color]:
    """Return ``before`` with the next free colour of the palette for each new label, in ascending order."""
    new = sorted(set(labels) - before.keys())
    return {**before, **{label: word_color(place) for place, label in enumerate(new, start=len(before))}}


def word_color(place: int) -> sv.Color:
    """Return the colour at a position of the palette, modulo its size."""
    red, green, blue = _palette()[place % _COUNT].tolist()
    return sv.Color(red, green, blue)


@functools.cache
def _palette() -> np.ndarray:
    """Return the palette, (128,3) uint8 RGB.

    After the given first colours, each one is the colour farthest from all previous ones in CIE L*a*b*.
    """
    levels = np.linspace(0, 255, 12).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    lightness = _lab(grid)[:, 0]
    grid = grid[(lightness > _LIGHTNESS[0]) & (lightness < _LIGHTNESS[1])]
    chosen = [np.array(sv.Color.from_hex(color).as_rgb(), np.uint8) for color in _FIRST_COLORS]
    candidates = _lab(grid)
    nearest = np.full(len(grid), np.inf)
    for place in range(_COUNT):
        if place == len(chosen):
            chosen.append(grid[nearest.argmax()])
        nearest = np.minimum(nearest, np.linalg.norm(candidates - _lab(chosen[place]), axis=1))
    return np.stack(chosen)


def _lab(rgb: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(rgb.reshape(1, -1, 3).astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
