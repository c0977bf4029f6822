"""COCO's formats of instances and of panoptic segments: https://cocodataset.org/#format-data.

Ids of categories are 1 + index of the word. Scores are in ``score``, as in COCO's results.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from ovseg.io.files import atomic_path
from ovseg.io.images import png_options
from ovseg.result.formats.labelled_set import LabelledSet, json_list, rounded
from ovseg.result.regions import LabelledImage, Region, score_of

INFO = {
    "description": "Labels by ovseg. Objects of one word are not separated: an instance is a connected part of the "
    "pixels of a word."
}


def coco_instances(image: LabelledImage, tolerance: float) -> dict[str, Any]:
    """Return one image in COCO's format of instances; see :meth:`Segmentation.to_coco`."""
    return {
        "info": INFO,
        "images": [_image(image, 1)],
        "annotations": list(_instances(image, 1, 1, tolerance)),
        "categories": categories(image.names),
    }


def coco_panoptic(image: LabelledImage) -> dict[str, Any]:
    """Return one image in COCO's panoptic format, with the file name of its PNG; see :meth:`Segmentation.to_coco`."""
    stem = image.name.rpartition(".")[0] or image.name or "image"
    annotation = {"image_id": 1, "file_name": f"{stem}.png", "segments_info": segments(image)[1]}
    return {
        "info": INFO,
        "images": [_image(image, 1)],
        "annotations": [annotation],
        "categories": categories(image.names, panoptic=True),
    }


def write_instances(labelled: LabelledSet, file: str = "annotations.json") -> None:
    """Write ``annotations.json``. Parts with holes have run lengths in place of polygons."""
    images = []
    with json_list(labelled.folder / file, {"info": INFO}, "annotations") as (annotations, tail):
        for number, image in enumerate(labelled.images, start=1):
            images.append(_image(image, number))
            for annotation in _instances(image, number, annotations.count + 1, labelled.tolerance):
                annotations.append(annotation)
        tail |= {"images": images, "categories": categories(labelled.names)}


def write_fiftyone(labelled: LabelledSet) -> None:
    """Write ``labels.json`` as :func:`write_instances`, and the images in ``data/``.

    FiftyOne imports the folder as ``fiftyone.types.COCODetectionDataset`` with ``label_types="segmentations"``.
    """
    write_instances(labelled, "labels.json")
    for image in labelled.images:
        labelled.add_image(image, "data")


def write_panoptic(labelled: LabelledSet) -> None:
    """Write ``panoptic.json`` and, in ``panoptic/``, a PNG file of segments per image: id = R + 256 G + 65536 B."""
    images = []
    with json_list(labelled.folder / "panoptic.json", {"info": INFO}, "annotations") as (annotations, tail):
        for number, image in enumerate(labelled.images, start=1):
            ids, infos = segments(image)
            path = labelled.path(image, "panoptic", ".png")
            with atomic_path(path) as temporary:
                Image.fromarray(segment_colors(ids)).save(temporary, **png_options(4))
            name = path.relative_to(labelled.folder / "panoptic").as_posix()
            annotations.append({"image_id": number, "file_name": name, "segments_info": infos})
            images.append(_image(image, number))
        tail |= {"images": images, "categories": categories(labelled.names, panoptic=True)}


def segments(image: LabelledImage) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return the segments of an image, one per word that has regions.

    Returns:
        ids (H,W) int32: 1 + index of the word, 0 for unlabelled pixels; and COCO's ``segments_info``: ``id``,
        ``category_id``, ``isthing`` (0: objects of one word are not separated), ``area``, ``bbox``, ``iscrowd``, and
        ``score``, the mean over the segment's pixels.
    """
    infos = []
    for label, regions in image.of_words():
        boxes = np.array([one.box for one in regions])
        left, top = boxes[:, :2].min(0).tolist()
        right, bottom = (boxes[:, :2] + boxes[:, 2:]).max(0).tolist()
        infos.append(
            {
                "id": label + 1,
                "category_id": label + 1,
                "isthing": 0,
                "area": sum(one.area for one in regions),
                "bbox": [left, top, right - left, bottom - top],
                "iscrowd": 0,
                "score": rounded(score_of(regions)),
            }
        )
    return image.label_map() + 1, infos


def segment_colors(ids: np.ndarray) -> np.ndarray:
    """Return segment ids (H,W) as the colours of COCO's panoptic PNG files, (H,W,3) uint8 RGB."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1).astype(np.uint8)


def categories(names: tuple[str, ...], panoptic: bool = False) -> list[dict[str, Any]]:
    """Return COCO's categories of words; panoptic ones are all stuff, ``isthing`` 0."""
    stuff = {"isthing": 0} if panoptic else {}
    return [{"id": number, "name": name, "supercategory": "", **stuff} for number, name in enumerate(names, start=1)]


def _image(image: LabelledImage, number: int) -> dict[str, Any]:
    height, width = image.size
    return {"id": number, "file_name": image.name, "height": height, "width": width}


def _instances(image: LabelledImage, image_id: int, first: int, tolerance: float) -> Iterator[dict[str, Any]]:
    """Yield the annotations of an image, whose ids begin with ``first``."""
    for number, region in enumerate(image.regions, start=first):
        yield {
            "id": number,
            "image_id": image_id,
            "category_id": region.label + 1,
            "segmentation": _segmentation(image, region, tolerance),
            "area": region.area,
            "bbox": list(region.box),
            "iscrowd": 0,
            "score": rounded(region.score),
        }


def _segmentation(image: LabelledImage, region: Region, tolerance: float) -> list[list[float]] | dict[str, Any]:
    outline = image.outline(region, tolerance)
    if outline.holes:
        return region.run_lengths(image.size)
    return [outline.outer.ravel().tolist()]
