"""Toy data sets: scenes drawn at first access, kept in the user's cache; and the world that they make up."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from iopath.common.file_io import file_lock

from ovseg.data.worlds import World
from ovseg.errors import OvsegError
from ovseg.io.cpus import usable_cpus
from ovseg.io.files import atomic_path
from ovseg.io.progress import progress_bar
from ovseg.toy.cache import cannot_keep, missing_scenes, record_path, scenes_folder
from ovseg.toy.classes import BASE_CLASSES, CLASS_INDEX, CLASS_NAMES, IGNORE_LABEL, SPLITS
from ovseg.toy.scene import Scene, make_scene

KINDS = {"file_name": "images", "sem_seg_file_name": "labels", "instance_file_name": "instances"}  # folder of each file


def read_record(folder: Path, seed: int) -> dict[str, Any]:
    """Return the dataset dict of a written scene, with absolute paths."""
    record = json.loads(record_path(folder, seed).read_text(encoding="utf-8"))
    for key in KINDS.keys() & record.keys():
        record[key] = str(folder / record[key])
    return record


def write_scene(folder: Path, seed: int, labelled: tuple[str, ...]) -> None:
    """Draw one scene and write its images, then the record that says that they are complete.

    Args:
        folder: of the split.
        seed: of the scene.
        labelled: names of the classes that labels may show; without any, there are no labels.
    """
    scene = make_scene(seed)
    record: dict[str, Any] = {"image_id": seed, "height": scene.labels.shape[0], "width": scene.labels.shape[1]}
    images, things = {"file_name": scene.image[:, :, ::-1]}, {}
    if labelled:
        labels, instances, of_scene = labelled_only(scene, labelled)
        images |= {"sem_seg_file_name": labels, "instance_file_name": instances}
        things = {"things": of_scene}
    for key, pixels in images.items():
        record[key] = f"{KINDS[key]}/{seed:07d}.png"
        with atomic_path(folder / record[key]) as path:
            path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    record |= things | {"captions": list(scene.captions)}
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


logger = logging.getLogger(__name__)


def render_split(split: str, root: str | Path | None = None, num_scenes: int | None = None) -> list[dict[str, Any]]:
    """Draw what is missing of a split and list it.

    Several processes may ask at once: one draws, the others wait. A process that was killed leaves whole
    scenes behind and the next one goes on from there.

    Args:
        split: "train" (novel classes carry the ignore label), "tune" or "val" (every class is labelled), or "captions"
            (no labels).
        root: folder to keep the scenes in; by default ``<user cache>/toy/<FORMAT>``.
        num_scenes: only the first so many; by default all of them.

    Returns:
        Detectron2 dataset dicts with ``file_name``, ``sem_seg_file_name`` (8 bit PNG), ``instance_file_name``
        (16 bit PNG, 0 for ground and unlabelled things), ``things`` (one dict of ``id`` and ``category_id``
        for each labelled thing), ``height``, ``width``, ``image_id`` (the seed) and ``captions``; without labels,
        ``sem_seg_file_name``, ``instance_file_name`` and ``things`` are absent.

    Raises:
        OvsegError: an unknown split, or the cache cannot be written.
    """
    if split not in SPLITS:
        raise OvsegError(f'there is no toy split "{split}": choose one of {", ".join(SPLITS)}')
    folder = (Path(root) if root is not None else scenes_folder()) / split
    first, total = SPLITS[split]
    seeds = range(first, first + min(total, num_scenes or total))
    labelled = _labelled(split)
    with cannot_keep(folder):
        if missing_scenes(folder, seeds):  # a complete cache may be read-only
            folder.mkdir(parents=True, exist_ok=True)
            with file_lock(str(folder)):
                missing = missing_scenes(folder, seeds)
                logger.info("drawing %d toy scenes (once; they are kept in the cache)", len(missing))
                with progress_bar(transient=True) as progress, ThreadPoolExecutor(min(8, usable_cpus())) as pool:
                    task = progress.add_task("drawing toy scenes", total=len(missing))
                    for _ in pool.map(partial(write_scene, folder, labelled=labelled), missing):
                        progress.advance(task)
    return [read_record(folder, seed) for seed in seeds]


def captions_only(split: str) -> list[dict[str, Any]]:
    """Return the dataset dicts of a split without what is of its labels."""
    kept = ("file_name", "image_id", "height", "width", "captions")
    return [{key: record[key] for key in kept} for record in render_split(split)]


def _labelled(split: str) -> tuple[str, ...]:
    return {"train": BASE_CLASSES, "captions": ()}.get(split, CLASS_NAMES)


def register_toy() -> None:
    """Register ``toy_sem_seg_train`` (base words), ``_tune`` and ``_val`` (base and novel), and two without labels.

    ``toy_captions_train`` is the split "captions"; ``toy_image_text_train`` has the images and captions of the split
    "train", and nothing else; ``toy_web_train`` has views of them, with captions. Their metadata have no words. Nothing
    is drawn.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog  # takes seconds, which drawing scenes does not need

    if "toy_captions_train" not in DatasetCatalog.list():
        DatasetCatalog.register("toy_captions_train", partial(render_split, "captions"))
    if "toy_image_text_train" not in DatasetCatalog.list():
        DatasetCatalog.register("toy_image_text_train", partial(captions_only, "train"))
    if "toy_web_train" not in DatasetCatalog.list():
        DatasetCatalog.register("toy_web_train", _web)
    for split in filter(_labelled, SPLITS):
        name = f"toy_sem_seg_{split}"
        if name in DatasetCatalog.list():
            continue
        DatasetCatalog.register(name, partial(render_split, split))
        metadata = MetadataCatalog.get(name).set(
            stuff_classes=list(_labelled(split)), ignore_label=IGNORE_LABEL, evaluator_type="sem_seg"
        )
        if split != "train":
            base = len(BASE_CLASSES)
            metadata.set(evaluation_set={"base": list(range(base)), "novel": list(range(base, len(CLASS_NAMES)))})
            metadata.set(trainable_flag=[int(index < base) for index in range(len(CLASS_NAMES))])


def _web() -> list[dict[str, Any]]:
    from ovseg.toy.web import render_web  # imports open_clip

    first, count = SPLITS["train"]
    return render_web(range(first, first + count))


def regions(record: dict[str, Any]) -> list[tuple[np.ndarray, int]]:
    """Return the masks of a scene's things, then those of what is left of its grounds, by class number.

    Args:
        record: dataset dict of :func:`render_split`.

    Returns:
        bool (H, W) masks, which may be empty for a thing that others cover, each with its class number.

    Raises:
        OvsegError: the scene has no labels.
    """
    if "things" not in record:
        raise OvsegError("the scenes of toy:captions have captions only: choose toy:train, toy:tune or toy:val")
    labels, instances = (
        cv2.imread(record[key], cv2.IMREAD_UNCHANGED) for key in ("sem_seg_file_name", "instance_file_name")
    )
    grounds = np.where(instances == 0, labels, IGNORE_LABEL)
    found = [(instances == thing["id"], thing["category_id"]) for thing in record["things"]]
    return found + [(grounds == value, int(value)) for value in np.unique(grounds) if value != IGNORE_LABEL]


WORLD = World(
    name="toy",
    class_names=CLASS_NAMES,
    base_classes=BASE_CLASSES,
    records=lambda split, limit: render_split(split, num_scenes=limit),
    regions=regions,
    register=register_toy,
)
