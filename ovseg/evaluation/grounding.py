"""Grounding mIoU: each image is segmented into the words of its own classes alone (OpenSeg, arXiv 2112.12143).

It measures where a model finds words that are in the image, whatever other words of the data set mean. A class that an
image lacks is never predicted in it, so that both conventions of mean IoU agree.

The words must be restricted before a softmax over them, which takes a second pass of the model. Where the score of a
word does not depend on the other words (``model.scores_are_independent``, such as cosines of pixels), leaving the other
words out of the argmax is exact, and there is no second pass.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ovseg.data.protocol import Protocol
from ovseg.errors import OvsegError
from ovseg.evaluation.confusion import checked_labels
from ovseg.evaluation.ground_truth import GroundTruth
from ovseg.evaluation.sem_seg import SemSegEvaluator

PREFIX = "Grounding-"


def check_grounding(cfg: CfgNode) -> None:
    """Raise OvsegError unless TEST.GROUNDING_MIOU is False or agrees with the other keys."""
    if not cfg.TEST.GROUNDING_MIOU:
        return
    if cfg.TEST.DENSE_CRF:
        raise OvsegError("TEST.GROUNDING_MIOU is True, but not defined with a CRF: set TEST.DENSE_CRF to False")
    if cfg.TEST.ORACLE in ("words", "labels"):
        raise OvsegError(
            f"TEST.GROUNDING_MIOU is True, but TEST.ORACLE {cfg.TEST.ORACLE} leaves it no words to restrict: set one "
            "of them to its default, False or none"
        )


def present_only(scores: Tensor, labels: Tensor, ignore_label: int | None) -> Tensor:
    """Return scores with -inf for the classes that the label map of an image lacks.

    Their argmax is the answer to the words of the image alone if the score of a word does not depend on the others.

    Args:
        scores: (C, H, W) of all classes.
        labels: integers (H, W), 0 to C - 1 or ``ignore_label``.
        ignore_label: value of pixels without a class; None if there are none.

    Returns:
        (C, H, W); ``scores`` itself if the image has no class.

    Raises:
        OvsegError: a label is out of range.
    """
    present = present_classes(labels.cpu().numpy(), len(scores), ignore_label, "labels")
    if not present:
        return scores
    absent = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    absent[present] = False
    return scores.masked_fill(absent[:, None, None], -torch.inf)


def present_classes(labels: np.ndarray, num_classes: int, ignore_label: int | None, source: str) -> list[int]:
    """Return the classes of a label map, ascending; arguments and errors are those of :func:`checked_labels`."""
    found = np.unique(checked_labels(labels, num_classes, ignore_label, source))
    return found[found < num_classes].tolist()


class PresentWords:
    """The words of the classes that each image has, and no others.

    Args:
        model: gives label maps of requests.
        truth: labels of the data set.
        protocol: its words.
        independent: the score of a word does not depend on the others; see the module.
    """

    def __init__(self, model: nn.Module, truth: GroundTruth, protocol: Protocol, independent: bool = False) -> None:
        self.model, self.truth, self.protocol, self.independent = model, truth, protocol, independent
        self.words_of_class = protocol.words_of_classes()

    @property
    def how(self) -> str:
        """How the words are restricted, in words."""
        return "argmax over independent scores" if self.independent else "second pass with these words"

    @property
    def needs(self) -> tuple[str, ...]:
        """Outputs of the first pass with all words that the restriction needs."""
        return ("sem_seg",) if self.independent else ()

    def __call__(
        self, samples: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Tensor]]
    ) -> list[dict[str, Tensor]]:
        """Return the label maps of a batch.

        Args:
            samples: inputs of the model.
            outputs: for these inputs and all words; only read if :attr:`needs` names any.

        Returns:
            for each input ``label_map`` of indices of all Q words, and ``score_map``, as from the model.
        """
        present = [self.present(sample) for sample in samples]
        if not self.independent:
            return self.ask(samples, present)
        answers = []
        for output, classes in zip(outputs, present, strict=True):
            words = self.words(classes)
            scores, labels = output["sem_seg"][words].max(0)
            answers.append(self._in_all_words({"label_map": labels, "score_map": scores}, words, classes))
        return answers

    def ask(
        self, samples: Sequence[Mapping[str, Any]], present: Sequence[list[int]], more: Sequence[str] = ()
    ) -> list[dict[str, Tensor]]:
        """Return the outputs ``label_map`` and ``more`` of the model for the words of the classes ``present``."""
        asked = [self.words(classes) for classes in present]
        requests = [
            {**sample, **self._entries(sample, words), "outputs": ("label_map", *more)}
            for sample, words in zip(samples, asked, strict=True)
        ]
        return [self._in_all_words(*of_image) for of_image in zip(self.model(requests), asked, present, strict=True)]

    def present(self, sample: Mapping[str, Any]) -> list[int]:
        """Return the classes of an image, ascending."""
        labels, file_name = self.truth.labels(sample)
        return present_classes(labels, len(self.words_of_class), self.truth.ignore_label, file_name)

    def words(self, classes: Sequence[int]) -> list[int]:
        """Return the indices of the words of classes; one word if there is none, as a model needs one."""
        return [word for k in classes for word in self.words_of_class[k]] or [0]

    def _entries(self, sample: Mapping[str, Any], words: Sequence[int]) -> dict[str, Any]:
        """Return the entries of a request that ask for some words, with what is known of them."""
        entries, vocabulary = self.protocol.vocabulary.class_names, self.protocol.vocabulary
        asked: dict[str, Any] = {"class_names": [entries[word] for word in words], "templates": vocabulary.templates}
        if "seen" in sample:
            asked["seen"] = [sample["seen"][word] for word in words]
        return {**asked, "add_others": False}

    def _in_all_words(
        self, answer: dict[str, Tensor], words: Sequence[int], classes: Sequence[int]
    ) -> dict[str, Tensor]:
        """Return an answer with indices of all words instead of ``words``, and background decided by its presence."""
        index = torch.tensor(words, device=answer["label_map"].device)
        answer = {**answer, "label_map": index[answer["label_map"]]}
        if self.protocol.threshold is not None:  # background is no word, but one of the classes
            background = self.protocol.background_id
            if background not in classes:
                answer["score_map"] = torch.full_like(answer["score_map"], torch.inf)
            elif len(classes) == 1:
                answer["score_map"] = torch.full_like(answer["score_map"], -torch.inf)
        return answer


class GroundingEvaluator(SemSegEvaluator):
    """Evaluator of Grounding mIoU; the arguments are those of :class:`SemSegEvaluator`."""

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count the pixels of a batch, whose outputs have ``grounded``, see :meth:`PresentWords.__call__`."""
        super().process(inputs, [output["grounded"] for output in outputs])

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Return ``{"grounding": {name: percent}}`` on the main process: the scores with "Grounding-" before names."""
        scores = super().evaluate()
        if scores is None:
            return None
        same = ("mIoU-union", "mIoU-gt")  # equal to mIoU
        kept = {f"{PREFIX}{name}": value for name, value in scores["sem_seg"].items() if name not in same}
        return OrderedDict(grounding=kept)
