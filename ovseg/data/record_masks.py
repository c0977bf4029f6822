"""The masks of a dataset dict, whatever describes them, on the grid of an augmented image; classes do not matter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import transforms as T
from pycocotools import mask as run_lengths

from ovseg.data.custom.coco import encode_segmentation, segment_ids
from ovseg.data.custom.geometry import NoArea
from ovseg.data.pseudo_masks import read_masks
from ovseg.errors import OvsegError, reason_of
from ovseg.io.images import read_labels

SOURCES = ("annotations", "pan_seg_file_name", "sem_seg_file_name", "pseudo_masks")  # of masks; the first one counts


@dataclass(frozen=True)
class Grid:
    """Place of an augmented image in the image, which is resized, then cut and mirrored.

    Attributes:
        height, width: H and W of the image.
        resized: height and width of the whole resized image.
        rows: int64 (h,), the row of the resized image for each row of the augmented image.
        columns: int64 (w,), likewise.
    """

    height: int
    width: int
    resized: tuple[int, int]
    rows: np.ndarray
    columns: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Height h and width w of the augmented image."""
        return len(self.rows), len(self.columns)

    def take_image(self, image: np.ndarray) -> np.ndarray:
        """Return (h, w, C) of an image uint8 (H, W, C), bilinear."""
        resize = T.ResizeTransform(self.height, self.width, *self.resized)
        return resize.apply_image(image)[self.rows[:, None], self.columns]

    def take(self, values: np.ndarray, source: Any) -> np.ndarray:
        """Return (..., h, w) of labels or masks (..., H, W), by nearest neighbour.

        Raises:
            OvsegError: the values are of another size than the image; names their ``source``.
        """
        if values.shape[-2:] != (self.height, self.width):
            height, width = values.shape[-2:]
            raise OvsegError(
                f"{source} has {width}x{height} pixels but its image {self.width}x{self.height}: both must be of one "
                "size"
            )
        height, width = self.resized
        rows = (2 * self.rows + 1) * self.height // (2 * height)  # the pixel that contains the centre
        columns = (2 * self.columns + 1) * self.width // (2 * width)
        return values[..., rows[:, None], columns]


def record_masks(record: Mapping[str, Any], grid: Grid, ignore_label: int) -> np.ndarray:
    """Return the masks of a dataset dict, without those that the augmentation leaves no pixel.

    The first of these that the dict has counts: ``annotations``, Detectron2's instances, whose ``segmentation`` is a
    COCO RLE or polygons; ``pan_seg_file_name`` with ``segments_info``, COCO's panoptic segments, things by instance and
    stuff by class; ``sem_seg_file_name``, a label map, one mask for each of its values but ``ignore_label``; or
    ``pseudo_masks`` of :mod:`ovseg.data.pseudo_masks`, which also count in place of an empty list of ``annotations``.
    Crowds (``iscrowd``) are left out. Without any there is no mask.

    Masks are read one at a time: at the size of the image there is one of them in memory.

    Args:
        record: dataset dict.
        grid: of the augmented image.
        ignore_label: value of label maps without a mask; a dict's own ``ignore_label`` wins.

    Returns:
        bool (M, h, w); M may be 0.

    Raises:
        OvsegError: unreadable files, damaged masks, or masks of another size than the image.
    """
    source = _source(record)
    if source == "annotations":
        masks = _instances(record, grid)
    elif source == "pan_seg_file_name":
        masks = _segments(record, grid)
    elif source == "sem_seg_file_name":
        masks = _label_map(record, grid, record.get("ignore_label", ignore_label))
    elif source == "pseudo_masks":
        whole = read_masks(record["pseudo_masks"], grid.height, grid.width)
        masks = (grid.take(mask, "a pseudo-mask") for mask in whole)
    else:
        masks = ()
    kept = [mask for mask in masks if mask.any()]
    return np.stack(kept) if kept else np.zeros((0, *grid.size), bool)


def has_masks(record: Mapping[str, Any]) -> bool:
    """Return whether a dataset dict describes masks; an empty list of ``annotations`` does not."""
    return bool(record.get(_source(record)))


def _source(record: Mapping[str, Any]) -> str | None:
    """Return the key of a dataset dict that describes its masks."""
    if "pseudo_masks" in record and not record.get("annotations", True):
        return "pseudo_masks"
    return next((key for key in SOURCES if key in record), None)


def _segments(record: Mapping[str, Any], grid: Grid) -> Iterator[np.ndarray]:
    file = Path(record["pan_seg_file_name"])
    ids = grid.take(segment_ids(file), f"label file {file}")
    try:
        numbers = [info["id"] for info in record["segments_info"] if not info.get("iscrowd", 0)]
    except (KeyError, TypeError) as error:
        raise OvsegError(f"segments_info of {record['file_name']} is unusable ({reason_of(error)})") from error
    return (ids == number for number in np.array(numbers, ids.dtype))


def _label_map(record: Mapping[str, Any], grid: Grid, ignore_label: int) -> Iterator[np.ndarray]:
    file = record["sem_seg_file_name"]
    labels = grid.take(read_labels(file), f"label file {file}")
    return (labels == value for value in np.unique(labels) if value != ignore_label)


def _instances(record: Mapping[str, Any], grid: Grid) -> Iterator[np.ndarray]:
    for number, annotation in enumerate(record["annotations"], start=1):
        if annotation.get("iscrowd", 0):
            continue
        try:
            rle, _ = encode_segmentation(_plain(annotation.get("segmentation")), (grid.height, grid.width))
        except NoArea:
            continue
        except (TypeError, ValueError) as error:
            raise OvsegError(
                f"annotation {number} of {record['file_name']} has no usable segmentation: {error}"
            ) from error
        yield grid.take(run_lengths.decode(rle).astype(bool), f"a mask of {record['file_name']}")


def _plain(segmentation: Any) -> Any:
    """Return a segmentation with lists in place of arrays, and text in place of bytes, as JSON has them."""
    if isinstance(segmentation, Mapping):
        counts = segmentation.get("counts")
        counts = counts.decode("ascii", "replace") if isinstance(counts, bytes) else counts
        return {"size": list(segmentation.get("size", ())), "counts": counts}
    if isinstance(segmentation, Sequence) and not isinstance(segmentation, str):
        return [part.tolist() if isinstance(part, np.ndarray) else part for part in segmentation]
    return segmentation
