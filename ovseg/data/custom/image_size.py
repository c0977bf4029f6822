"""Sizes of images from their headers, and what a camera's orientation does to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ovseg.data.custom.image_label_pairs import Pair
from ovseg.io.images import open_image, orientation_of, read_image


def image_size(path: Path) -> tuple[int, int]:
    """(height,width) of an image once turned as its EXIF data say.

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
    """:func:`ovseg.io.images.orientation_of` of a file; 1 where it cannot be read."""
    try:
        with open_image(path) as image:
            return orientation_of(image)
    except Exception:  # as above
        return 1


def different_sizes(pair: Pair, labels: Sequence[int], image: Sequence[int]) -> str:
    """A sentence on labels and an image of different (height,width)."""
    text = f"{pair.where} has {labels[1]}x{labels[0]} pixels, but its image {pair.image} {image[1]}x{image[0]}"
    if tuple(labels) == tuple(image[::-1]) and orientation(pair.image) >= 5:
        text += " once turned as its EXIF data say: turn the labels, too, or take the orientation out of the image"
    return text
