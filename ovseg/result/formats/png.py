"""Label maps as PNG files, and their description as a data set of ovseg (docs/your_data.md)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ovseg.errors import OvsegError
from ovseg.io.files import atomic_path, write_text
from ovseg.io.images import png_options, save_image
from ovseg.result.formats.labelled_set import LabelledSet

LARGEST = 65535  # words


def save_label_map(label_map: np.ndarray, count: int, path: Path, **options: Any) -> None:
    """Write a label map as grey values: 8 bit, unlabelled 255; 16 bit, unlabelled 65535, with more than 255 words.

    Args:
        label_map: (H,W) integers, negative for unlabelled.
        count: number of words.
        options: of Pillow, such as ``compress_level``.

    Raises:
        OvsegError: there are more than 65535 words, or the file cannot be written.
    """
    image = label_image(label_map, count)
    with atomic_path(path) as temporary:
        save_image(image, temporary, **options)


def label_image(label_map: np.ndarray, count: int) -> Image.Image:
    """Return a label map as the image that :func:`save_label_map` writes."""
    if count > LARGEST:
        raise OvsegError(f"a label map PNG holds at most {LARGEST} words, and there are {count}")
    bits, blank = grey_values(count)
    return Image.fromarray(np.where(label_map < 0, blank, label_map).astype(bits))


def grey_values(count: int) -> tuple[type, int]:
    """Return the type of the values of a label map of so many words, and the value of unlabelled pixels."""
    return (np.uint8, 255) if count <= 255 else (np.uint16, 65535)


def write_png(labelled: LabelledSet) -> None:
    """Write the label map of each image to ``masks/``, and ``dataset.yaml``, for ``ovseg check`` and training."""
    for image in labelled.images:
        path = labelled.path(image, "masks", ".png")
        save_label_map(image.label_map(), len(labelled.names), path, **png_options(4))
    description = {
        "images": os.path.abspath(labelled.root),
        "masks": "masks",
        "classes": list(labelled.names),
        "ignore_label": grey_values(len(labelled.names))[1],
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in description.items()]
    write_text(labelled.folder / "dataset.yaml", "".join(lines))
