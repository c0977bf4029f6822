"""Evaluator of the recall of true segments by class-agnostic mask proposals (OpenSeg, arXiv 2112.12143, table 1)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ovseg.errors import OvsegError
from ovseg.evaluation.confusion import check_subset
from ovseg.evaluation.tally import State, Tally, add_other_processes, check_counts
from ovseg.evaluation.true_segments import CLASSES, TrueSegments

THRESHOLDS = (0.5, 0.7, 0.9)
RECALLS = tuple(f"recall@{threshold}" for threshold in THRESHOLDS)
MEAN_BEST_IOU = "mean-best-IoU"
# IoUs are summed as integers, so that the sum does not depend on how images are spread over processes.
_FIXED_POINT = 1 << 32


class ProposalRecallEvaluator(DatasetEvaluator, Tally):
    """Evaluator of the recall of true segments by the proposals, regardless of their names.

    The segments are those of :class:`ovseg.evaluation.true_segments.TrueSegments`; ignored pixels belong to no segment
    and no proposal. Proposals are not ranked, may overlap, and one may be the best of several segments. Each segment
    has a best IoU over the image's proposals; the scores are the share of segments whose best IoU is at least 0.5, 0.7
    and 0.9, and the mean best IoU, in percent, over all segments and over the segments of each subset of the metadata's
    ``evaluation_set``.

    Args:
        dataset_name: a registered data set with labels.
    """

    def __init__(self, dataset_name: str) -> None:
        self.segments = TrueSegments(dataset_name)
        self.ground_truth = self.segments.truth
        self.reset()

    def describe(self) -> dict[str, Any]:
        """Return what the scores depend on, for records and fingerprints: the kind of segments, and the thresholds."""
        return {"segments": self.segments.kind, "thresholds": list(THRESHOLDS)}

    def reset(self) -> None:
        """Reset all counts."""
        num_classes = len(self.ground_truth.class_names)
        # rows: number of segments, of those found at each threshold, sum of best IoUs in fixed point; columns: classes
        self._sums = np.zeros((2 + len(THRESHOLDS), num_classes), dtype=np.int64)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Match the proposals of a batch with the true segments.

        Args:
            inputs: model inputs with ``file_name``.
            outputs: for each input ``proposals`` (Q,H,W) bool at label size.

        Raises:
            OvsegError: labels are unreadable or out of range, or sizes differ; the message names the file.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            segments, proposals = self.segments.of(sample), output["proposals"]
            if tuple(proposals.shape[1:]) != segments.counted.shape:
                raise OvsegError(
                    f"the proposals for {sample.get('file_name')} have size {tuple(proposals.shape[1:])}, but its "
                    f"labels in {self.ground_truth.labels(sample)[1]} have size {segments.counted.shape}: image and "
                    "label file must be equally large"
                )
            best = segments.best_ious(proposals)
            found = best >= np.array(THRESHOLDS)[:, None]
            rows = np.stack([np.ones(len(best)), *found, np.rint(best * _FIXED_POINT)]).astype(np.int64)
            np.add.at(self._sums.T, segments.classes, rows.T)  # a class may have several segments

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
            number, *found, total = (int(value) for value in self._sums[:, classes].sum(axis=1))
            for name, count in zip(RECALLS, found, strict=True):
                scores[f"{name}{suffix}"] = 100 * count / number if number else float("nan")
            scores[f"{MEAN_BEST_IOU}{suffix}"] = 100 * total / _FIXED_POINT / number if number else float("nan")
            scores[f"segments{suffix}"] = number
        return OrderedDict(proposals=scores)


def earlier_description(results: dict[str, Any]) -> dict[str, Any] | None:
    """Return what :meth:`ProposalRecallEvaluator.describe` would have been for a record that has no such entry."""
    return {"segments": CLASSES, "thresholds": [THRESHOLDS[0]]} if "proposals" in results else None
