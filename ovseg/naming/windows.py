"""Overlapping windows of an image, and the average of what is found in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

Place = tuple[slice, slice]  # rows and columns


def spans(length: int, window: int, stride: int) -> list[slice]:
    """Return the windows of one row or column of ``length`` pixels; the last one is shifted back to its end.

    A row that is shorter than the window has one window, the row itself.
    """
    last = max(length - window, 0)
    return [slice(start, min(start + window, length)) for start in [*range(0, last, stride), last]]


def windows(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> Iterator[Place]:
    """Yield the windows of an image, row by row.

    Args:
        size: height and width in pixels of the image.
        window: of each window; 0 for the whole side.
        stride: distance of windows.
    """
    rows, columns = (
        spans(length, side or length, step or length) for length, side, step in zip(size, window, stride, strict=True)
    )
    yield from ((row, column) for row in rows for column in columns)


def average(parts: Iterable[tuple[Place, Tensor]], size: tuple[int, int]) -> Tensor:
    """Return the mean at each pixel of the scores of windows, (K, height, width).

    Args:
        parts: windows, which cover the image, each with its scores (K, h, w).
        size: height and width of the image.
    """
    total: Tensor | None = None
    for place, scores in parts:
        if total is None:
            total = scores.new_zeros(len(scores), *size)
            count = scores.new_zeros(size)
        total[(slice(None), *place)] += scores
        count[place] += 1
    return total.div_(count)
