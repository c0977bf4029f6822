"""Evaluator of semantic segmentation: mean IoU and related scores (specification, section 10.1)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ovseg.data.protocol import Protocol, protocol_of
from ovseg.errors import OvsegError
from ovseg.evaluation.confusion import LabelRuns, check_convention, label_runs, scores_from_confusion
from ovseg.evaluation.ground_truth import GroundTruth
from ovseg.evaluation.tally import State, Tally, add_other_processes, check_counts


@dataclass(frozen=True)
class SeenImage:
    """An evaluated image.

    Attributes:
        index: position in the data set.
        file_name: file of the image.
        label_file: file of the ground-truth labels.
        label_map: (H,W) integers, the predicted classes.
        runs: run-length encoding of prediction and ground truth.
        groups: (H,W) integers, the group of each pixel; None unless the model's ``group_maps`` were asked for.
    """

    index: int
    file_name: str
    label_file: str
    label_map: np.ndarray
    runs: LabelRuns
    groups: np.ndarray | None = None


class Keeper(Tally):
    """Base class of what receives every image that a :class:`SemSegEvaluator` has counted, and writes files."""

    def see(self, seen: SeenImage) -> None:
        """Process one image; memory use must not grow with the number of images."""
        raise NotImplementedError

    def finish(self) -> None:
        """Merge all processes and write the file on the main process; called in every process, at the end."""

    def close(self) -> None:
        """Close open files; called at the end and after errors."""


class SemSegEvaluator(DatasetEvaluator, Tally):
    """Evaluator of semantic segmentation on a registered data set, in one or several processes.

    The model's labels are indices of the Q words of ``protocol.vocabulary``; ``protocol.classes_of`` maps them to the K
    classes that are scored and saved. Memory does not grow with the number of images.

    Args:
        dataset_name: a registered data set with ``stuff_classes``, ``ignore_label`` and, optionally,
            ``evaluation_set`` in its metadata.
        convention: convention of plain ``mIoU``, "union" or "ground_truth"; see
            :func:`ovseg.evaluation.confusion.scores_from_confusion`.
        post_process: called with the model input and its (Q,H,W) scores before the arg max; returns (Q,H,W) scores.
        protocol: words given to the model; by default the names of the classes.
        keepers: receive every image after it was counted.

    Attributes:
        confusion: (K+1,K+1) int64, over ``num_images`` images: those that this process has counted; after
            :meth:`evaluate`, on the main process, those of all processes.
    """

    def __init__(
        self,
        dataset_name: str,
        convention: str = "union",
        post_process: Callable[[dict, torch.Tensor], torch.Tensor] | None = None,
        protocol: Protocol | None = None,
        keepers: Sequence[Keeper] = (),
    ) -> None:
        check_convention(convention)
        self.ground_truth = GroundTruth(dataset_name)
        self.protocol = protocol or protocol_of(dataset_name)
        self.convention = convention
        self._post_process = post_process
        self._keepers = tuple(keepers)
        self.reset()

    def reset(self) -> None:
        """Reset all counts."""
        side = len(self.ground_truth.class_names) + 1
        self.confusion = np.zeros((side, side), dtype=np.int64)
        self.num_images = 0

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count the pixels of a batch.

        Args:
            inputs: model inputs with ``file_name``, and, optionally, ``sem_seg_file_name`` and ``index``, the image's
                position in the data set; without it, images must come in the data set's order.
            outputs: for each input ``label_map`` (H,W) indices of words, with ``score_map`` where the protocol has a
                threshold, or ``sem_seg`` (Q,H,W) scores, at label size.

        Raises:
            OvsegError: labels are unreadable or out of range, or sizes differ; the message names the file.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            pred = self.protocol.classes_of(*self._label_map(sample, output))
            labels, label_file = self.ground_truth.labels(sample)
            runs = label_runs(
                pred,
                labels,
                len(self.ground_truth.class_names),
                self.ground_truth.ignore_label,
                pred_source=str(sample.get("file_name", "an image")),
                gt_source=label_file,
            )
            runs.add_to(self.confusion)
            if self._keepers:
                index = sample.get("index", self.num_images)
                maps = output.get("group_maps")  # (K,H,W)
                groups = None if maps is None else maps.argmax(dim=0).cpu().numpy()
                seen = SeenImage(index, str(sample["file_name"]), label_file, pred, runs, groups)
                for keeper in self._keepers:
                    keeper.see(seen)
            self.num_images += 1

    def state(self) -> State:
        return {"confusion": self.confusion, "num_images": np.array(self.num_images)}

    def add(self, state: State) -> None:
        self.confusion += state["confusion"]
        self.num_images += int(state["num_images"])

    def check(self, state: State, images: Sequence[int]) -> None:
        check_counts(self.confusion, state["confusion"])
        if state["num_images"].ndim or int(state["num_images"]) != len(images):
            raise ValueError(f"counts {state['num_images']} images instead of {len(images)}")

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Return ``{"sem_seg": {name: percent}}`` over the images of all processes; None outside the main process."""
        add_other_processes(self)
        if not comm.is_main_process():
            return None
        if self.num_images == 0:
            raise OvsegError(f"no image of data set {self.ground_truth.dataset_name!r} was evaluated: it is empty")
        truth = self.ground_truth
        scores = scores_from_confusion(self.confusion, truth.class_names, truth.evaluation_set, self.convention)
        return OrderedDict(sem_seg=scores)

    def _label_map(self, sample: dict, output: dict) -> tuple[np.ndarray, np.ndarray | None]:
        """Return indices of words, and their scores if the protocol needs them."""
        if self._post_process is None and "label_map" in output:
            labels, scores = output["label_map"], output.get("score_map")
        else:
            scores = output["sem_seg"]
            labels = (scores if self._post_process is None else self._post_process(sample, scores)).argmax(dim=0)
            scores = scores.amax(dim=0)
        needed = self.protocol.threshold is not None and scores is not None
        return labels.cpu().numpy(), scores.cpu().numpy() if needed else None
