"""Class probabilities of masks -> class scores of pixels (specification, sections 2.3 and 2.4)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F


def class_winner_weights(probabilities: Tensor, drop_last: bool) -> Tensor:
    """Keep the rows of masks that are some class's best, zero the others.

    Args:
        probabilities: (n, K) of each class for each mask.
        drop_last: the last class does not choose a mask.

    Returns:
        (n, K). A kept row is kept whole: inside a mask the argmax is the mask's own best class.
    """
    weights = torch.zeros_like(probabilities)
    if len(probabilities):
        winners = probabilities.argmax(dim=0)
        if drop_last:
            winners = winners[:-1]
        weights[winners] = probabilities[winners]
    return weights


def paint_scores(weights: Tensor, maps: Tensor, size: tuple[int, int], class_chunk: int) -> Tensor:
    """Scores of all classes, sum_n weights[n, k] * maps[n], resized bilinearly.

    Args:
        weights: (n, K).
        maps: (n, H, W).
        size: output height and width.
        class_chunk: classes worked on at a time; the same value gives the same bits in :func:`paint_labels`.

    Returns:
        float32 (K, height, width).
    """
    return torch.cat([scores for _, scores in _chunks(weights, maps, size, class_chunk)])


def paint_labels(weights: Tensor, maps: Tensor, size: tuple[int, int], class_chunk: int) -> tuple[Tensor, Tensor]:
    """Argmax over the classes of :func:`paint_scores`, exactly, without ever holding all classes.

    Returns:
        labels int64 (height, width), the lowest index among equals, and their scores float32 (height, width).
    """
    best = maps.new_full(size, -torch.inf)
    labels = torch.zeros(size, dtype=torch.int64, device=maps.device)
    for start, scores in _chunks(weights, maps, size, class_chunk):
        chunk_best, chunk_labels = scores.max(dim=0)
        better = chunk_best > best
        best = torch.where(better, chunk_best, best)
        labels = torch.where(better, chunk_labels + start, labels)
    return labels, best


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of (n, H, W) to (n, height, width), ``align_corners=False``; no copy at the same size."""
    if maps.shape[1:] == size:
        return maps
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def _chunks(weights: Tensor, maps: Tensor, size: tuple[int, int], class_chunk: int) -> Iterator[tuple[int, Tensor]]:
    # resizing is linear, so it may come before the sums or after them: where it is less work
    if size[0] * size[1] <= maps.shape[1] * maps.shape[2] and 0 < len(maps) <= weights.shape[1]:
        maps = resize(maps, size)
    for start in range(0, weights.shape[1], class_chunk):
        scores = torch.einsum("nk,nhw->khw", weights[:, start : start + class_chunk], maps)
        yield start, resize(scores, size)
