"""True segments of images: panoptic segments, masks that may overlap, or one segment for each class."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import Tensor

from ovseg.data.custom.coco import segment_ids
from ovseg.data.panoptic import FILE, SEGMENTS, panoptic_entries
from ovseg.errors import OvsegError, reason_of
from ovseg.evaluation.confusion import checked_labels
from ovseg.evaluation.ground_truth import GroundTruth
from ovseg.evaluation.proposals import best_ious, segment_ious
from ovseg.io.run_lengths import decode_mask

logger = logging.getLogger(__name__)

CLASSES, PANOPTIC, MASKS = "classes", "panoptic", "masks"
SEGMENT_KINDS = {
    CLASSES: "one true segment for each class of an image",
    PANOPTIC: "true segments of panoptic labels, things by instance",
    MASKS: "true masks, which may overlap",
}
PIXELS_AT_A_TIME = 2**26  # of several masks; bounds the memory


@dataclass(frozen=True)
class Segments:
    """The S true segments of an image.

    Attributes:
        classes: (S,) int64, the class of each.
        counted: (H,W) bool; other pixels are in no segment and no proposal.
        index: (N,) int64, the segment of each of the N counted pixels; None if segments may overlap.
        masks: (S,H,W) bool; None if they do not overlap.
    """

    classes: np.ndarray
    counted: np.ndarray
    index: np.ndarray | None = None
    masks: np.ndarray | None = None

    def best_ious(self, proposals: Tensor) -> np.ndarray:
        """Return the best IoU of each segment over proposals, bool (Q,H,W); float64 (S,), 0 without proposals."""
        best = torch.zeros(len(self.classes), dtype=torch.float64)
        if not len(best):
            return best.numpy()
        counted = torch.from_numpy(self.counted).to(proposals.device)
        at_a_time = max(1, PIXELS_AT_A_TIME // self.counted.size)
        for few in proposals.split(at_a_time) if len(proposals) else ():
            if self.index is None:
                pieces = torch.from_numpy(self.masks).split(at_a_time)
                found = torch.cat([best_ious(few, masks.to(few.device), ~counted).cpu() for masks in pieces])
            else:
                index = torch.from_numpy(self.index).to(few.device)
                found = segment_ious(few.bool()[:, counted], index).amax(dim=0).cpu()
            best = torch.maximum(best, found)
        return best.numpy()


class TrueSegments:
    """The true segments of the images of a data set.

    ``kind`` says what they are, by what the records of the data set have (the first one with ``annotations`` that are
    not empty counts, else the first one):

    * "panoptic": the segments of COCO's panoptic labels, things by instance (``pan_seg_file_name`` and
      ``segments_info``, or ``panoptic_root`` and ``panoptic_json`` in the metadata). Crowds are left out; their pixels
      and void do not count.
    * "masks": ``annotations`` with ``segmentation``, COCO's run-length codes, which may overlap. Crowds are left out,
      and their pixels do not count.
    * "classes": otherwise, all pixels of a class in an image.

    Pixels with the ignore label do not count. The class of a segment or mask is that of most of its pixels in the label
    map; one without a pixel that counts is left out.

    Args:
        dataset_name: a registered data set with labels.
    """

    def __init__(self, dataset_name: str) -> None:
        self.truth = GroundTruth(dataset_name)
        records = DatasetCatalog.get(dataset_name)
        first = next((record for record in records if record.get("annotations")), next(iter(records), None))
        self.kind = CLASSES if first is None else self._kind(first)

    def of(self, sample: Mapping[str, Any]) -> Segments:
        """Return the segments of a model input with ``file_name``.

        Raises:
            OvsegError: labels are unreadable or out of range, or sizes differ; the message names the file.
        """
        labels, label_file = self.truth.labels(sample)
        num_classes = len(self.truth.class_names)
        truth = checked_labels(labels, num_classes, self.truth.ignore_label, label_file)
        counted = truth < num_classes
        if self.kind == PANOPTIC:
            return self._panoptic(sample, truth, counted)
        if self.kind == MASKS:
            return self._masks(sample, truth, counted)
        classes, index = np.unique(truth[counted], return_inverse=True)
        return Segments(classes, counted, index.reshape(-1))

    def _kind(self, record: Mapping[str, Any]) -> str:
        if FILE in record or panoptic_entries(self.truth.dataset_name, record) is not None:
            return PANOPTIC
        if MetadataCatalog.get(self.truth.dataset_name).get("panoptic_json"):
            logger.warning(
                "%s: its panoptic labels are not on disk, so proposals are compared with one segment for each class",
                self.truth.dataset_name,
            )
        codes = [entry.get("segmentation") for entry in record.get("annotations", ())]
        return MASKS if codes and all(isinstance(code, dict) for code in codes) else CLASSES

    def _panoptic(self, sample: Mapping[str, Any], truth: np.ndarray, counted: np.ndarray) -> Segments:
        entries = panoptic_entries(self.truth.dataset_name, sample)
        if entries is None:
            raise OvsegError(f"image {sample.get('file_name')} has no panoptic labels, unlike others of its data set")
        ids = segment_ids(entries[FILE])
        _check_size(ids.shape, truth.shape, entries[FILE])
        real = [int(segment["id"]) for segment in entries[SEGMENTS] if not segment.get("iscrowd")]
        counted = counted & np.isin(ids, real) & (ids > 0)
        _, index = np.unique(ids[counted], return_inverse=True)
        index = index.reshape(-1)
        return Segments(_majority(truth[counted], index, len(self.truth.class_names)), counted, index)

    def _masks(self, sample: Mapping[str, Any], truth: np.ndarray, counted: np.ndarray) -> Segments:
        masks = []
        for annotation in sample.get("annotations", ()):
            mask = _decoded(annotation, str(sample.get("file_name")))
            _check_size(mask.shape, truth.shape, str(sample.get("file_name")))
            if annotation.get("iscrowd"):
                counted = counted & ~mask
            else:
                masks.append(mask)
        masks = [mask for mask in masks if (mask & counted).any()]
        num_classes = len(self.truth.class_names)
        classes = [np.bincount(truth[mask & counted], minlength=num_classes).argmax() for mask in masks]
        stacked = np.stack(masks) if masks else np.zeros((0, *truth.shape), bool)
        return Segments(np.array(classes, dtype=np.int64), counted, masks=stacked)


def _majority(labels: np.ndarray, index: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the most frequent label of each segment, the lowest of equals; (N,), (N,) -> int64 (S,)."""
    number = int(index.max()) + 1 if index.size else 0
    counts = np.bincount(index * num_classes + labels, minlength=number * num_classes)
    return counts.reshape(number, num_classes).argmax(axis=1)


def _check_size(found: Sequence[int], labels: Sequence[int], source: str) -> None:
    if tuple(found) != tuple(labels):
        raise OvsegError(
            f"the segments of {source} have size {tuple(found)}, but its labels {tuple(labels)}: prepare both again "
            "from the same release"
        )


def _decoded(annotation: Mapping[str, Any], name: str) -> np.ndarray:
    """Return the mask of an annotation, bool (H,W)."""
    try:
        code = annotation["segmentation"]
        return decode_mask(code["counts"], *(int(side) for side in code["size"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise OvsegError(
            f"{name} has an annotation without a usable run-length code ({reason_of(error)}): write it again"
        ) from error
