"""labelme's JSON files as label maps.

Shapes are drawn as labelme's own ``shape_to_mask`` draws them, with Pillow, later ones over earlier ones.
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

from ovseg.data.custom.classes import Classes
from ovseg.data.custom.geometry import NoArea, checked_points, labelled_size, refuse_fractions
from ovseg.data.custom.names import text_key
from ovseg.data.custom.pairing import Pair
from ovseg.data.custom.values import UNLISTED, Labels, settle
from ovseg.errors import OvsegError, reason_of, shown

_OFFSET = 2  # canvas value of class 0, since drawing takes no negative numbers
# labelme's own names, and those of its relatives, for a polygon of four corners
_POLYGONS = (
    "polygon",
    "oriented_rectangle",
    "rotated_rectangle",
    "rotation",
    "rotated",
    "rotated_bbox",
    "quadrilateral",
)
_UNUSABLE = (KeyError, TypeError, ValueError, IndexError, OSError, SyntaxError, Image.DecompressionBombError)
_WITHOUT_AREA = ("line", "linestrip", "linestring", "point", "points")


def labelme_labels(classes: Classes, pair: Pair) -> Labels:
    """Read the labels of one image; labels are class names or synonyms, or what ``ids`` says."""
    content = _read(pair.labels)
    size = labelled_size(content.get("imageHeight"), content.get("imageWidth"), pair.image)
    canvas = Image.new("I", size[::-1], classes.background + _OFFSET)
    unlisted: dict[str, int] = {}
    left_out: dict[str, int] = {}
    for number, shape in enumerate(content["shapes"], start=1):
        try:
            if not isinstance(shape, dict):
                raise ValueError(f"{shown(shape)} is not an object with label and points")
            label = str(shape["label"]).strip()
            area = _area(shape, size)
            pixels = int(np.count_nonzero(area))
            if not pixels:
                raise NoArea("which covers no pixel")
        except NoArea as error:
            left_out[f"shape {number} ({shown(label)}), {error}"] = 0
            continue
        except _UNUSABLE as error:
            raise OvsegError(f"{pair.labels}: shape {number} is unusable ({reason_of(error)})") from error
        index = classes.table.get(text_key(label), UNLISTED)
        if index == UNLISTED:
            name = f"label {shown(label)}"
            unlisted[name] = unlisted.get(name, 0) + pixels
        canvas.paste(index + _OFFSET, mask=area)
    indices = np.asarray(canvas, dtype=np.int32) - _OFFSET
    return settle(Labels(indices, unlisted, left_out), classes.unlisted)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise OvsegError(f"labelme file {path} cannot be read ({reason_of(error)})") from error
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise OvsegError(f"{path} is no labelme file: it has no list of shapes")
    return content


def _area(shape: Mapping[str, Any], size: tuple[int, int]) -> Image.Image:
    """Return the pixels of a shape in an image of (height, width), mode L with 255 inside.

    Raises:
        NoArea: a line, a point, or a click by accident.
        ValueError: a shape that is not known, or points that it cannot have.
    """
    kind = shape.get("shape_type") or "polygon"
    if kind in _WITHOUT_AREA:
        raise NoArea(f"a {kind}, which has no area")
    points = checked_points(shape["points"], size)
    corners = [(x, y) for x, y in points.tolist()]
    if kind == "rectangle" and len(corners) > 2:
        kind = "polygon"  # labelme 5.4 and later, and others, save four corners
    needed = 3 if kind in _POLYGONS else 2
    if kind != "mask" and len(set(corners)) < needed:
        raise NoArea(f"a {kind} of {len(set(corners))} points, which has no area")
    refuse_fractions(points)
    area = Image.new("L", size[::-1], 0)
    draw = ImageDraw.Draw(area)
    if kind in _POLYGONS:
        draw.polygon(corners, fill=255, outline=255)
    elif kind == "rectangle":
        draw.rectangle((*points.min(axis=0), *points.max(axis=0)), fill=255, outline=255)
    elif kind == "mask":
        area.paste(_inside_mask(shape, size), tuple(map(round, points.min(axis=0))))
    elif kind == "circle":
        if len(corners) != 2:
            raise ValueError(f"a circle has 2 points, its middle and one of its edge, not {len(corners)}")
        (x, y), (edge_x, edge_y) = corners
        radius = math.hypot(edge_x - x, edge_y - y)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255, outline=255)
    elif kind == "ellipse" and len(corners) == 3:  # its middle and the ends of both half axes
        middle, ends = points[0], points[1:] - points[0]
        angles = np.linspace(0, 2 * math.pi, 180, endpoint=False)
        outline = middle + np.cos(angles)[:, None] * ends[0] + np.sin(angles)[:, None] * ends[1]
        draw.polygon([(x, y) for x, y in outline.tolist()], fill=255, outline=255)
    elif kind == "ellipse":  # corners of the box around it
        draw.ellipse((*points.min(axis=0), *points.max(axis=0)), fill=255, outline=255)
    else:
        raise ValueError(f"the shape type {shown(kind)} is not known")
    return area


def _inside_mask(shape: Mapping[str, Any], size: tuple[int, int]) -> Image.Image:
    """Return the image that a shape of the type mask holds, mode L with 255 inside."""
    with Image.open(io.BytesIO(base64.b64decode(shape["mask"])), formats=("PNG",)) as bits:
        if bits.width > size[1] or bits.height > size[0]:
            text = f"its mask has {bits.width}x{bits.height} pixels, its image only {size[1]}x{size[0]}"
            raise ValueError(text)
        return Image.fromarray(np.where(np.asarray(bits.convert("L")) > 0, 255, 0).astype(np.uint8))
