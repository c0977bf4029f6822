"""Label formats read back as label maps by libraries made for them.

``python tests/result/format_readers.py FOLDER`` needs nothing of ovseg, so that it runs in an environment of its own
(``.ci/wheel``). FOLDER is the output of ``ovseg label`` with all formats, ``--tolerance 0`` and ``--min-area 0``. It
prints how far each format agrees with the PNG files, and ends with status 1 if one cannot be read or agrees less than
:data:`LEAST`.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

# Share of pixels of the worst image; 1 for the other formats. YOLO has one polygon for a region with holes, and the
# polygons of Label Studio are in percent.
LEAST = {"yolo-seg": 0.95, "label-studio": 0.99}

Maps = dict[str, np.ndarray]  # (H,W) int32 by the name of the image without suffix, -1 for unlabelled


def read_png(folder: Path) -> Maps:
    """The label maps themselves, by Pillow."""
    maps = {}
    for path in sorted((folder / "masks").rglob("*.png")):
        values = np.asarray(Image.open(path))
        blank = 255 if values.dtype == np.uint8 else 65535
        name = path.relative_to(folder / "masks").with_suffix("").as_posix()
        maps[name] = np.where(values == blank, -1, values.astype(np.int32))
    return maps


def read_coco_instances(folder: Path, file: str = "annotations.json") -> Maps:
    """By pycocotools."""
    from pycocotools.coco import COCO

    coco, maps = COCO(folder / file), {}
    for image in coco.loadImgs(coco.getImgIds()):
        labels = np.full((image["height"], image["width"]), -1, np.int32)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            labels[coco.annToMask(annotation).astype(bool)] = annotation["category_id"] - 1
        maps[stem(image["file_name"])] = labels
    return maps


def read_coco_panoptic(folder: Path) -> Maps:
    """By Datumaro."""
    from datumaro.components.dataset import Dataset

    with tempfile.TemporaryDirectory() as place:  # in the layout of COCO's archives
        shutil.copytree(folder / "panoptic", Path(place, "annotations", "panoptic_val"))
        shutil.copyfile(folder / "panoptic.json", Path(place, "annotations", "panoptic_val.json"))
        shutil.copytree(folder.parent / "yolo-seg" / "images", Path(place, "images"))
        return dict(_datumaro_maps(Dataset.import_from(place, "coco_panoptic")))


def read_yolo(folder: Path) -> Maps:
    """By supervision."""
    import supervision as sv

    places = {"images_directory_path": folder / "images", "annotations_directory_path": folder / "labels"}
    places["data_yaml_path"] = folder / "data.yaml"
    data = sv.DetectionDataset.from_yolo(**{key: str(path) for key, path in places.items()}, force_masks=True)
    maps = {}
    for path, image, found in data:
        labels = np.full(image.shape[:2], -1, np.int32)
        for mask, label in zip(found.mask if len(found) else (), found.class_id, strict=True):
            labels[mask] = label
        maps[stem(Path(path).name)] = labels
    return maps


def read_labelme(folder: Path, names: tuple[str, ...]) -> Maps:
    """By labelme: its own reader of files, and its own drawing of shapes."""
    from labelme import utils
    from labelme._label_file import read_label_file  # of labelme 6

    maps = {}
    for path in sorted(folder.rglob("*.json")):
        file = read_label_file(str(path))
        shapes, size = file.shapes, utils.img_data_to_arr(file.image_data).shape[:2]
        labels = np.full(size, -1, np.int32)
        for shape in shapes:
            (left, top), *_ = shape["points"]
            if shape["shape_type"] == "mask":
                mask = shape["mask"]
                rows, columns = (slice(round(a), round(a) + n) for a, n in zip((top, left), mask.shape, strict=True))
                labels[rows, columns][mask] = names.index(shape["label"])
            else:
                mask = utils.shape_to_mask(size, shape["points"], shape["shape_type"])
                labels[mask] = names.index(shape["label"])
        maps[path.relative_to(folder).with_suffix("").as_posix()] = labels
    return maps


def read_cvat(folder: Path) -> Maps:
    """By Datumaro, which needs the images."""
    from datumaro.components.dataset import Dataset

    with tempfile.TemporaryDirectory() as place:
        shutil.copy(folder / "annotations.xml", place)
        shutil.copytree(folder.parent / "yolo-seg" / "images", Path(place, "images"))
        return dict(_datumaro_maps(Dataset.import_from(place, "cvat")))


def read_label_studio(folder: Path, names: tuple[str, ...]) -> Maps:
    """By Label Studio's SDK, which checks each task against the configuration; polygons are drawn by Pillow."""
    from label_studio_sdk.label_interface import LabelInterface
    from PIL import ImageDraw

    interface = LabelInterface((folder / "config.xml").read_text(encoding="utf-8"))
    maps = {}
    for task in json.loads((folder / "tasks.json").read_text(encoding="utf-8")):
        prediction = task.pop("predictions")[0]
        interface.validate_task(task)
        assert interface.validate_prediction(prediction), interface.validate_prediction(prediction, return_errors=True)
        labels = None
        for result in prediction["result"]:
            width, height = result["original_width"], result["original_height"]
            labels = np.full((height, width), -1, np.int32) if labels is None else labels
            large = Image.new("1", (4 * width, 4 * height))
            points = np.array(result["value"]["points"]) / 100 * [4 * width, 4 * height] - 0.5
            ImageDraw.Draw(large).polygon([tuple(point) for point in points.tolist()], fill=1)
            labels[np.asarray(large)[2::4, 2::4]] = names.index(result["value"]["polygonlabels"][0])
        if labels is not None:
            maps[stem(task["data"]["image"].rpartition("=")[2])] = labels
    return maps


def read_fiftyone(folder: Path, names: tuple[str, ...]) -> Maps:
    """By FiftyOne's importer, which needs no database."""
    import fiftyone.utils.coco as fouc

    maps = {}
    with fouc.COCODetectionDatasetImporter(dataset_dir=str(folder), label_types="segmentations") as importer:
        for path, metadata, found in importer:
            labels = np.full((metadata.height, metadata.width), -1, np.int32)
            for one in found.detections if found else ():
                assert one.confidence is not None
                left, top = (
                    round(share * side) for share, side in zip(one.bounding_box, labels.shape[::-1], strict=False)
                )
                rows, columns = one.mask.shape
                labels[top : top + rows, left : left + columns][one.mask.astype(bool)] = names.index(one.label)
            maps[stem(Path(path).name)] = labels
    return maps


def stem(name: str) -> str:
    """The name of an image without its suffix."""
    return Path(name).with_suffix("").as_posix()


def _datumaro_maps(data) -> Iterator[tuple[str, np.ndarray]]:
    from datumaro.components.annotation import AnnotationType
    from pycocotools import mask as coco_mask

    for item in data:
        size = item.media.size if item.media is not None and item.media.has_size else item.attributes.get("size")
        labels = None
        for one in sorted(item.annotations, key=lambda one: one.z_order):
            if one.type == AnnotationType.mask:
                mask = np.asarray(one.image).astype(bool)
            else:
                mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([one.points], *size))).astype(bool)
            labels = np.full(mask.shape, -1, np.int32) if labels is None else labels
            labels[mask] = one.label
        if labels is not None:
            yield item.id, labels


def agreement(maps: Maps, expected: Maps) -> float:
    """The smallest share of pixels of an image that have the expected label; images without labels may be missing."""
    missing = {name for name, labels in expected.items() if (labels >= 0).any()} - maps.keys()
    assert not missing, f"{missing} are missing"
    return min(agreements(maps, expected).values())


def agreements(maps: Maps, expected: Maps) -> dict[str, float]:
    """The share of pixels of each image that have the expected label."""
    return {name: float((labels == expected[name]).mean()) for name, labels in maps.items()}


def readers(names: tuple[str, ...]) -> dict[str, Callable[[Path], Maps]]:
    """The reader of each format."""
    return {
        "png": read_png,
        "coco-instances": read_coco_instances,
        "coco-panoptic": read_coco_panoptic,
        "yolo-seg": read_yolo,
        "labelme": lambda folder: read_labelme(folder, names),
        "cvat": read_cvat,
        "label-studio": lambda folder: read_label_studio(folder, names),
        "fiftyone": lambda folder: read_fiftyone(folder, names),
    }


def main(folder: Path) -> int:
    lines = (folder / "png" / "dataset.yaml").read_text(encoding="utf-8").splitlines()
    names = tuple(json.loads(next(line for line in lines if line.startswith("classes:")).partition(":")[2]))
    expected = read_png(folder / "png")
    status = 0
    for name, read in readers(names).items():
        try:
            share = agreement(read(folder / name), expected)
        except ImportError as error:
            print(f"{name:15} not read: {error}")
            status = 1
            continue
        print(f"{name:15} {share:.5f}")
        if share < LEAST.get(name, 1):
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
