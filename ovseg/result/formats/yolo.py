"""Ultralytics YOLO's segmentation format: https://docs.ultralytics.com/datasets/segment/.

A line per polygon: index of the word, then x and y in turn as shares of the width and height. It has no scores and no
holes: slits lead to holes (:meth:`ovseg.result.polygons.Outline.joined`).
"""

from __future__ import annotations

import json

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


def write_yolo(labelled: LabelledSet) -> None:
    """Write ``data.yaml``, a text file in ``labels/`` and the image in ``images/`` for each image."""
    for image in labelled.images:
        write_text(labelled.path(image, "labels", ".txt"), yolo_lines(image, labelled.tolerance))
        labelled.add_image(image, "images")
    lines = [f"  {number}: {json.dumps(name, ensure_ascii=False)}\n" for number, name in enumerate(labelled.names)]
    text = f"path: {json.dumps(str(labelled.folder.absolute()))}\ntrain: images\nval: images\nnames:\n{''.join(lines)}"
    write_text(labelled.folder / "data.yaml", text)
