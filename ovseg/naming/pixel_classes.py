"""Maps of class scores: the best of several texts of a class, the labels of a training batch, their cross entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ovseg.errors import OvsegError
from ovseg.vocabulary import Vocabulary

CLASSES_AT_A_TIME = 64


def best_text(maps: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Reduce maps of texts to maps of classes, the maximum over the texts of each class.

    Args:
        maps: (..., S, h, w), for the S texts of the vocabulary.

    Returns:
        (..., K, h, w).
    """
    if len(vocabulary.texts) == len(vocabulary):
        return maps
    index = torch.tensor(vocabulary.classes, device=maps.device)[:, None, None].expand(maps.shape)
    reduced = maps.new_full((*maps.shape[:-3], len(vocabulary), *maps.shape[-2:]), -torch.inf)
    return reduced.scatter_reduce(-3, index, maps, "amax")


def enlarged(scores: Tensor, extent: Sequence[int], size: Sequence[int]) -> Tensor:
    """Return scores (K, h, w) enlarged bilinearly to the extent, of which the top left of this size is kept.

    Some classes at a time are enlarged, since an extent of 640 x 640 pixels of 847 classes has 1.4 GB.
    """
    result = scores.new_empty(len(scores), *size)
    for chunk, target in zip(scores.split(CLASSES_AT_A_TIME), result.split(CLASSES_AT_A_TIME), strict=True):
        maps = F.interpolate(chunk[None], tuple(extent), mode="bilinear", align_corners=False)[0]
        target.copy_(maps[:, : size[0], : size[1]])
    return result


def batch_labels(requests: Sequence[Mapping[str, Any]], size: Sequence[int], ignore_label: int) -> Tensor:
    """Return the labels of a training batch, int64 (B, height, width), padded with the ignore label.

    A request has ``sem_seg``, labels (H, W); or ``instances`` with ``gt_classes`` (n,) and ``gt_masks`` (n, H, W),
    whose pixels outside all masks are ignored (Detectron2's mappers).

    Args:
        size: height and width of the padded images.

    Raises:
        OvsegError: a request has neither, or labels of another size than its image.
    """
    padded = torch.full((len(requests), *size), ignore_label)
    for labels, request in zip(padded, requests, strict=True):
        own = _labels(request, ignore_label)
        if own.shape != (there := request["image"].shape[-2:]):
            raise OvsegError(
                f"a training image has {there[0]} x {there[1]} pixels but labels of {list(own.shape)}: both must "
                "be of one size"
            )
        labels[: own.shape[0], : own.shape[1]] = own
    return padded


def pixel_loss(logits: Tensor, labels: Tensor, ignore_label: int) -> Tensor:
    """Return the cross entropy, the mean over the pixels with a label; 0 if there is none.

    Args:
        logits: (B, K, h, w).
        labels: int64 (B, h, w), 0 .. K - 1 or the ignore label.

    Raises:
        OvsegError: another label.
    """
    used = labels != ignore_label
    wrong = used & ((labels < 0) | (labels >= logits.shape[1]))
    if wrong.any():
        raise OvsegError(
            f"a label is {int(labels[wrong][0])}: give 0 to {logits.shape[1] - 1}, or the ignore label {ignore_label}"
        )
    total = F.cross_entropy(logits.float(), labels, ignore_index=ignore_label, reduction="sum")
    return total / used.sum().clamp_min(1)


def _labels(request: Mapping[str, Any], ignore_label: int) -> Tensor:
    if "sem_seg" in request:
        return request["sem_seg"].long().cpu()
    if "instances" not in request:
        raise OvsegError(
            "a training sample has neither sem_seg nor instances: map data sets with "
            "ovseg.data.mapper.SemSegTrainMapper, or give label files (sem_seg_file_name)"
        )
    truth = request["instances"]
    masks = getattr(truth.gt_masks, "tensor", truth.gt_masks).cpu()
    labels = torch.full(masks.shape[-2:], ignore_label)
    for category, mask in zip(truth.gt_classes.tolist(), masks, strict=True):
        labels[mask] = category
    return labels
