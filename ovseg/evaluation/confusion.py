"""Confusion matrices and the scores computed from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ovseg.errors import OvsegError, argument

MIOU_CONVENTIONS = ("union", "ground_truth")


def checked_labels(gt: np.ndarray, num_classes: int, ignore_label: int | None, source: str) -> np.ndarray:
    """Return ground-truth labels as class indices.

    Args:
        gt: integers in [0, num_classes) or ``ignore_label``, any shape and integer dtype, 16 bit included.
        num_classes: K.
        ignore_label: value of ignored pixels; None if no pixel is ignored.
        source: name of the labels in error messages, usually their file.

    Returns:
        int64 in [0,K] of the same shape; K marks ignored pixels.

    Raises:
        OvsegError: any other value occurs; the message names the source and the value.
    """
    ignored = np.zeros(gt.shape, dtype=bool) if ignore_label is None else gt == ignore_label
    truth = np.where(ignored, num_classes, gt.astype(np.int64))
    wrong = ~ignored & ((truth < 0) | (truth >= num_classes))
    if wrong.any():
        allowed = f"0..{num_classes - 1}" + ("" if ignore_label is None else f" and {ignore_label} (ignored)")
        raise OvsegError(
            f"{source} holds the label {truth[wrong][0]}, but the data set's labels are {allowed}: "
            "prepare the labels again, or register the data set with its own classes and ignore label"
        )
    return truth


@dataclass(frozen=True)
class LabelRuns:
    """Run-length encoding, in row-major order, of a pair of label maps: a prediction and its ground truth.

    Attributes:
        predicted: (R,) int64 in [0,K).
        true: (R,) int64 in [0,K]; K marks ignored pixels.
        lengths: (R,) int64, pixels.
    """

    predicted: np.ndarray
    true: np.ndarray
    lengths: np.ndarray

    def add_to(self, conf: np.ndarray) -> None:
        """Add the pixels to a contiguous (K+1,K+1) int64 confusion matrix in place."""
        # in place: with 847 classes, one matrix per image would take 6 MB and more time than the counting
        np.add.at(conf.reshape(-1), self.predicted * conf.shape[1] + self.true, self.lengths)

    def right_and_counted(self, num_classes: int) -> tuple[int, int]:
        """Return the number of correct pixels and the number of pixels that are not ignored."""
        right = int(self.lengths[self.predicted == self.true].sum())
        return right, int(self.lengths[self.true < num_classes].sum())


def label_runs(
    pred: np.ndarray,
    gt: np.ndarray,
    num_classes: int,
    ignore_label: int | None,
    *,
    pred_source: str = "the prediction",
    gt_source: str = "the ground truth",
) -> LabelRuns:
    """Check a prediction and its ground truth, and encode both as runs.

    Args:
        pred: (H,W) integers in [0, num_classes).
        gt: (H,W) integers in [0, num_classes) or ``ignore_label``; any integer dtype, 16 bit included.
        num_classes: K.
        ignore_label: value of ignored pixels; None if no pixel is ignored.
        pred_source: name of the prediction in error messages, usually the image's file.
        gt_source: name of the labels in error messages, usually their file.

    Raises:
        OvsegError: the sizes differ, or a label is out of range; the message names the source and the value.
    """
    pred, gt = np.asarray(pred), np.asarray(gt)
    if pred.shape != gt.shape:
        raise OvsegError(
            f"the prediction for {pred_source} has shape {pred.shape} but its labels in {gt_source} have shape "
            f"{gt.shape}: image and label file must have the same height and width"
        )
    pred, gt = pred.reshape(-1), gt.reshape(-1)
    # pixels are only compared, in their own types; everything else is computed per run
    changes = pred[1:] != pred[:-1]
    changes |= gt[1:] != gt[:-1]
    starts = np.concatenate(([0], np.flatnonzero(changes) + 1)) if pred.size else np.zeros(0, dtype=np.int64)
    predicted = pred[starts].astype(np.int64)
    if predicted.size and (predicted.min() < 0 or predicted.max() >= num_classes):
        value = predicted.min() if predicted.min() < 0 else predicted.max()
        raise OvsegError(
            f"the model predicted label {value} for {pred_source}, but the data set has {num_classes} classes: "
            "run the model with the words of this data set"
        )
    true = checked_labels(gt[starts], num_classes, ignore_label, gt_source)
    return LabelRuns(predicted, true, np.diff(starts, append=pred.size))


def confusion_matrix(
    pred: np.ndarray, gt: np.ndarray, num_classes: int, ignore_label: int | None, **sources: str
) -> np.ndarray:
    """Count pixels by predicted and true class; arguments and errors are those of :func:`label_runs`.

    Args:
        sources: ``pred_source`` and ``gt_source``.

    Returns:
        (K+1,K+1) int64, row = prediction, column = truth; the last column holds ignored pixels, the last row
        is always 0 (spec section 10.1).
    """
    conf = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    label_runs(pred, gt, num_classes, ignore_label, **sources).add_to(conf)
    return conf


def scores_from_confusion(
    conf: np.ndarray,
    class_names: Sequence[str],
    evaluation_set: Mapping[str, Sequence[int]] | None = None,
    convention: str = "union",
    credited: np.ndarray | None = None,
) -> dict[str, float]:
    """Compute all scores of a confusion matrix, in percent (specification, section 10.1).

    A class without ground truth has an IoU of NaN and adds nothing to the sum of a mean IoU. The conventions differ in
    the divisor: "union" counts every class with ground truth *or* predictions (a class that is predicted but never
    true counts as 0, as in the published OVSeg numbers); "ground_truth" counts only classes with ground truth (as
    current Detectron2 and most toolboxes do).

    Args:
        conf: (K+1,K+1) integers from :func:`confusion_matrix`, summed over images.
        class_names: K names.
        evaluation_set: class indices by name of a subset. Each subset adds ``mIoU-<set>`` and ``pAcc-<set>`` over
            the subset, ``mIoU-un<set>`` and ``pAcc-un<set>`` over all other classes, and ``hIoU-<set>``, the
            harmonic mean of both mean IoUs.
        convention: convention of ``mIoU`` and of the subsets' mean IoUs; ``mIoU-union`` and ``mIoU-gt`` are always
            computed.
        credited: (K,) number of pixels that count as correct for each class, in place of the diagonal; unions are
            still those of prediction and ground truth (:mod:`ovseg.evaluation.sg_iou`).

    Returns:
        scores by name; NaN where a score has no pixels.

    Raises:
        OvsegError: unknown convention, or a subset that names a class out of range or clashes with a score's name.
    """
    check_convention(convention)
    num_classes = len(class_names)
    counts = np.asarray(conf)[:num_classes, :num_classes].astype(np.float64)
    tp, pos_gt, pos_pred = counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1)
    right = tp if credited is None else credited
    iou = _ratio(right, pos_gt + pos_pred - tp, where=pos_gt > 0)
    acc = _ratio(right, pos_gt, where=pos_gt > 0)

    def mean_iou(classes: np.ndarray, how: str) -> float:
        counted = pos_gt + pos_pred > 0 if how == "union" else pos_gt > 0
        return _divide(np.nansum(iou[classes]), np.count_nonzero(counted[classes]))

    def pixel_accuracy(classes: np.ndarray) -> float:
        return _divide(right[classes].sum(), pos_gt[classes].sum())

    every = np.arange(num_classes)
    names = [str(name).strip() for name in class_names]
    scores = {
        "mIoU": mean_iou(every, convention),
        "mIoU-union": mean_iou(every, "union"),
        "mIoU-gt": mean_iou(every, "ground_truth"),
        "fwIoU": _divide(np.nansum(iou * pos_gt), pos_gt.sum()),
        **{f"IoU-{name}": value for name, value in zip(names, iou, strict=True)},
        "mACC": _divide(np.nansum(acc), np.count_nonzero(pos_gt)),
        "pACC": pixel_accuracy(every),
        **{f"ACC-{name}": value for name, value in zip(names, acc, strict=True)},
    }
    for name, members in (evaluation_set or {}).items():
        inside = check_subset(name, members, num_classes)
        outside = np.setdiff1d(every, inside)
        subset_scores = {
            f"mIoU-{name}": mean_iou(inside, convention),
            f"pAcc-{name}": pixel_accuracy(inside),
            f"mIoU-un{name}": mean_iou(outside, convention),
            f"pAcc-un{name}": pixel_accuracy(outside),
        }
        seen, unseen = subset_scores[f"mIoU-{name}"], subset_scores[f"mIoU-un{name}"]
        subset_scores[f"hIoU-{name}"] = 0.0 if seen + unseen == 0 else 2 * seen * unseen / (seen + unseen)
        scores.update(subset_scores)
    return {name: 100 * float(value) for name, value in scores.items()}


def denominators(conf: np.ndarray) -> dict[str, int]:
    """Return the number of classes that each convention of mean IoU divides by, for the argument of the scores."""
    counts = np.asarray(conf)[:-1, :-1]
    true, predicted = counts.sum(axis=0) > 0, counts.sum(axis=1) > 0
    return {"union": int((true | predicted).sum()), "ground_truth": int(true.sum())}


def per_class_rows(
    conf: np.ndarray, class_names: Sequence[str], evaluation_set: Mapping[str, Sequence[int]] | None = None
) -> list[dict[str, object]]:
    """Return one row per class: index, name, subsets, IoU and accuracy (percent, "" without ground truth), pixels."""
    scores = scores_from_confusion(conf, class_names)
    counts = np.asarray(conf)[: len(class_names), : len(class_names)]
    rows = []
    for index, name in enumerate(str(name).strip() for name in class_names):
        sets = [subset for subset, members in (evaluation_set or {}).items() if index in set(members)]
        values = {key: scores[f"{key}-{name}"] for key in ("IoU", "ACC")}
        shown = {key: "" if np.isnan(value) else round(value, 4) for key, value in values.items()}
        pixels = {"gt_pixels": int(counts[:, index].sum()), "predicted_pixels": int(counts[index].sum())}
        rows.append({"index": index, "name": name, "set": " ".join(sets), **shown, **pixels})
    return rows


def check_convention(convention: str) -> None:
    """Raise OvsegError unless ``convention`` is one of :data:`MIOU_CONVENTIONS`."""
    if convention not in MIOU_CONVENTIONS:
        raise OvsegError(f"{argument('convention')} is {convention!r}: use one of {', '.join(MIOU_CONVENTIONS)}")


def check_subset(name: str, members: Sequence[int], num_classes: int) -> np.ndarray:
    """Return the sorted, unique class indices of a subset, (n,) int64.

    Raises:
        OvsegError: an index is out of range, or the subset's name clashes with that of a score.
    """
    if name in ("union", "gt"):
        raise OvsegError(f"evaluation_set {name!r} would hide the score mIoU-{name}: choose another name for it")
    inside = np.unique(np.asarray(list(members), dtype=np.int64))
    if inside.size and (inside[0] < 0 or inside[-1] >= num_classes):
        raise OvsegError(
            f"evaluation_set {name!r} names class {inside[0] if inside[0] < 0 else inside[-1]}, "
            f"but the data set has classes 0..{num_classes - 1}"
        )
    return inside


def _ratio(numerator: np.ndarray, denominator: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=where)


def _divide(numerator: float, denominator: float) -> float:
    return float(numerator) / float(denominator) if denominator else float("nan")
