"""A folder of small images and masks, and YAML files that describe it; for tests of people's own data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from ovseg.data.custom.description import read_description
from ovseg.data.custom.source import Source, open_source

CLASSES = ["sky", ["person", "pedestrian"], "dog"]


def save(path: Path, array: np.ndarray) -> Path:
    """Write an array as the picture that the suffix of ``path`` says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def load(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def save_image(path: Path, size: tuple[int, int] = (4, 6)) -> Path:
    """An image of (height,width)."""
    return save(path, np.full((*size, 3), 90, np.uint8))


def save_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_yaml(folder: Path, content: Mapping[str, Any] | str, name: str = "mine.yaml") -> Path:
    path = folder / name
    text = content if isinstance(content, str) else yaml.safe_dump(dict(content), sort_keys=False)
    path.write_text(text, encoding="utf-8")
    return path


def write_masks(folder: Path, masks: Mapping[str, np.ndarray], suffix: str = ".png") -> None:
    """``images/NAME.jpg`` and ``masks/NAME<suffix>`` of each name."""
    for name, mask in masks.items():
        save_image(folder / "images" / f"{name}.jpg", mask.shape[:2])
        save(folder / "masks" / f"{name}{suffix}", mask)


def source_of(folder: Path, **keys: Any) -> Source:
    """What a YAML file of these keys describes; images and masks as :func:`write_masks` writes them by default."""
    content = {"images": "images/*.jpg", "classes": CLASSES, **keys}
    if not {"labelme", "coco_panoptic", "coco_instances"} & keys.keys():
        content = {"masks": "masks/*.png", **content}
    return open_source(read_description(write_yaml(folder, {k: v for k, v in content.items() if v is not None})))


def labels_of(folder: Path, **keys: Any) -> np.ndarray:
    """Class indices of the only pair."""
    source = source_of(folder, **keys)
    (pair,) = source.pairing.pairs
    return source.read(pair).indices
