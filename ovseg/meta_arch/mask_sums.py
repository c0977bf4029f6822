"""Sums over masks of class score x map of a mask, at the size of an image, and the best class of each pixel."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ovseg.meta_arch.pixel_labels import best_classes, best_of, by_blocks, enlarged_labels, is_enlarged, summed_labels

FEW = 16  # classes, below which blocks of pixels are not faster


def render_scores(
    weights: Tensor,
    maps: Tensor,
    size: tuple[int, int],
    class_chunk: int,
    bias: Tensor | None = None,
    mode: str = "bilinear",
) -> Tensor:
    """Return the scores of all classes, sum_n weights[n, k] * maps[n], resized.

    Args:
        weights: (n, K).
        maps: (n, H, W).
        size: output height and width.
        class_chunk: classes computed at a time.
        bias: (K,), subtracted from the resized scores.
        mode: see :func:`resize`.

    Returns:
        float32 (K, height, width).
    """
    return torch.cat([scores for _, scores in scores_in_chunks(weights, maps, size, class_chunk, bias, mode)])


def render_labels(
    weights: Tensor,
    maps: Tensor,
    size: tuple[int, int],
    class_chunk: int,
    bias: Tensor | None = None,
    mode: str = "bilinear",
) -> tuple[Tensor, Tensor]:
    """Return the argmax over the classes of :func:`render_scores` without storing the scores of all classes.

    On a CPU the scores are those of :func:`render_scores` up to rounding, and so are the labels where the scores of two
    words differ by less than that, see :func:`ovseg.meta_arch.pixel_labels.enlarged_labels`.

    Returns:
        labels int64 (height, width), the lowest index among equals, and their scores float32 (height, width).
    """
    (masks, classes), small = weights.shape, (maps.shape[1], maps.shape[2])
    if mode == "nearest" and size[0] * size[1] > small[0] * small[1]:
        found = render_labels(weights, maps, small, class_chunk, bias)
        rows, columns = (_nearest(old, new, maps.device) for old, new in zip(small, size, strict=True))
        labels, scores = (one[rows[:, None], columns] for one in found)
        return labels, scores
    chunks = scores_in_chunks(weights, maps, size, class_chunk, bias, mode)
    if not by_blocks(weights, maps, bias) or 0 in weights.shape:
        return best_classes(chunks, size, maps.device)
    if is_enlarged(small, size, classes):

        def scores_at(places: Tensor) -> Tensor:
            sums = maps.flatten(1)[:, places].T @ weights
            return sums if bias is None else sums.sub_(bias)

        return enlarged_labels(*summed_labels(weights, maps, bias), scores_at, size)
    if classes < FEW or (size != small and not _resizes_first(masks, classes, small, size)):
        return best_classes(chunks, size, maps.device)
    return summed_labels(weights, resize(maps, size, mode), bias)


def resized_labels(scores: Tensor, size: tuple[int, int], class_chunk: int) -> tuple[Tensor, Tensor]:
    """Return the argmax over the classes of scores (K, h, w) that are resized to a size, and its score.

    Returns:
        see :func:`render_labels`.
    """
    classes, height, width = scores.shape
    if by_blocks(scores) and classes and is_enlarged((height, width), size, classes):
        flat = scores.flatten(1)
        best, labels = (one.view(height, width) for one in best_of(flat))
        return enlarged_labels(labels, best, lambda places: flat[:, places].T.contiguous(), size)
    starts = range(0, classes, class_chunk)
    chunks = ((start, resize(scores[start : start + class_chunk], size)) for start in starts)
    return best_classes(chunks, size, scores.device)


def resize(maps: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Resize (n, H, W) to (n, height, width); maps of that size are not copied.

    Args:
        mode: "bilinear", with ``align_corners=False``; or "nearest", the value of the pixel at the centre.
    """
    if maps.shape[1:] == size:
        return maps
    if not len(maps):  # which interpolate refuses
        return maps.new_zeros(0, *size)
    if mode == "nearest":
        return F.interpolate(maps[None], size, mode="nearest-exact")[0]
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def scores_in_chunks(
    weights: Tensor, maps: Tensor, size: tuple[int, int], class_chunk: int, bias: Tensor | None, mode: str
) -> Iterator[tuple[int, Tensor]]:
    """Yield the index of the first class and the scores (k, height, width) of each chunk of classes."""
    # resizing is linear: it commutes with the sums and is done where it costs less
    if _resizes_first(*weights.shape, maps.shape[1:], size):
        maps = resize(maps, size, mode)
    for start in range(0, weights.shape[1], class_chunk):
        scores = torch.einsum("nk,nhw->khw", weights[:, start : start + class_chunk], maps)
        scores = resize(scores, size, mode)
        yield start, scores if bias is None else scores - bias[start : start + class_chunk, None, None]


def _resizes_first(masks: int, classes: int, shape: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Return whether maps are resized before they are summed."""
    return size[0] * size[1] <= shape[0] * shape[1] and 0 < masks <= classes


def _nearest(length: int, enlarged: int, device: torch.device) -> Tensor:
    """Return the positions, int64 (enlarged,), that :func:`resize` takes along an axis with the mode "nearest"."""
    positions = torch.arange(length, dtype=torch.float32, device=device)[None, :, None]
    return resize(positions, (enlarged, 1), "nearest").flatten().long()
