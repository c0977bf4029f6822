"""The best class of each pixel, without the scores of all classes in memory.

On a GPU, chunks of classes are computed for all pixels. A CPU is limited by its memory, so blocks of pixels that fit in
its cache are computed for all classes. Where score maps are enlarged, few pixels need the scores of all classes: if one
class is the best at the four neighbours of a pixel, it is the best of their weighted mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 2**18  # scores that are compared at a time on a CPU, 1 MiB: the cache of a core
STRIP = 2**21  # scores of the rows that are enlarged at a time, 8 MiB
MOST_CLASSES = 1024  # of a block


def best_classes(
    chunks: Iterable[tuple[int, Tensor]], size: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the argmax over classes whose scores are computed a few at a time, and its score.

    Args:
        chunks: the index of the first class of a chunk, and the scores (k, height, width) of its classes.
        size: height and width.

    Returns:
        labels int64 (height, width), the lowest index among equals, and their scores float32 (height, width).
    """
    best = torch.full(size, -torch.inf, device=device)
    labels = torch.zeros(size, dtype=torch.int64, device=device)
    for start, scores in chunks:
        chunk_best, chunk_labels = (one.view(size) for one in best_of(scores.flatten(1)))
        better = chunk_best > best
        best = torch.where(better, chunk_best, best)
        labels = torch.where(better, chunk_labels + start, labels)
    return labels, best


def is_enlarged(shape: tuple[int, int], size: tuple[int, int], classes: int) -> bool:
    """Return whether :func:`enlarged_labels` is faster than interpolating every class."""
    return size[0] * size[1] * classes >= 32 * shape[0] * shape[1] and size[0] * size[1] > shape[0] * shape[1]


def by_blocks(*tensors: Tensor | None) -> bool:
    """Return whether blocks of pixels are faster than chunks of classes: for float32 on a CPU, without gradients."""
    return not torch.compiler.is_compiling() and all(
        one.device.type == "cpu" and one.dtype == torch.float32 and not (one.requires_grad and torch.is_grad_enabled())
        for one in tensors
        if one is not None
    )


def summed_labels(weights: Tensor, maps: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the argmax over k of ``sum_n weights[n, k] * maps[n] - bias[k]`` and its score, by blocks of pixels.

    Args:
        weights: (n, K).
        maps: (n, H, W).
        bias: (K,); None for 0.

    Returns:
        labels int64 (H, W), the lowest index among equals, and their scores float32 (H, W).
    """
    size, classes = maps.shape[1:], weights.shape[1]
    flat = maps.flatten(1)
    labels, best = torch.zeros(flat.shape[1], dtype=torch.int64), torch.full((flat.shape[1],), -torch.inf)
    for first in range(0, classes, MOST_CLASSES):
        of_classes = weights[:, first : first + MOST_CLASSES].T.contiguous()
        pixels = _block(len(of_classes))
        for left in range(0, len(best), pixels):
            window = slice(left, left + pixels)
            scores = of_classes @ flat[:, window]
            if bias is not None:
                scores -= bias[first : first + MOST_CLASSES, None]
            highest, index = best_of(scores)
            better = highest > best[window]
            labels[window] = torch.where(better, index + first, labels[window])
            best[window] = torch.where(better, highest, best[window])
    return labels.view(size), best.view(size)


def enlarged_labels(
    labels: Tensor, best: Tensor, scores_at: Callable[[Tensor], Tensor], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the argmax over the classes of scores that are enlarged by bilinear interpolation, and its score.

    All classes are interpolated only at pixels whose four neighbours have not the same best class. Labels are those
    of interpolating every class, except where the scores of two words differ by less than a few 1e-6 of the scores of
    the neighbours; scores differ by less than that.

    Args:
        labels: int64 (h, w), the argmax before enlarging, on a CPU as all others.
        best: float32 (h, w), its scores.
        scores_at: places int64 (n,), counted by rows -> scores float32 (n, K) of all classes.
        size: height and width of the result.

    Returns:
        labels int64 (height, width), the lowest index among equals, and their scores float32 (height, width).
    """
    (h, w), width = labels.shape, size[1]
    down, across = _neighbours(h, size[0]), _neighbours(w, width)
    low, common = down.both[:, 0], _common(labels.numpy())
    enlarged = np.take(common[low], across.both[:, 0], axis=1)
    score_map = F.interpolate(best[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    classes = scores_at(torch.zeros(1, dtype=torch.int64)).shape[1]
    step = max(4, STRIP // (w * classes))
    for first in range(0, h, step):
        needed = _corners(common[first : first + step] < 0, h - first).ravel()
        table = scores_at(torch.from_numpy(np.flatnonzero(needed) + first * w))
        row_of = np.cumsum(needed) - 1  # of a place in the table
        begin, end = np.searchsorted(low, [first, first + step])
        window, their_scores = enlarged[begin:end].reshape(-1), score_map[begin:end].view(-1)
        mixed = np.flatnonzero(window < 0)
        for start in range(0, len(mixed), _block(classes)):
            some = mixed[start : start + _block(classes)]
            y, x = down.at(begin + some // width), across.at(some % width)
            index = ((y.both - first)[:, :, None] * w + x.both[:, None, :]).reshape(-1, 4)
            shares = (y.weights[:, :, None] * x.weights[:, None, :]).reshape(-1, 4)
            means = _weighted_sums(table, row_of[index], shares)
            winners = means.numpy().argmax(1)  # vector instructions, see best_of
            window[some] = winners
            their_scores[torch.from_numpy(some)] = means.gather(1, torch.from_numpy(winners)[:, None])[:, 0]
    return torch.from_numpy(enlarged), score_map


def _corners(cells: np.ndarray, rows: int) -> np.ndarray:
    """Return the places around cells (n, w) bool, those to the right, below and both: (min(n + 1, rows), w) bool."""
    places = np.zeros((min(len(cells) + 1, rows), cells.shape[1]), bool)
    places[: len(cells)] = cells
    places[:, 1:] |= places[:, :-1].copy()
    places[1:] |= places[:-1].copy()
    return places


class _Axis(NamedTuple):
    """The two neighbours of each of N output positions along an axis.

    Attributes:
        both: int64 (N, 2), their indices.
        weights: float32 (N, 2).
    """

    both: np.ndarray
    weights: np.ndarray

    def at(self, positions: np.ndarray) -> _Axis:
        return _Axis(self.both[positions], self.weights[positions])


def _weighted_sums(table: Tensor, index: np.ndarray, weights: np.ndarray) -> Tensor:
    """Return the sums (N, K) of rows of a table (n, K) with indices int64 and weights (N, m)."""
    rows, shares = torch.from_numpy(index), torch.from_numpy(weights)
    return F.embedding_bag(rows, table, per_sample_weights=shares, mode="sum")


def _neighbours(length: int, enlarged: int) -> _Axis:
    """Return the neighbours and weights that :func:`torch.nn.functional.interpolate` uses along an axis."""
    positions = (np.arange(enlarged) + 0.5) * np.float64(np.float32(length / enlarged)) - 0.5
    low = np.clip(np.floor(positions), 0, length - 1).astype(np.int64)
    # its own weights, which depend on its rounding of positions, from maps of 0 and 1 in turn
    odd = (torch.arange(length) % 2).float()
    maps = torch.stack([1 - odd, odd])[None, :, None]
    weights = F.interpolate(maps, (1, enlarged), mode="bilinear", align_corners=False)[0, :, 0].numpy()
    both = np.stack([low, np.minimum(low + 1, length - 1)], 1)
    return _Axis(both, np.where(low % 2 == 0, weights, weights[::-1]).T)


def _common(top: np.ndarray) -> np.ndarray:
    """Return the class that is best at a place and at its neighbours to the right, below and both; -1 for none."""
    same = top == np.concatenate([top[:, 1:], top[:, -1:]], 1)
    same[:-1] &= (top[1:] == top[:-1]) & same[1:]
    return np.where(same, top, -1)


def best_of(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum over the classes of scores (K, P), and its index int64, the lowest among equals."""
    if not by_blocks(scores):
        return scores.max(0)
    best, index = torch.empty(scores.shape[1]), torch.empty(scores.shape[1], dtype=torch.int64)
    count, pixels = len(scores), _block(len(scores))
    ranks = torch.arange(count, 0, -1.0)[:, None]
    for left in range(0, scores.shape[1], pixels):
        window = slice(left, left + pixels)
        block = scores[:, window]
        highest = torch.amax(block, 0, out=best[window])
        # the highest rank of equals is computed in vector instructions, which torch.max has not
        ranked = torch.eq(block, highest, out=torch.empty(block.shape)).mul_(ranks).amax(0)
        index[window] = (count - ranked.long()).clamp_max(count - 1)  # NaN equals nothing
    return best, index


def _block(classes: int) -> int:
    """Return the number of pixels of a block of so many classes."""
    return min(max(BLOCK // max(classes, 1), 256), 2**14) * torch.get_num_threads()
