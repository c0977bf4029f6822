"""What the page shows of a scene, as JSON and images."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ovseg.io.images import png_options
from ovseg.result.drawing import draw_result, name_places, word_color
from ovseg.result.formats.png import label_image
from ovseg.result.formats.yolo import yolo_description
from ovseg.result.kept_masks import KeptMasks
from ovseg.result.segmentation import UNLABELLED
from ovseg.web.limits import Refused
from ovseg.web.scenes import Scene

LARGEST_SHOWN = 1280  # pixels of the longer side of images on the page
NO_WORD = 65535  # value of unlabelled pixels in the map of the page
SMALLEST_NAMED = 0.004  # share of the image
BEST = 3  # words of a mask in a table
MOST_MASKS = 4  # masks of a table


def shown_image(pixels: np.ndarray, side: int = LARGEST_SHOWN) -> bytes:
    """Return an image as a JPEG file of at most ``side`` pixels on a side."""
    size = shown_size(*pixels.shape[:2], side)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=88)
    return stream.getvalue()


def shown_size(height: int, width: int, side: int = LARGEST_SHOWN) -> tuple[int, int]:
    """Return width and height of an image on the page, of at most ``side`` pixels on a side."""
    scale = min(1.0, side / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def shown_labels(labels: np.ndarray) -> np.ndarray:
    """Return the label map of the page, uint16, :data:`NO_WORD` for unlabelled pixels."""
    values, size = np.where(labels < 0, NO_WORD, labels).astype(np.uint16), shown_size(*labels.shape)
    if size == labels.shape[::-1]:
        return values
    return cv2.resize(values, size, interpolation=cv2.INTER_NEAREST_EXACT)


def label_data(values: np.ndarray) -> str:
    """Return the label map of the page as a PNG file in a data URL; red and green are low and high byte."""
    rgb = np.stack([values & 255, values >> 8, np.zeros_like(values)], axis=-1).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "PNG", **png_options(3))
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def name_place(values: np.ndarray, label: int) -> tuple[float, float] | None:
    """Return where the name of a word is written, x and y as parts of width and height; None for a small region."""
    mask = values == label
    if mask.mean() < SMALLEST_NAMED:
        return None
    height, width = values.shape
    x, y = name_places(mask, largest_first=True)[0]
    return (x + 0.5) / width, (y + 0.5) / height


def painting(scene: Scene) -> dict[str, Any]:
    """Return the present rendering: its label map, and word, colour, share and score of each word with pixels."""
    with scene.lock:
        shown = scene.shown
        values = shown_labels(shown.label_map)
        words = [
            {
                "label": k,
                "word": shown.names[k],
                "color": word_color(k).as_hex(),
                "share": float(shown.fractions[k]),
                "score": float(shown.scores[k]),
                "place": name_place(values, k),
            }
            for k in shown.found
        ]
        height, width = shown.label_map.shape
        return {
            "width": width,
            "height": height,
            "labels": label_data(values),
            "words": words,
            "absent": [name for k, name in enumerate(shown.names) if not shown.areas[k]],
            "names": list(shown.names),
            "unlabelled": float(1 - shown.fractions.sum()),
            "granularity": scene.granularity,
            "min_score": scene.min_score,
            "edits": len(scene.edits),
        }


def region(scene: Scene, row: float, column: float) -> dict[str, Any]:
    """Return the region at a point, and the best words by each classifier of the masks that cover the point."""
    with scene.lock:
        shown = scene.shown
        label, mask = scene.region(row, column)
        masks: list[dict[str, Any]] = []
        if isinstance(scene.found, KeptMasks):
            rows = shown.explain(BEST).to_json()
            covering = scene.found.at(row, column, mask)
            masks = [{"mask": rank, **rows[rank]} for rank in covering[:MOST_MASKS]]
        return {
            "x": column,
            "y": row,
            "label": label,
            "word": None if label == UNLABELLED else shown.names[label],
            "share": float(mask.mean()),
            "masks": masks,
        }


def _drawing(scene: Scene) -> bytes:
    result = scene.result()
    colors = {k: word_color(k) for k in result.found}
    stream = io.BytesIO()
    drawn = draw_result(result.image, result.label_map, result.names, colors)
    Image.fromarray(drawn).save(stream, "PNG", **png_options(4))
    return stream.getvalue()


def _label_map(scene: Scene) -> bytes:
    shown = scene.shown
    stream = io.BytesIO()
    label_image(shown.label_map, len(shown.names)).save(stream, "PNG", **png_options(4))
    return stream.getvalue()


def _coco(scene: Scene) -> bytes:
    return json.dumps(scene.result().to_coco(), ensure_ascii=False).encode()


def _yolo(scene: Scene) -> bytes:
    result, stream = scene.result(), io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"labels/{Path(scene.name).stem}.txt", result.to_yolo())
        archive.writestr("data.yaml", yolo_description(result.names, "."))
    return stream.getvalue()


# file of the page: end of its name for the visitor, media type, content
FILES: dict[str, tuple[str, str, Callable[[Scene], bytes]]] = {
    "drawing": ("_drawing.png", "image/png", _drawing),
    "labels": ("_labels.png", "image/png", _label_map),
    "coco": ("_coco.json", "application/json", _coco),
    "yolo": ("_yolo.zip", "application/zip", _yolo),
}


def file_of(scene: Scene, kind: str) -> tuple[str, str, bytes]:
    """Return name, media type and content of a file to download.

    Raises:
        Refused: 404, there is no file of this kind.
    """
    if kind not in FILES:
        raise Refused(404, f"there is no file {kind!r}: choose one of {', '.join(FILES)}")
    end, media_type, content = FILES[kind]
    return Path(scene.name).stem + end, media_type, content(scene)
