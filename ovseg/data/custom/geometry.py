"""Numbers of JSON files, checked before anything is drawn: one coordinate of 1e9 takes all memory, or the process."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from ovseg.data.custom.pairing import Pair
from ovseg.errors import OvsegError
from ovseg.io.images import LARGEST_IMAGE, open_image, orientation_of, read_image
from ovseg.io.run_lengths import decode_mask


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of an image, turned according to its EXIF data.

    Raises:
        OvsegError: it cannot be read.
    """
    try:
        with open_image(path) as image:
            width, height = image.size
    except Exception:  # Pillow raises almost anything on damaged data; the sentence is there already
        return read_image(path).shape[:2]
    return (width, height) if orientation(path) >= 5 else (height, width)


def orientation(path: Path) -> int:
    """Return :func:`ovseg.io.images.orientation_of` of a file; 1 if it cannot be read."""
    try:
        with open_image(path) as image:
            return orientation_of(image)
    except Exception:  # as above
        return 1


def different_sizes(pair: Pair, labels: Sequence[int], image: Sequence[int]) -> str:
    """Return a sentence on labels and an image of different (height, width)."""
    text = f"{pair.where} has {labels[1]}x{labels[0]} pixels, but its image {pair.image} {image[1]}x{image[0]}"
    if tuple(labels) == tuple(image[::-1]) and orientation(pair.image) >= 5:
        text += " once turned as its EXIF data say: turn the labels, too, or take the orientation out of the image"
    return text


_FURTHEST = 10  # times the longer side of an image, but 10,000 pixels at least
_LARGEST_RATIO = 16  # of the pixels of labels and their image: sizes that differ less are compared by others

Key = TypeVar("Key", bound=Hashable)


class NoArea(Exception):
    """A shape that covers no pixel, such as an accidental click: left out, counted and named, but no mistake."""


class Ids(Generic[Key]):
    """Finds what an id refers to: the same value, else the only one that is written in the same way (``"1"`` for 1).

    Args:
        known: ids that there are.
    """

    def __init__(self, known: Iterable[Key]):
        self._known = {key: key for key in known}
        self._written: dict[str, Key | None] = {}
        for key in self._known:
            text = _written(key)
            self._written[text] = None if text in self._written else key

    def find(self, value: Any) -> Key | None:
        """Return the id that ``value`` means; None for no id, and for several that are written like it."""
        if isinstance(value, Hashable) and value in self._known:
            return self._known[value]
        return self._written.get(_written(value))


def _written(value: Any) -> str:
    return str(value).strip().removesuffix(".0")


def whole_number(value: Any, what: str) -> int:
    """Return the int that a JSON value stands for, written as 3, 3.0 or "3".

    Raises:
        ValueError: it is none; says what it should be.
    """
    if isinstance(value, str) and value.strip().removeprefix("-").isdecimal() and len(value) < 20:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or value % 1:
        raise ValueError(f"{what} is {str(value)[:40]!r}, not a whole number")
    if abs(value) >= 2**53:  # beyond what JSON's numbers hold exactly
        raise ValueError(f"{what} is {value:.3g}, which is too large")
    return int(value)


def labelled_size(height: Any, width: Any, image: Path) -> tuple[int, int]:
    """Return (height, width) of labels according to a JSON file, else those of the image.

    Raises:
        OvsegError: no size of an image, or the image cannot be read.
    """
    if not height or not width:
        height, width = image_size(image)
    largest = LARGEST_IMAGE
    try:
        size = whole_number(height, "the height"), whole_number(width, "the width")
    except ValueError as error:
        raise OvsegError(f"the size of {image} is unusable: {error}") from error
    with contextlib.suppress(OvsegError):  # an image that cannot be read is found where it is read
        largest = _LARGEST_RATIO * math.prod(image_size(image))
    if min(size) < 1 or math.prod(size) > largest:
        raise OvsegError(
            f"{image} has {size[1]}x{size[0]} pixels by its labels, which is impossible: correct the size there"
        )
    return size


def checked_points(values: Any, size: Sequence[int]) -> np.ndarray:
    """Return (N,2) float64, x and y, of a list of numbers or of pairs.

    Args:
        size: height and width of the image.

    Raises:
        ValueError: text or other things among the numbers, an odd number of them, NaN, infinities, or a point far
            outside the image.
    """
    try:
        points = np.asarray(values)
    except ValueError:  # lists of several lengths
        raise ValueError("its points are not pairs of numbers") from None
    if points.size == 0:
        return np.zeros((0, 2))
    if points.dtype.kind not in "iuf" or points.ndim > 2 or (points.ndim == 2 and points.shape[1] != 2):
        raise ValueError("its points are not pairs of numbers")
    if points.size % 2:
        raise ValueError("it has an odd number of coordinates")
    points = points.reshape(-1, 2).astype(np.float64)
    limit = _FURTHEST * max(*size, 1000)
    if not (np.abs(points) <= limit).all():  # neither is NaN
        x, y = points[~(np.abs(points) <= limit).all(axis=1)][0]
        raise ValueError(f"the point ({x:g}, {y:g}) is far outside of its image of {size[1]}x{size[0]} pixels")
    return points


def refuse_fractions(points: np.ndarray) -> None:
    """Raise NoArea where points, one at least, are within the first pixel: other formats write shares of the size."""
    if points.min() >= 0 and points.max() <= 1 and (points % 1).any():
        raise NoArea("whose coordinates are all from 0 to 1: they must be pixels, not fractions of the image's size")


def checked_run_lengths(shape: Mapping[str, Any], size: Sequence[int]) -> np.ndarray:
    """Return the (H,W) bool mask of COCO's run lengths.

    Args:
        shape: ``size`` [height, width], and ``counts``, a list of numbers or COCO's compressed text.
        size: height and width of the image.

    Raises:
        NoArea: there are no counts.
        ValueError: a size or counts that are not those of the image.
    """
    counts, stated = shape.get("counts"), shape.get("size")
    if counts is None or len(counts) == 0:
        raise NoArea("without run lengths")
    if not isinstance(stated, list) or len(stated) != 2:
        raise ValueError(f"its run lengths have the size {str(stated)[:40]!r} instead of [height, width]")
    height, width = (whole_number(side, "a side of its run lengths") for side in stated)
    if [height, width] != list(size):
        raise ValueError(f"its run lengths are of {width}x{height} pixels, but its image has {size[1]}x{size[0]}")
    return decode_mask(counts, height, width)
