"""Label formats: what other programs read, written from regions (:mod:`ovseg.result.regions`).

A module per family has a function that converts one image, for :class:`~ovseg.result.segmentation.Segmentation`, and
one that writes a data set. :data:`FORMATS` names them; a module is imported when it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ovseg.result.formats.labelled_set import LabelledSet

# module and function of each format, and what it holds
FORMATS: dict[str, tuple[str, str, str]] = {
    "coco-instances": (
        "coco",
        "write_instances",
        "COCO's JSON of instances: polygons; run lengths for holes",
    ),
    "coco-panoptic": ("coco", "write_panoptic", "COCO's panoptic PNG files and JSON: one segment per word"),
    "yolo-seg": ("yolo", "write_yolo", "Ultralytics YOLO's text files: polygons"),
    "labelme": ("labelme", "write_labelme", "labelme's JSON files: polygons; masks for holes"),
    "cvat": ("cvat", "write_cvat", "CVAT for images 1.1, XML: polygons; masks for holes"),
    "label-studio": ("label_studio", "write_label_studio", "Label Studio's tasks with predictions: polygons"),
    "fiftyone": ("coco", "write_fiftyone", "a folder that FiftyOne imports as COCODetectionDataset"),
    "png": ("png", "write_png", "label maps as PNG files, with a description for ovseg check and training"),
}


def writer_of(name: str) -> Callable[[LabelledSet], None]:
    """Return the function that writes a data set in a format, one of :data:`FORMATS`."""
    module, function, _ = FORMATS[name]
    return getattr(import_module(f"{__name__}.{module}"), function)
