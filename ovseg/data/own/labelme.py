"""labelme's JSON files as label maps.

Shapes are drawn as labelme's own ``shape_to_mask`` draws them, with Pillow, later ones over earlier ones.
``supervision`` (0.31) reads labelme, too, but leaves out circles and masks, and holds the masks of all images in memory
at once.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ovseg.data.own.classes import Classes
from ovseg.data.own.pairs import Pair
from ovseg.data.own.values import UNLISTED, Labels
from ovseg.errors import OvsegError
from ovseg.images import open_image, read_image

_OFFSET = 2  # canvas value of class 0, since drawing wants no negative numbers


class LabelmeLabels:
    """Reads the labels of one image; labels are class names or synonyms, or what ``ids`` says."""

    def __init__(self, classes: Classes):
        self.classes = classes

    def __call__(self, pair: Pair) -> Labels:
        content = _read(pair.labels)
        width, height = _size(content, pair)
        canvas = Image.new("I", (width, height), self.classes.background + _OFFSET)
        names: dict[str, int] = {}
        for number, shape in enumerate(content["shapes"], start=1):
            try:
                label = str(shape["label"]).strip()
                area = _area(shape, (width, height))
            except (KeyError, TypeError, ValueError, IndexError, OSError) as error:
                raise OvsegError(
                    f"{pair.labels}: shape {number} is unusable ({type(error).__name__}: {error})"
                ) from error
            index = self.classes.table.get(label.casefold(), self.classes.unlisted)
            if area is None:
                if self.classes.unlisted == UNLISTED:
                    names[f"shape {number}, a {shape['shape_type']}, which has no area"] = 0
                continue
            if index == UNLISTED:
                name = f"label {label!r}"
                names[name] = names.get(name, 0) + int(np.count_nonzero(area))
            canvas.paste(index + _OFFSET, mask=area)
        return Labels(np.asarray(canvas, dtype=np.int32) - _OFFSET, names)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise OvsegError(f"labelme file {path} cannot be read ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise OvsegError(f"{path} is no labelme file: it has no list of shapes")
    return content


def _size(content: Mapping[str, Any], pair: Pair) -> tuple[int, int]:
    """(width,height) of the labelled image, as the file says; old files do not say it, so the image is read."""
    width, height = content.get("imageWidth"), content.get("imageHeight")
    if not width or not height:
        height, width = read_image(pair.image).shape[:2]
    return int(width), int(height)


def _area(shape: Mapping[str, Any], size: tuple[int, int]) -> Image.Image | None:
    """The pixels of a shape, mode L with 255 inside; None for lines and points."""
    kind = shape.get("shape_type") or "polygon"
    points = [(float(x), float(y)) for x, y in shape["points"]]
    area = Image.new("L", size, 0)
    draw = ImageDraw.Draw(area)
    if kind == "polygon":
        if len(points) < 3:
            raise ValueError(f"a polygon of {len(points)} points")
        draw.polygon(points, fill=255, outline=255)
    elif kind in ("rectangle", "mask"):
        (x0, y0), (x1, y1) = points
        left, top, right, bottom = min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
        if kind == "rectangle":
            draw.rectangle((left, top, right, bottom), fill=255, outline=255)
        else:
            with open_image(io.BytesIO(base64.b64decode(shape["mask"]))) as picture:
                inside = Image.fromarray(np.where(np.asarray(picture.convert("L")) > 0, 255, 0).astype(np.uint8))
            area.paste(inside, (round(left), round(top)))
    elif kind == "circle":
        (x, y), (edge_x, edge_y) = points
        radius = math.hypot(edge_x - x, edge_y - y)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255, outline=255)
    elif kind in ("line", "linestrip", "point", "points"):
        return None
    else:
        raise ValueError(f"the shape type {kind!r} is not known")
    return area
