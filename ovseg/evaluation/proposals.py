"""Recall of ground-truth segments by class-agnostic mask proposals."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ovseg.errors import OvsegError
from ovseg.evaluation.confusion import check_subset, checked_labels
from ovseg.evaluation.ground_truth import GroundTruth
from ovseg.evaluation.tally import State, Tally, add_other_processes, check_counts

IOU_THRESHOLD = 0.5
RECALL, MEAN_BEST_IOU = "recall@0.5", "mean-best-IoU"
_PIXELS_PER_CHUNK = 1 << 16
# IoUs are summed as integers, so that the sum does not depend on how images are spread over processes.
_FIXED_POINT = 1 << 32


def segment_intersections(proposals: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """Count the pixels that each proposal shares with each segment.

    Args:
        proposals: (Q,N) bool, N pixels.
        segments: (N,) int64, index in [0,S) of the segment that each pixel belongs to.

    Returns:
        (Q,S) float64.
    """
    num_segments = int(segments.max()) + 1 if segments.numel() else 0
    return _shared_pixels(
        proposals,
        num_segments,
        lambda chunk: torch.nn.functional.one_hot(segments[chunk], num_segments).to(torch.float32),
    )


def ious_of(intersections: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """Return the (Q,S) IoUs for the result of :func:`segment_intersections` with the same segments."""
    area = intersections.sum(dim=1, keepdim=True)  # segments cover all pixels, so this is each proposal's area
    sizes = torch.bincount(segments, minlength=intersections.shape[1]).to(torch.float64)
    return intersections / (area + sizes - intersections).clamp(min=1)


def segment_ious(proposals: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """Compute the (Q,S) float64 IoU of each proposal and segment; arguments as in :func:`segment_intersections`."""
    return ious_of(segment_intersections(proposals, segments), segments)


def best_ious(proposals: torch.Tensor, labels: torch.Tensor, ignore: torch.Tensor | None = None) -> torch.Tensor:
    """Return the best IoU of each true mask over the proposals of an image.

    Args:
        proposals: bool (N, H, W).
        labels: bool (M, H, W), true masks, which may overlap.
        ignore: bool (H, W), pixels that are in no mask; default: none.

    Returns:
        float64 (M,), 0 where there is no proposal or a mask has no pixel.
    """
    proposals, masks = proposals.flatten(1).bool(), labels.flatten(1).bool()
    if ignore is not None:
        counted = ~ignore.flatten().bool()
        proposals, masks = proposals[:, counted], masks[:, counted]
    if not len(proposals):
        return torch.zeros(len(masks), dtype=torch.float64, device=masks.device)
    shared = _shared_pixels(proposals, len(masks), lambda chunk: masks[:, chunk].to(torch.float32).T)
    areas, sizes = proposals.sum(1, keepdim=True), masks.sum(1)
    return (shared / (areas + sizes - shared).clamp(min=1)).amax(0)


def recall_at(best_ious: torch.Tensor, thresholds: Sequence[float]) -> list[float]:
    """Return the share of true masks whose best IoU is at least each threshold, in percent; NaN without masks."""
    return [100 * float((best_ious >= threshold).double().mean()) for threshold in thresholds]


def _shared_pixels(proposals: torch.Tensor, number: int, masks_of: Callable[[slice], torch.Tensor]) -> torch.Tensor:
    """Count the pixels that each proposal shares with each of ``number`` masks.

    Args:
        proposals: (Q,N) bool.
        number: S.
        masks_of: a range of n pixels -> the masks there, float32 (n,S) of 0 and 1.

    Returns:
        (Q,S) float64. Pixels are counted in chunks of at most 65,536, where float32 sums of ones are exact.
    """
    shared = torch.zeros(len(proposals), number, dtype=torch.float64, device=proposals.device)
    for start in range(0, proposals.shape[1], _PIXELS_PER_CHUNK):
        chunk = slice(start, start + _PIXELS_PER_CHUNK)
        shared += (proposals[:, chunk].to(torch.float32) @ masks_of(chunk)).to(torch.float64)
    return shared


class ProposalRecallEvaluator(DatasetEvaluator, Tally):
    """Evaluator of the recall of ground-truth segments by the proposals, regardless of their names.

    A ground-truth segment is the set of all pixels of one class in one image. Ignored pixels belong to no segment and
    no proposal. Each segment has a best IoU over the image's proposals; the scores are the share of segments whose
    best IoU is at least 0.5, and the mean best IoU, in percent, over all segments and over the segments of each subset
    of the metadata's ``evaluation_set``.

    Args:
        dataset_name: a registered data set with labels.
    """

    def __init__(self, dataset_name: str) -> None:
        self.ground_truth = GroundTruth(dataset_name)
        self.reset()

    def reset(self) -> None:
        """Reset all counts."""
        num_classes = len(self.ground_truth.class_names)
        # rows: number of segments, of found ones, sum of best IoUs in fixed point; columns: classes
        self._sums = np.zeros((3, num_classes), dtype=np.int64)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Match the proposals of a batch with the ground-truth segments.

        Args:
            inputs: model inputs with ``file_name``.
            outputs: for each input ``proposals`` (Q,H,W) bool at label size.

        Raises:
            OvsegError: labels are unreadable or out of range, or sizes differ; the message names the file.
        """
        num_classes = len(self.ground_truth.class_names)
        for sample, output in zip(inputs, outputs, strict=True):
            labels, label_file = self.ground_truth.labels(sample)
            proposals = output["proposals"]
            if tuple(proposals.shape[1:]) != labels.shape:
                raise OvsegError(
                    f"the proposals for {sample.get('file_name')} have size {tuple(proposals.shape[1:])}, but its "
                    f"labels in {label_file} have size {labels.shape}: image and label file must be equally large"
                )
            truth = checked_labels(labels, num_classes, self.ground_truth.ignore_label, label_file)
            counted = truth < num_classes
            classes, segments = np.unique(truth[counted], return_inverse=True)
            if not classes.size:
                continue
            inside = proposals.bool()[:, torch.from_numpy(counted).to(proposals.device)]  # (Q, N)
            ious = segment_ious(inside, torch.from_numpy(segments.reshape(-1)).to(proposals.device))  # (Q, S)
            best = ious.amax(dim=0).cpu().numpy() if len(ious) else np.zeros(len(classes))
            # each class occurs once in an image, so plain fancy indexing adds every segment
            self._sums[0, classes] += 1
            self._sums[1, classes] += best >= IOU_THRESHOLD
            self._sums[2, classes] += np.rint(best * _FIXED_POINT).astype(np.int64)

    def state(self) -> State:
        return {"sums": self._sums}

    def add(self, state: State) -> None:
        self._sums += state["sums"]

    def check(self, state: State, images: Sequence[int]) -> None:
        check_counts(self._sums, state["sums"])

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Return ``{"proposals": {name: percent}}`` over all processes; None outside the main process."""
        add_other_processes(self)
        if not comm.is_main_process():
            return None
        num_classes = len(self.ground_truth.class_names)
        subsets = {"": np.arange(num_classes)}
        for name, members in self.ground_truth.evaluation_set.items():
            subsets[f"-{name}"] = check_subset(name, members, num_classes)
        scores: dict[str, float] = {}
        for suffix, classes in subsets.items():
            number, found, total = (int(value) for value in self._sums[:, classes].sum(axis=1))
            scores[f"{RECALL}{suffix}"] = 100 * found / number if number else float("nan")
            scores[f"{MEAN_BEST_IOU}{suffix}"] = 100 * total / _FIXED_POINT / number if number else float("nan")
            scores[f"segments{suffix}"] = number
        return OrderedDict(proposals=scores)
