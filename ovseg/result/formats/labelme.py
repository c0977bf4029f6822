"""labelme's JSON files, one per image: https://github.com/wkentaro/labelme.

labelme draws polygons through the middles of pixels (``labelme.utils.shape_to_mask``), so points are half a pixel
inside of the edges. Parts with holes, and parts whose polygon would have no area, are shapes of the type ``mask``. Each
shape has its ``score``, which labelme keeps among its other data.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ovseg.io.files import write_text
from ovseg.result.formats.labelled_set import LabelledSet, compact_json, rounded
from ovseg.result.polygons import simplified
from ovseg.result.regions import LabelledImage, Region

VERSION = "5.5.0"  # of labelme, whose form the files have


def labelme_dict(image: LabelledImage, tolerance: float, image_path: str) -> dict[str, Any]:
    """Return the content of an image's JSON file, larger shapes first.

    Args:
        image_path: path of the image from the folder of the JSON file.
    """
    height, width = image.size
    return {
        "version": VERSION,
        "flags": {},
        "shapes": [_shape(image, region, tolerance) for region in image.regions],
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def write_labelme(labelled: LabelledSet) -> None:
    """Write a JSON file for each image."""
    for image in labelled.images:
        path = labelled.path(image, "", ".json")
        content = labelme_dict(image, labelled.tolerance, labelled.relative_image(image, path))
        write_text(path, compact_json(content) + "\n")


def _shape(image: LabelledImage, region: Region, tolerance: float) -> dict[str, Any]:
    points = None if image.outline(region, 0).holes else _middles(region, tolerance)
    if points is None:
        left, top, width, height = region.box
        ends = [[left, top], [left + width - 1, top + height - 1]]
        place = {"points": ends, "shape_type": "mask", "mask": _png(region.mask)}
    else:
        place = {"points": points.tolist(), "shape_type": "polygon", "mask": None}
    shape = {"label": image.names[region.label], "group_id": None, "description": "", "flags": {}}
    return shape | place | {"score": rounded(region.score)}


def _middles(region: Region, tolerance: float) -> np.ndarray | None:
    """Return the polygon (N,2) through the middles of the outermost pixels, as integers; None if it has no area."""
    filled = region.mask.astype(np.uint8)
    contours, _ = cv2.findContours(filled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points = simplified(contours[0][:, 0], tolerance)
    if len(points) < 3 or cv2.contourArea(points) == 0:
        return None
    return points + np.array([region.left, region.top])


def _png(mask: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode("ascii")
