"""Models that replace a part of the evaluated model, or its words, by the ground truth (TEST.ORACLE)."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ovseg.data.protocol import Protocol, configured_protocol
from ovseg.errors import OvsegError
from ovseg.evaluation.confusion import checked_labels
from ovseg.evaluation.ground_truth import GroundTruth
from ovseg.evaluation.grounding import PresentWords
from ovseg.evaluation.oracle import name_by_overlap, paint_segments, present_segments, resize_soft
from ovseg.evaluation.tta import has_many_views
from ovseg.proposals.given_masks import resize_masks


def oracle_model(cfg: CfgNode, model: nn.Module, dataset_name: str) -> nn.Module:
    """Return ``model`` with the oracle of ``cfg.TEST.ORACLE``, or unchanged.

    Raises:
        OvsegError: the oracle is unknown, does not apply to the model, or other options exclude it.
    """
    check_oracle(cfg)
    if cfg.TEST.ORACLE == "none":
        return model
    truth = GroundTruth(dataset_name)
    if cfg.TEST.ORACLE == "masks":
        if getattr(model, "mask_namer", None) is None:
            raise OvsegError(
                f"TEST.ORACLE is masks, but {type(model).__name__} cannot name masks: evaluate OVSeg or SCAN, or set "
                "TEST.ORACLE to labels"
            )
        return OracleMasks(model, truth)
    protocol = configured_protocol(cfg, dataset_name)
    if cfg.TEST.ORACLE == "words":
        return OracleWords(model, truth, protocol)
    if protocol.to_class is not None:
        raise OvsegError(
            f"TEST.ORACLE labels names masks by classes, but in {dataset_name!r} ({protocol.tag}) the "
            "words are not the classes: use TEST.ORACLE masks, or TEST.VOCABULARY synonyms with TEST.SYNONYMS region"
        )
    return OracleLabels(model, truth, cfg.TEST.ORACLE_LABEL)


def check_oracle(cfg: CfgNode) -> None:
    """Raise OvsegError unless the keys of the oracle agree; :func:`check_config` has checked their values."""
    oracle, test = cfg.TEST.ORACLE, cfg.TEST
    if oracle != "none" and (has_many_views(cfg) or test.DENSE_CRF):
        raise OvsegError(
            f"TEST.ORACLE {oracle} is defined for one plain view: set TEST.AUG.ENABLED, TEST.SLIDING_WINDOW, "
            "TEST.MULTI_SCALE.ENABLED and TEST.DENSE_CRF to False"
        )
    if oracle in ("masks", "labels") and test.BACKGROUND_THRESHOLD is not None:
        raise OvsegError(f"TEST.ORACLE {oracle} gives masks of background, too: set TEST.BACKGROUND_THRESHOLD to None")


def describe_oracle(cfg: CfgNode) -> dict[str, str] | None:
    """Return the description of the oracle for results.json; None without an oracle."""
    if cfg.TEST.ORACLE == "masks":
        crops = "masked" if cfg.MODEL.CLIP_ADAPTER.MASK_CROPS else "with background"
        return {"oracle": "masks", "names": "CLIP alone", "crops": crops}
    if cfg.TEST.ORACLE == "words":
        return {"oracle": "words", "words": "the classes of each image (Grounding mIoU)"}
    if cfg.TEST.ORACLE == "labels":
        return {"oracle": "labels", "masks": "predicted", "label": cfg.TEST.ORACLE_LABEL}
    return None


class _Oracle(nn.Module):
    """Base class of models that compute ``label_map`` and ``proposals`` from inputs with labels."""

    def __init__(self, model: nn.Module, truth: GroundTruth) -> None:
        super().__init__()
        self.model = model
        self.truth = truth

    def forward(self, batched_inputs: list[dict]) -> list[dict[str, Tensor]]:
        """Return ``label_map`` int64 and ``proposals`` bool (n, H, W) of inputs with ``file_name``, at label size."""
        return [self.answer(sample, self._labels(sample)) for sample in batched_inputs]

    def answer(self, sample: dict[str, Any], labels: Tensor) -> dict[str, Tensor]:
        """Return the result of one input with labels int64 (H, W) in [0, K], K ignored."""
        raise NotImplementedError

    def _labels(self, sample: dict[str, Any]) -> Tensor:
        labels, file_name = self.truth.labels(sample)
        return torch.from_numpy(checked_labels(labels, self.num_classes, self.truth.ignore_label, file_name))

    @property
    def num_classes(self) -> int:
        return len(self.truth.class_names)


class OracleMasks(_Oracle):
    """True segments, classified by CLIP alone, without "no object" (baselines, 5.1)."""

    def answer(self, sample: dict[str, Any], labels: Tensor) -> dict[str, Tensor]:
        """Return the result of one input; segments are classified at the size of the image."""
        classes, segments = present_segments(labels, self.num_classes)
        names = classes
        if len(classes):
            shown = resize_masks(segments, tuple(sample["image"].shape[1:]))
            names = self.model.name_masks(sample, shown).argmax(1).cpu()
        return {"label_map": paint_segments(classes, segments, names), "proposals": segments}


class OracleLabels(_Oracle):
    """Predicted masks with the true classes that they overlap most (baselines, 5.2).

    Args:
        how: see :func:`ovseg.evaluation.oracle.label_weights`.
    """

    def __init__(self, model: nn.Module, truth: GroundTruth, how: str) -> None:
        super().__init__(model, truth)
        self.how = how

    def answer(self, sample: dict[str, Any], labels: Tensor) -> dict[str, Tensor]:
        """Return the result of one input; overlaps are counted at the size of the labels."""
        height, width = sample["image"].shape[1:]
        request = {**sample, "height": height, "width": width, "outputs": ("soft_proposals",)}
        masks = self.model([request])[0]["soft_proposals"]  # at the image's size, which is usually smaller
        answer = {"label_map": name_by_overlap(masks, labels.to(masks.device), self.num_classes, self.how)}
        if "proposals" in sample.get("outputs", ()):
            answer["proposals"] = resize_soft(masks, tuple(labels.shape)) > 0.5
        return answer


class OracleWords(_Oracle):
    """The model with the words of the classes that an image has, and no others: its mIoU is Grounding mIoU.

    ``TEST.GROUNDING_MIOU`` computes both in one evaluation; see :mod:`ovseg.evaluation.grounding`.
    """

    def __init__(self, model: nn.Module, truth: GroundTruth, protocol: Protocol) -> None:
        super().__init__(model, truth)
        self.words = PresentWords(model, truth, protocol)

    def forward(self, batched_inputs: list[dict]) -> list[dict[str, Tensor]]:
        """Return ``label_map`` of indices of all words, and ``proposals`` if they are asked for."""
        more = [name for name in batched_inputs[0].get("outputs", ()) if name == "proposals"]
        return self.words.ask(batched_inputs, [self.words.present(sample) for sample in batched_inputs], more)
