"""Ultralytics YOLO's segmentation format: https://docs.ultralytics.com/datasets/segment/.

A line per polygon: index of the word, then x and y in turn as shares of the width and height. It has no scores and no
holes: slits lead to holes (:meth:`ovseg.result.polygons.Outline.joined`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from ovseg.io.files import write_text
from ovseg.result.formats.labelled_set import LabelledSet
from ovseg.result.regions import LabelledImage


def yolo_lines(image: LabelledImage, tolerance: float) -> str:
    """Return the content of an image's label file."""
    height, width = image.size
    lines = []
    for region in image.regions:
        points = image.outline(region, tolerance).joined() / np.array([width, height])
        lines.append(" ".join([str(region.label), *(f"{value:.6f}" for value in points.ravel().tolist())]))
    return "".join(f"{line}\n" for line in lines)


def label_name(image: str) -> PurePosixPath:
    """Return the label file of an image below a folder ``images``, where Ultralytics looks for it.

    The last folder of this name is replaced (``img2label_paths`` in ``ultralytics/data/utils.py``).
    """
    parts = list(PurePosixPath(image).parts)
    last = max(number for number, part in enumerate(parts[:-1]) if part == "images")
    parts[last] = "labels"
    return PurePosixPath(*parts).with_suffix(".txt")


def write_yolo(labelled: LabelledSet) -> None:
    """Write ``data.yaml``, a text file in ``labels/`` and the image in ``images/`` for each image.

    See :func:`label_name` for images in folders that are called ``images``, too.
    """
    for image in labelled.images:
        path = labelled.folder / label_name(f"images/{image.name}")
        labelled.announce(path)
        write_text(path, yolo_lines(image, labelled.tolerance))
        labelled.add_image(image, "images")
    write_text(labelled.folder / "data.yaml", yolo_description(labelled.names, str(labelled.folder.absolute())))


def yolo_description(names: Sequence[str], folder: str) -> str:
    """Return the content of ``data.yaml`` for a data set in a folder."""
    lines = [f"  {number}: {json.dumps(name, ensure_ascii=False)}\n" for number, name in enumerate(names)]
    return f"path: {json.dumps(folder)}\ntrain: images\nval: images\nnames:\n{''.join(lines)}"
