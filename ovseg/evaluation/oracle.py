"""Oracles: evaluation with the ground truth in the place of a part of the model (baselines, section 5).

There are two: true masks, classified by CLIP; and predicted masks with the labels that they overlap most.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ovseg.errors import OvsegError
from ovseg.evaluation.proposals import ious_of, segment_intersections

_MASKS_AT_A_TIME = 16


def present_segments(truth: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return one mask for each class in the truth.

    Args:
        truth: int64 (H, W) in [0, K]; K marks ignored pixels.
        num_classes: K.

    Returns:
        the n classes, int64 (n,) ascending, and bool (n, H, W).
    """
    classes = truth.unique()
    classes = classes[classes < num_classes]
    return classes, truth == classes[:, None, None]


def paint_segments(classes: Tensor, segments: Tensor, names: Tensor) -> Tensor:
    """Return the label map of true segments with predicted classes; pixels outside are 0 and must be ignored.

    Args:
        classes: (n,) as from :func:`present_segments`.
        segments: bool (n, H, W), disjoint.
        names: int64 (n,), the predicted class of each.

    Returns:
        int64 (H, W).
    """
    assert len(classes) == len(names)
    return torch.einsum("n,nhw->hw", names.double(), segments.double()).long()


def label_weights(overlaps: Tensor, ious: Tensor, how: str) -> Tensor:
    """Return the score of each true class for each proposal.

    Args:
        overlaps: float64 (Q, n) pixels shared with each of n >= 1 classes.
        ious: float64 (Q, n).
        how: "iou" or "intersection" for 1 at the class with the highest value (the first of equals) and 0 elsewhere;
            "soft_iou" for the IoU divided by the sum over the classes.

    Returns:
        float64 (Q, n); zeros for a proposal that overlaps no class.

    Raises:
        OvsegError: unknown ``how``.
    """
    if how not in ("iou", "intersection", "soft_iou"):
        raise OvsegError(f"TEST.ORACLE_LABEL is {how!r}; choose one of iou, intersection, soft_iou")
    if how == "soft_iou":
        return ious / ious.sum(1, keepdim=True).clamp(min=torch.finfo(ious.dtype).tiny)
    best, index = (ious if how == "iou" else overlaps).max(1)
    return F.one_hot(index, ious.shape[1]).to(ious.dtype) * (best > 0)[:, None]


def name_by_overlap(masks: Tensor, truth: Tensor, num_classes: int, how: str = "iou") -> Tensor:
    """Return the label map of predicted masks with true classes: argmax of the sum of label weight x soft mask.

    Args:
        masks: (Q, h, w) mask probabilities; resized bilinearly to the truth's size, and binarised at 0.5 there.
        truth: int64 (H, W) in [0, K]; K marks ignored pixels, which are removed before overlaps are counted.
        num_classes: K.
        how: see :func:`label_weights`.

    Returns:
        int64 (H, W); 0 where all sums are zero.
    """
    counted = truth < num_classes
    classes, segments = truth[counted].unique(return_inverse=True)
    labels = torch.zeros_like(truth)
    if not len(classes):
        return labels
    scores = torch.zeros(len(classes), *truth.shape, dtype=masks.dtype, device=masks.device)
    for chunk in masks.split(_MASKS_AT_A_TIME):
        soft = resize_soft(chunk, truth.shape)
        overlaps = segment_intersections(soft[:, counted] > 0.5, segments)
        weights = label_weights(overlaps, ious_of(overlaps, segments), how)
        scores += torch.einsum("qn,qhw->nhw", weights.to(soft.dtype), soft)
    best, index = scores.max(0)
    return torch.where(best > 0, classes[index], labels)


def resize_soft(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (n, h, w) bilinearly to (n, H, W), ``align_corners=False``, as the models resize scores."""
    return masks if masks.shape[1:] == size else F.interpolate(masks[None], tuple(size), mode="bilinear")[0]
