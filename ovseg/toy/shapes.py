"""Outlines of the toy things, as polygons around the origin with a radius of about one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import cv2
import numpy as np

_FRACTION_BITS = 4  # sub-pixel bits that OpenCV's polygon filling takes


def _arc(radius: float, start: float = 0.0, stop: float = 2 * np.pi, points: int = 72) -> np.ndarray:
    angle = np.linspace(start, stop, points)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _polar(radius: Callable[[np.ndarray], np.ndarray], points: int = 240) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([radius(angle) * np.cos(angle), radius(angle) * np.sin(angle)], axis=1)


def _star() -> np.ndarray:
    angle = np.arange(10) * np.pi / 5 - np.pi / 2
    radius = np.where(np.arange(10) % 2 == 0, 1.1, 0.46)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _heart() -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    x = 16 * np.sin(angle) ** 3
    y = 13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)
    return np.stack([x, -y - 2], axis=1) / 15.5


def _moon() -> np.ndarray:
    outer, inner, shift = 1.0, 0.84, 0.56
    x = (outer**2 - inner**2 + shift**2) / (2 * shift)  # where the two circles cross
    y = np.sqrt(outer**2 - x**2)
    outside = _arc(outer, np.arctan2(y, x), 2 * np.pi - np.arctan2(y, x))
    inside = _arc(inner, 2 * np.pi - np.arctan2(y, x - shift), np.arctan2(y, x - shift)) + np.array([shift, 0])
    return np.concatenate([outside, inside]) + np.array([0.25, 0])


def _cross() -> np.ndarray:
    arm, half = 1.0, 0.34
    quarter = np.array([[half, half], [half, arm], [-half, arm], [-half, half]])
    turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


@cache
def outline(shape: str) -> tuple[np.ndarray, ...]:
    """Return contours of a shape, each (n, 2) float64; a second contour is a hole."""
    builders: dict[str, Callable[[], tuple[np.ndarray, ...]]] = {
        "circle": lambda: (_arc(0.9),),
        "square": lambda: (np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.78,),
        "triangle": lambda: (_arc(1.12, -np.pi / 2, 3 * np.pi / 2, 4)[:3],),
        "star": lambda: (_star(),),
        "ring": lambda: (_arc(0.98), _arc(0.5)),
        "cross": lambda: (_cross(),),
        "heart": lambda: (_heart(),),
        "moon": lambda: (_moon(),),
        "arrow": lambda: (
            np.array([[1.1, 0], [0.1, 0.88], [0.1, 0.34], [-0.95, 0.34], [-0.95, -0.34], [0.1, -0.34], [0.1, -0.88]]),
        ),
        "flower": lambda: (_polar(lambda angle: 0.42 + 0.58 * np.abs(np.cos(2.5 * angle)) ** 0.7),),
    }
    return builders[shape]()


def draw(shape: str, size: int, matrix: np.ndarray) -> np.ndarray:
    """Return the coverage of a shape on a square canvas.

    Args:
        shape: a name of ``classes.SHAPES``.
        size: side of the canvas in pixels.
        matrix: (2, 2) float, from unit coordinates to pixels around the centre of the canvas.

    Returns:
        (size, size) uint8, 255 inside, anti-aliased at the rim.
    """
    canvas = np.zeros((size, size), np.uint8)
    centre = (size - 1) / 2
    contours = [
        np.round((points @ matrix.T + centre) * 2**_FRACTION_BITS).astype(np.int32) for points in outline(shape)
    ]
    return cv2.fillPoly(canvas, contours, 255, lineType=cv2.LINE_AA, shift=_FRACTION_BITS)
