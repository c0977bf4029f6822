"""Mean IoU and its relatives over a data set (spec section 10.1)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ovseg.data.protocol import protocol_of
from ovseg.errors import OvsegError
from ovseg.evaluation.confusion import check_convention, confusion_matrix, scores_from_confusion
from ovseg.evaluation.ground_truth import GroundTruth
from ovseg.evaluation.predictions import PredictionWriter, encode_label_map

PREDICTIONS_FILE = "sem_seg_predictions.json"


class SemSegEvaluator(DatasetEvaluator):
    """Semantic segmentation scores of a registered data set, in one or several processes.

    Args:
        dataset_name: a registered data set with ``stuff_classes``, ``ignore_label`` and, optionally,
            ``evaluation_set`` in its metadata.
        output_dir: where predictions go when they are saved.
        convention: what plain ``mIoU`` divides by, "union" or "ground_truth"; see
            :func:`ovseg.evaluation.confusion.scores_from_confusion`.
        save_predictions: write ``sem_seg_predictions.json`` (COCO-Stuff result format) into ``output_dir``.
        post_process: called with the model input and its (Q,H,W) scores before the arg max, gives (Q,H,W) scores.
        variant: which words the model was asked, "names" or "synonyms"; see :func:`ovseg.data.protocol.protocol_of`.

    The model answers in the Q words of ``protocol.vocabulary``; ``protocol.classes_of`` makes them the K classes that
    are scored and saved. Memory does not grow with the number of images: predictions are streamed to disk.
    After :meth:`evaluate`, ``confusion`` on the main process is the (K+1,K+1) int64 matrix over all images and
    ``num_images`` their number.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | Path | None = None,
        convention: str = "union",
        save_predictions: bool = False,
        post_process: Callable[[dict, torch.Tensor], torch.Tensor] | None = None,
        variant: str = "names",
    ) -> None:
        check_convention(convention)
        if save_predictions and not output_dir:
            raise OvsegError("saving predictions needs an output folder: set OUTPUT_DIR")
        self.ground_truth = GroundTruth(dataset_name)
        self.protocol = protocol_of(dataset_name, variant)
        self.convention = convention
        self._post_process = post_process
        self._predictions_path = Path(output_dir) / PREDICTIONS_FILE if save_predictions else None
        self._writer: PredictionWriter | None = None
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self.close()
        side = len(self.ground_truth.class_names) + 1
        self.confusion = np.zeros((side, side), dtype=np.int64)
        self.num_images = 0

    def close(self) -> None:
        """Remove what an unfinished run has streamed to disk."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count the pixels of a batch.

        Args:
            inputs: model inputs with ``file_name`` (and, optionally, ``sem_seg_file_name``).
            outputs: for each input ``label_map`` (H,W) indices of words, or ``sem_seg`` (Q,H,W) scores, at label size.

        Raises:
            OvsegError: unreadable labels, labels out of range, or sizes that differ; names the file.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            pred = self.protocol.classes_of(self._label_map(sample, output))
            labels, label_file = self.ground_truth.labels(sample)
            self.confusion += confusion_matrix(
                pred,
                labels,
                len(self.ground_truth.class_names),
                self.ground_truth.ignore_label,
                pred_source=str(sample.get("file_name", "an image")),
                gt_source=label_file,
            )
            self.num_images += 1
            if self._predictions_path is not None:
                if self._writer is None:
                    self._writer = PredictionWriter(self._predictions_path)
                records = encode_label_map(pred, str(sample["file_name"]), self.ground_truth.dataset_ids)
                self._writer.write(records)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Scores over all images of all processes, ``{"sem_seg": {name: percent}}``; None outside the main process."""
        if self._predictions_path is not None:
            writer = self._writer or PredictionWriter(self._predictions_path)
            writer.finish()
            self._writer = None
        gathered = comm.gather((self.confusion, self.num_images), dst=0)
        if not comm.is_main_process():
            return None
        self.confusion = np.sum([conf for conf, _ in gathered], axis=0)
        self.num_images = sum(count for _, count in gathered)
        if self.num_images == 0:
            raise OvsegError(f"no image of data set {self.ground_truth.dataset_name!r} was evaluated: it is empty")
        truth = self.ground_truth
        scores = scores_from_confusion(self.confusion, truth.class_names, truth.evaluation_set, self.convention)
        return OrderedDict(sem_seg=scores)

    def _label_map(self, sample: dict, output: dict) -> np.ndarray:
        if self._post_process is not None:
            return self._post_process(sample, output["sem_seg"]).argmax(dim=0).cpu().numpy()
        if "label_map" in output:
            return output["label_map"].cpu().numpy()
        return output["sem_seg"].argmax(dim=0).cpu().numpy()
