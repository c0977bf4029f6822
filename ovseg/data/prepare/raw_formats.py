"""Raw formats of single data sets: ADE20K's index, PASCAL Context's two sources of labels and two orders of classes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ovseg.data.file_list import scan
from ovseg.data.prepare.sources import BadFile, NothingFound, raw_labels
from ovseg.errors import OvsegError, reason_of
from ovseg.io.run_lengths import decode_mask
from ovseg.vocabulary import label_set


def read_index(path: Path) -> list[PurePosixPath]:
    """Return the images that an index lists, as paths below the root of all data sets.

    The index's big tables (objects by images, 817 MB in the release) are read over, not kept.

    Raises:
        NothingFound: there is no such file.
        OvsegError: it is damaged, holds other things than an index does, or a path that leads out of the root.
    """
    from ovseg.checkpoint.pickles import BoundedFile, Call, StandIn, read_pickle  # needs torch, which takes seconds
    from ovseg.checkpoint.stand_ins import stand_in

    def any_object(name: str) -> Any:
        return Call(array) if name.startswith("numpy.") else stand_in(name)

    def array(*_: Any) -> StandIn:
        """Stand for any NumPy object: nothing of it is kept but the list inside an array of objects."""
        return StandIn(lambda state: state[-1] if isinstance(state, tuple) and isinstance(state[-1], list) else None)

    try:
        with path.open("rb") as file:
            content = read_pickle(BoundedFile(file, path.stat().st_size), any_object)
        names, folders = (_texts(content[key]) for key in ("filename", "folder"))
        files = [PurePosixPath(folder) / name for folder, name in zip(folders, names, strict=True)]
    except FileNotFoundError as error:
        raise NothingFound(f"index {path} is missing") from error
    except Exception as error:  # damaged pickles raise almost anything
        raise OvsegError(
            f"{path} is not ADE20K's index, or is damaged ({reason_of(error)}): unpack it again, or leave it out, "
            "since the folders hold the same"
        ) from error
    for file in files:
        if file.is_absolute() or ".." in file.parts:
            raise OvsegError(f"{path} lists {str(file)!r}, which leads out of the data set: do not use this file")
    return files


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("its filename and folder are not lists of texts")
    return values


FOLDER = "VOCdevkit/VOC2010"
# label sets of 59 classes by their folder; both follow from the 459 classes
ORDERS = {"pc59": "pascal_context_59", "pc59_alphabetical": "pascal_context_59_alphabetical"}


def label_map(path: Path) -> np.ndarray:
    """Return the (H,W) uint16 values 0..459 of a ``.mat`` annotation.

    Raises:
        BadFile: it is missing, damaged or something else.
    """
    from scipy.io import loadmat  # takes a second to import

    try:
        return loadmat(path, variable_names=["LabelMap"])["LabelMap"]
    except Exception as error:  # scipy raises many kinds on damaged files
        raise BadFile(
            f"{path} is no PASCAL Context annotation ({reason_of(error)}): unpack its archive again"
        ) from error


@dataclass(frozen=True)
class DetailImage:
    """An image of the Detail API's JSON.

    Attributes:
        split: train or val.
        size: height and width in pixels.
        segments: (category id, run-length encoded mask), the later ones on top.
    """

    split: str
    size: tuple[int, int]
    segments: list[tuple[int, dict[str, Any]]] = field(default_factory=list)

    def draw(self, path: Path) -> np.ndarray:
        """Return (H,W) uint16 category ids, 0 where there is none.

        Raises:
            BadFile: a mask is damaged or of another size than the image; ``path`` is named as its file.
        """
        labels = np.zeros(self.size, dtype=np.uint16)
        for category, mask in self.segments:
            try:
                if tuple(mask["size"]) != self.size:
                    raise ValueError(f"its size is {mask['size']}, the image's {list(self.size)}")
                if not 0 <= category < 2**16:
                    raise ValueError(f"its category is {category}")
                labels[decode_mask(mask["counts"], *self.size)] = category
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise BadFile(f"{path} holds a mask that cannot be drawn ({error}): download it again") from error
        return labels


def read_detail(path: Path) -> dict[str, DetailImage]:
    """Return the images of ``trainval_merged.json`` by name.

    Raises:
        NothingFound: there is no such file.
        OvsegError: it is damaged or something else.
    """
    try:
        content = json.loads(path.read_bytes())
        by_id = {entry["image_id"]: entry for entry in content["images"]}
        images = {
            key: DetailImage(entry["phase"], (int(entry["height"]), int(entry["width"])))
            for key, entry in by_id.items()
        }
        for entry in content["annos_segmentation"]:
            images[entry["image_id"]].segments.append((int(entry["category_id"]), entry["segmentation"]))
        if strange := next(
            (image for image in images.values() if not 0 < min(image.size) <= max(image.size) < 2**14), 0
        ):
            raise ValueError(f"an image of {strange.size[0]} x {strange.size[1]} pixels")
        return {Path(by_id[key]["file_name"]).stem: image for key, image in images.items()}
    except FileNotFoundError as error:
        raise NothingFound(f"{path} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise OvsegError(f"{path} is not the Detail API's JSON ({reason_of(error)}): download it again") from error


def check_orders(root: Path) -> Iterator[str]:
    """Yield labels of 59 classes that contradict the 459 classes; most are in the order of another project."""
    for folder in ORDERS:
        for split in ("val", "train"):
            place = root / FOLDER / "annotations_detectron2" / f"{folder}_{split}"
            for name, entry in scan(place, ".png").items():
                fitting = _fitting_orders(root, split, name, Path(entry.path))
                if fitting is None or folder in fitting:
                    continue
                if fitting:
                    yield (
                        f"{place}: is in the order of {fitting[0]} (seen in {name}.png), as other projects write it; "
                        "move the folder away and run the script again"
                    )
                    break
                yield f"{entry.path}: holds other classes than the annotation of 459 classes"


def _fitting_orders(root: Path, split: str, name: str, path: Path) -> list[str] | None:
    """Return those of :data:`ORDERS` in which a label file agrees with the 459 classes; None if unknown."""
    try:
        labels, values = raw_labels(path), _values(root, split, name)
    except BadFile:
        return None  # found by other checks
    if values is None or labels.shape != values.shape or labels.max(initial=0, where=labels != 255) >= 59:
        return None
    counted = labels != 255
    ids = {folder: np.array(label_set(classes).dataset_ids) for folder, classes in ORDERS.items()}
    return [folder for folder in ORDERS if (ids[folder][labels[counted]] == values[counted]).all()]


def _values(root: Path, split: str, name: str) -> np.ndarray | None:
    """Return (H,W) values 0..459 (0 or 65536: none), from labels of 459 classes or the ``.mat`` file."""
    base = root / FOLDER
    prepared, source = base / f"annotations_detectron2/pc459_{split}/{name}.tif", base / f"trainval/{name}.mat"
    if prepared.is_file():
        return raw_labels(prepared).astype(np.int32) + 1
    return label_map(source).astype(np.int32) if source.is_file() else None
