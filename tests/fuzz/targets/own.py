"""Somebody's own data set: its YAML file, masks, COCO and labelme files."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ovseg.data.custom.registration import register_own
from tests.fuzz.mutate import mutate_bytes, mutate_value, to_json, to_yaml
from tests.fuzz.targets.images import encoded_images, odd_image
from tests.scripts import load_script

CLASSES = ["sky", ["person", "pedestrian"], "dog"]
_SHAPE = (12, 16)


class _OwnData:
    """A data set of two images; ``root`` has the images and whole labels of every kind."""

    inputs = 2000
    more_options = ["--sheet", "sheet.png"]  # which takes most of the time: not of every target

    def __init__(self, folder: Path) -> None:
        self.root, self.check = folder, load_script("tools/check_dataset.py").main
        labels = np.random.default_rng(0).integers(0, 3, _SHAPE, np.uint8)
        for name in ("a", "b"):
            for kind in ("images", "masks", "panoptic"):
                (folder / kind).mkdir(exist_ok=True)
                pixels = labels if kind == "masks" else np.stack([labels + 1, labels * 0, labels * 0], axis=2)
                Image.fromarray(pixels).save(folder / kind / f"{name}.png")
        (folder / "names.txt").write_text("a\nb\n")
        (folder / "classes.txt").write_text("sky\nperson: pedestrian\ndog\n")
        (folder / "coco.json").write_text(json.dumps(coco_instances()))
        (folder / "panoptic.json").write_text(json.dumps(coco_panoptic()))
        (folder / "labelme").mkdir()
        for name in ("a", "b"):
            (folder / "labelme" / f"{name}.json").write_text(json.dumps(labelme(name)))

    def steps(self, file: Path) -> Iterable[Callable[[], object]]:
        check = partial(self.check, [str(file), "--workers", "1", *self.more_options])
        return [check, partial(_register, str(file))]

    def describe(self, folder: Path, **keys: Any) -> Path:
        """A whole YAML file."""
        path = folder / "mine.yaml"
        content = {"root": str(self.root), "images": "images/*.png", "classes": CLASSES, **keys}
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path


def _register(name: str) -> None:
    try:
        register_own(name)
        DatasetCatalog.get(name)
    finally:
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


class Labels(_OwnData):
    """Damaged mask files of every format, some of them looked up by number or colour."""

    name = "labels"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.files = encoded_images()
        Image.new("RGB", (8, 6)).save(folder / "m.png")

    def make(self, rng: Random, folder: Path) -> Path:
        suffix, data = odd_image(rng, self.files)
        (folder / "masks").mkdir()
        (folder / "masks" / f"m{suffix or '.png'}").write_bytes(data)
        colors = {"colors": {"sky": "black", "person": [60, 60, 60], "dog": "#787878"}}
        keys = rng.choice(({}, {"first_id": 1}, {"ids": {0: "sky", 60: "dog"}}, colors, {"unlisted": "ignore"}))
        return self.describe(folder, images="*.png", masks=f"{folder}/masks", **keys)


class OwnYaml(_OwnData):
    """Descriptions with odd keys and values."""

    name = "yaml"

    def make(self, rng: Random, folder: Path) -> Path:
        base = {"root": str(self.root), "images": "images/*.png", "ignore_label": 255, "unlisted": "error"}
        rest = rng.choice(
            (
                {"masks": "masks/*.png", "classes": CLASSES, "first_id": 0, "seen": ["sky"], "unseen": ["dog"]},
                {"masks": ["masks/*.png"], "classes": "classes.txt", "names": "names.txt", "templates": ["a {}."]},
                {"masks": "masks", "classes": "sky; person; dog", "ids": {0: "sky", 1: "ignore", 2: "dog"}},
                {"masks": "panoptic/*.png", "classes": CLASSES, "colors": {"sky": [1, 0, 0], "dog": "#020000"}},
                {"coco_instances": "coco.json", "background": "sky", "vocabulary": "classes.txt", "classes": CLASSES},
                {"coco_panoptic": "panoptic.json", "masks": "panoptic", "ids": {1: "sky", 2: "dog", 3: "ignore"}},
                {"labelme": "labelme/*.json", "classes": CLASSES, "background": 0, "label_set": None},
                {"masks": "masks/*.png", "label_set": "pascal_voc_20", "ids": "label_set", "templates": "vild"},
            )
        )
        path = folder / "mine.yaml"
        path.write_bytes(to_yaml(rng, mutate_value(rng, base | rest)))
        return path


class Coco(_OwnData):
    """Odd COCO files, instances and panoptic."""

    name = "coco"
    more_options = []

    def make(self, rng: Random, folder: Path) -> Path:
        kind, content = rng.choice((("coco_instances", coco_instances()), ("coco_panoptic", coco_panoptic())))
        (folder / "coco.json").write_bytes(to_json(rng, mutate_value(rng, content)))
        keys: dict[str, Any] = {kind: f"{folder}/coco.json"}
        if kind == "coco_panoptic":
            keys["masks"] = "panoptic"
        if rng.random() < 0.5:
            keys["classes"] = None
        return self.describe(folder, **keys)


class Labelme(_OwnData):
    """Odd labelme files."""

    name = "labelme"
    more_options = []

    def make(self, rng: Random, folder: Path) -> Path:
        for name in ("a", "b"):
            content = labelme(name) if name == "b" else mutate_value(rng, labelme(name))
            data = to_json(rng, content)
            (folder / f"{name}.json").write_bytes(data if rng.random() < 0.95 else mutate_bytes(rng, data))
        keys = rng.choice(({}, {"background": "sky"}, {"unlisted": "ignore"}, {"ids": {"cat": "dog", 7: "sky"}}))
        return self.describe(folder, labelme=f"{folder}/*.json", **keys)


def coco_instances() -> dict[str, Any]:
    """COCO's instances file of the two images: polygons, run lengths, a crowd."""
    height, width = _SHAPE
    shapes = (
        [[1, 1, 9, 1, 9, 8]],
        {"size": [height, width], "counts": [20, 30, height * width - 50]},
        [[2, 2, 7, 2, 7, 9.5, 2, 9]],
    )
    return {
        "images": [
            {"id": number, "file_name": f"{name}.png", "height": height, "width": width}
            for number, name in ((1, "a"), (2, "b"))
        ],
        "annotations": [
            {"id": n, "image_id": n % 2 + 1, "category_id": n % 3 + 1, "segmentation": shape, "iscrowd": 0, "area": 9.0}
            | {"bbox": [1, 1, 8, 8]}
            for n, shape in enumerate(shapes, start=1)
        ],
        "categories": [{"id": 1, "name": "sky"}, {"id": 2, "name": "person"}, {"id": 3, "name": "dog"}],
    }


def coco_panoptic() -> dict[str, Any]:
    """COCO's panoptic file of the two images."""
    segments = [{"id": n, "category_id": n, "area": 50, "bbox": [0, 0, 9, 9], "iscrowd": 0} for n in (1, 2, 3)]
    parts = [{"image_id": n, "file_name": f"{name}.png", "segments_info": segments} for n, name in ((1, "a"), (2, "b"))]
    return coco_instances() | {"annotations": parts}


def labelme(name: str) -> dict[str, Any]:
    """A labelme file with each type of shape."""
    mask = io.BytesIO()
    Image.fromarray(np.ones((4, 5), bool)).save(mask, "PNG")
    points = {
        "polygon": [[1, 1], [9, 1], [9, 8]],
        "rectangle": [[2, 2], [8.5, 9]],
        "circle": [[6, 6], [8, 6]],
        "mask": [[1, 1], [5, 4]],
        "line": [[0, 0], [5, 5]],
        "point": [[3, 3]],
        "oriented_rectangle": [[1, 1], [5, 1], [5, 4], [1, 4]],
        "ellipse": [[6, 6], [9, 6], [6, 8]],
    }
    shapes = [
        {"label": label, "shape_type": kind, "points": place, "group_id": None, "flags": {}}
        | ({"mask": base64.b64encode(mask.getvalue()).decode()} if kind == "mask" else {})
        for (kind, place), label in zip(points.items(), ("sky", "person", "dog") * 3, strict=False)
    ]
    if name == "b":
        shapes = shapes[:4]
    size = {"imageHeight": _SHAPE[0], "imageWidth": _SHAPE[1]}
    return {"version": "5.2.1", "flags": {}, "shapes": shapes, "imagePath": f"{name}.png", "imageData": None, **size}
