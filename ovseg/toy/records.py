"""Toy scenes as files: images, and one record for each scene that says that they are complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ovseg.io.files import atomic_path
from ovseg.toy.classes import CLASS_INDEX, IGNORE_LABEL
from ovseg.toy.scene import Scene, make_scene


def record_path(folder: Path, seed: int) -> Path:
    """Return the file that marks a scene as complete."""
    return folder / "records" / f"{seed:07d}.json"


def read_record(folder: Path, seed: int) -> dict[str, Any]:
    """Return the dataset dict of a written scene, with absolute paths."""
    record = json.loads(record_path(folder, seed).read_text(encoding="utf-8"))
    for key in ("file_name", "sem_seg_file_name", "instance_file_name"):
        record[key] = str(folder / record[key])
    return record


def write_scene(folder: Path, seed: int, labelled: tuple[str, ...]) -> None:
    """Draw one scene and write its images, then the record that says that they are complete."""
    scene = make_scene(seed)
    labels, instances, things = labelled_only(scene, labelled)
    record: dict[str, Any] = {"image_id": seed, "height": labels.shape[0], "width": labels.shape[1]}
    images = {"file_name": scene.image[:, :, ::-1], "sem_seg_file_name": labels, "instance_file_name": instances}
    for (key, pixels), kind in zip(images.items(), ("images", "labels", "instances"), strict=True):
        record[key] = f"{kind}/{seed:07d}.png"
        with atomic_path(folder / record[key]) as path:
            path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    record |= {"things": things, "captions": list(scene.captions)}
    with atomic_path(record_path(folder, seed)) as path:
        path.write_text(json.dumps(record), encoding="utf-8")


def labelled_only(scene: Scene, labelled: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, list[dict[str, int]]]:
    """Take away every label and instance outside the given classes.

    Args:
        scene: a scene.
        labelled: names of the classes to keep, a prefix of ``classes.CLASS_NAMES``.

    Returns:
        (H, W) uint8 labels with 255 where nothing is known, (H, W) uint16 instances with 0 there, and one
        dict of ``id`` (in the instance map) and ``category_id`` for each thing that is left.
    """
    labels = np.where(scene.labels < len(labelled), scene.labels, np.uint8(IGNORE_LABEL))
    things = [
        {"id": index, "category_id": CLASS_INDEX[thing.name]}
        for index, thing in enumerate(scene.things, 1)
        if CLASS_INDEX[thing.name] < len(labelled)
    ]
    kept = np.isin(scene.instances, [thing["id"] for thing in things])
    return labels, np.where(kept, scene.instances, np.uint16(0)), things
