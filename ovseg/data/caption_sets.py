"""Data sets of captioned images, registered by name: COCO's captions with its panoptic segments, Localized Narratives.

Their dataset dicts have ``captions``. COCO's are Detectron2's panoptic ones, with ``pan_seg_file_name`` and
``segments_info``; those of Localized Narratives have no masks, which ``DATASETS.PSEUDO_MASKS`` adds. As for all data
sets, registering touches no folder; ``datasets/README.md`` says how each one is filled.

ADE20K's narratives are left out as in OpenSeg, which is evaluated on ADE20K.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ovseg.data.benchmarks import README
from ovseg.data.caption_files import CaptionedImages, read_captions
from ovseg.errors import OvsegError, reason_of
from ovseg.io.files import check_file

logger = logging.getLogger(__name__)

NARRATIVES = "localized_narratives"
# (portion, split): beginning of the names of its files, folder of its images
PORTIONS = {
    ("coco", "train"): ("coco_train", "coco/train2017"),
    ("coco", "val"): ("coco_val", "coco/val2017"),
    ("flickr30k", "train"): ("flickr30k_train", "flickr30k/images"),
    ("flickr30k", "val"): ("flickr30k_val", "flickr30k/images"),
    ("flickr30k", "test"): ("flickr30k_test", "flickr30k/images"),
    ("open_images", "train"): ("open_images_train_v6", "open_images/train"),
    ("open_images", "val"): ("open_images_validation", "open_images/validation"),
    ("open_images", "test"): ("open_images_test", "open_images/test"),
}
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.jsonl")
_SECTION = f"; see section 'Captions' of {README}"


def register_caption_sets(root: Path) -> None:
    """Register the data sets of :func:`caption_sets`, except under names that have an owner."""
    for name, (load, images) in caption_sets(root).items():
        if name not in DatasetCatalog.list():
            DatasetCatalog.register(name, load)
            MetadataCatalog.get(name).set(image_root=str(images))


def caption_sets(root: Path) -> dict[str, tuple[Callable[[], list[dict[str, Any]]], Path]]:
    """Return the reader and the folder of images of each data set by its name."""
    sets: dict[str, tuple[Callable[[], list[dict[str, Any]]], Path]] = {}
    for split in ("train", "val"):
        name = f"coco_2017_{split}_panoptic_captions"
        sets[name] = partial(_coco, name, root / "coco", split), root / f"coco/{split}2017"
    for portion, split in PORTIONS:
        name, images = f"{NARRATIVES}_{portion}_{split}", PORTIONS[portion, split][1]
        sets[name] = partial(_narratives, name, root, ((portion, split),)), root / images
    parts = tuple((portion, split) for portion, split in PORTIONS if split == "train")
    name = f"{NARRATIVES}_train"
    sets[name] = partial(_narratives, name, root, parts), root
    return sets


def check_portion(name: str) -> None:
    """Refuse a name of ADE20K's narratives.

    Raises:
        OvsegError: says why, and what to do.
    """
    if name.startswith(NARRATIVES) and "ade" in name.removeprefix(NARRATIVES):
        raise OvsegError(
            f"data set {name!r} is left out, as in OpenSeg: a model that has seen the narratives of ADE20K must not be "
            f"evaluated on ADE20K: train on {NARRATIVES}_train, or, if you do not evaluate on it, describe them by a "
            "YAML file"
        )


def join_captions(
    name: str, records: Sequence[dict[str, Any]], captions: CaptionedImages, where: str
) -> list[dict[str, Any]]:
    """Return dataset dicts with the captions of their images; none for images that have none.

    Args:
        name: of the data set, for messages.
        records: with ``file_name``; not changed.
        captions: of image files.
        where: the files of the captions and of the records, for messages.

    Raises:
        OvsegError: no image has a caption: they are of another split.
    """
    of_image: dict[str, list[str]] = defaultdict(list)
    for image in captions.images:
        of_image[str(image.path)] += image.captions
    joined = [{**record, "captions": of_image.get(record["file_name"], [])} for record in records]
    without = [record["file_name"] for record in joined if not record["captions"]]
    if len(without) == len(joined):
        raise OvsegError(
            f"data set {name!r}: no image has a caption in {where}; there is none of {without[0]}, for example, but "
            f"one of {captions.images[0].path}: take the captions of the same split"
        )
    if without:
        message = "data set %s: %d of %d images have no captions, such as %s"
        logger.warning(message, name, len(without), len(joined), without[0])
    if lost := len(of_image) - (len(joined) - len(without)):
        logger.warning("data set %s: %d images with captions are not in it and are left out", name, lost)
    return joined


def _coco(name: str, root: Path, split: str) -> list[dict[str, Any]]:
    """Return the dataset dicts of a split, with captions."""
    images, masks = root / f"{split}2017", root / f"panoptic_{split}2017"
    panoptic, captions = (root / f"annotations/{kind}_{split}2017.json" for kind in ("panoptic", "captions"))
    with _advised(name):
        if not masks.is_dir():
            raise OvsegError(f"there is no folder {masks} of the panoptic PNG files")
        records = _panoptic_records(panoptic, images, masks)
        found = read_captions(captions, images, need_images=False)
        _log_bad(name, found)
        return join_captions(name, records, found, f"{captions}, whose masks are those of {panoptic}")


def _panoptic_records(file: Path, images: Path, masks: Path) -> list[dict[str, Any]]:
    check_file(file, "panoptic file")
    try:
        content = json.loads(file.read_bytes())
        entries = {image["id"]: image for image in content["images"]}
        records = []
        for annotation in content["annotations"]:
            image = entries[annotation["image_id"]]
            infos = [
                {"id": info["id"], "category_id": info["category_id"], "iscrowd": info.get("iscrowd", 0)}
                for info in annotation["segments_info"]
            ]
            record = {"file_name": str(images / image["file_name"]), "image_id": image["id"]}
            record |= {"height": image["height"], "width": image["width"], "segments_info": infos}
            records.append({**record, "pan_seg_file_name": str(masks / annotation["file_name"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OvsegError(f"{file} is not COCO's panoptic JSON ({reason_of(error)}): unpack it again") from error
    if not records:
        raise OvsegError(f"{file} has no annotations: unpack it again")
    return records


def _narratives(name: str, root: Path, portions: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return the dataset dicts of portions of Localized Narratives, all narratives of an image in one."""
    with _advised(name):
        files = {portion: _narrative_files(root / NARRATIVES / "annotations", *portion) for portion in portions}
        if lacking := [f"{NARRATIVES}_{'_'.join(portion)}" for portion, found in files.items() if not found]:
            there = ", ".join(f"{NARRATIVES}_{'_'.join(portion)}" for portion, found in files.items() if found)
            raise OvsegError(
                f"data set {name!r} is not prepared: {root / NARRATIVES / 'annotations'} lacks the files of "
                f"{', '.join(lacking)}" + (f"; to train without these, name {there}" if there else "")
            )
        records = []
        for portion, found in files.items():
            captions: dict[str, list[str]] = defaultdict(list)
            ids: dict[str, str] = {}
            images = root / PORTIONS[portion][1]
            for file in found:
                narratives = read_captions(file, images)
                _log_bad(name, narratives)
                for image in narratives.images:
                    captions[str(image.path)] += image.captions
                    ids.setdefault(str(image.path), image.image_id)
            records += [{"file_name": path, "image_id": ids[path], "captions": captions[path]} for path in captions]
    return records


def _narrative_files(folder: Path, portion: str, split: str) -> list[Path]:
    """Return the files of a portion: the light one, else all parts of the full one; [] without any."""
    stem = PORTIONS[portion, split][0]
    if (light := folder / f"{stem}_captions.jsonl").is_file():
        return [light]
    whole = folder / f"{stem}_localized_narratives.jsonl"
    parts = sorted(folder.glob(f"{stem}_localized_narratives-*.jsonl"))
    if whole.is_file() or not parts:
        return [whole] if whole.is_file() else []
    numbers = [tuple(map(int, found.groups())) for part in parts if (found := _PART.search(part.name))]
    total = numbers[0][1] if numbers else 0
    if numbers != [(number, total) for number in range(total)]:
        raise OvsegError(
            f"{folder} has {len(parts)} of {total} parts of {stem}_localized_narratives: download the others, or "
            f"{light.name}, which has all captions"
        )
    return parts


def _log_bad(name: str, captions: CaptionedImages) -> None:
    if captions.bad:
        message = "data set %s: %d of %d captions cannot be used and are left out, such as %s"
        logger.warning(message, name, len(captions.bad), captions.entries, captions.bad[0])


@contextlib.contextmanager
def _advised(name: str) -> Iterator[None]:
    """Name the data set, and the section of the README, in errors raised by the block."""
    try:
        yield
    except OvsegError as error:
        start = "" if name in str(error) else f"data set {name!r}: "
        raise OvsegError(f"{start}{error}{_SECTION}") from error
