"""Gathering over processes whose gradient is that of one process with the whole batch (OpenSeg, appendix F).

Each process compares the regions of its own images with the words of all captions, gathers these rows of scores, and
computes the loss of the whole matrix::

    words, num_words = gather_words(words, num_words)                      # (B, Kmax, D), (B,), no gradient
    similarity = gather_rows(image_caption_similarity(regions, words, num_words, tau))      # (B / W, B) -> (B, B)
    loss = grounding_loss(similarity, tau, usable=num_words > 0)           # the same in all W processes

The gradients that DistributedDataParallel averages over the processes are then exactly those of one process: the
backward of :func:`gather_rows` sums over processes, so that each one has W times its part, and parameters that the loss
reads after the gather, such as the temperature, have the same gradient everywhere.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from ovseg.errors import OvsegError


class _GatherRows(torch.autograd.Function):
    """Concatenation over processes; the gradient of a process's rows is the sum of the gradients in all processes."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        return _concatenated(rows)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _summed(gradient).chunk(dist.get_world_size())[dist.get_rank()]


class _Sum(torch.autograd.Function):
    """Sum over processes; the gradient of each part is the sum of the gradients in all processes."""

    @staticmethod
    def forward(ctx, part: Tensor) -> Tensor:
        return _summed(part)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def num_processes() -> int:
    """Return the number of processes that train together, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows of all processes, with gradient.

    Args:
        rows: (n, ...) of the same shape in all processes; every one must call, and compute the gradient or not.

    Returns:
        (W n, ...) in the order of the processes; ``rows`` itself if there is one process.
    """
    return rows if num_processes() == 1 else _GatherRows.apply(rows)


def sum_over_processes(part: Tensor) -> Tensor:
    """Add up tensors of all processes, with gradient.

    Args:
        part: of the same shape in all processes; every one must call, and compute the gradient or not.

    Returns:
        the sum; ``part`` itself if there is one process.
    """
    return part if num_processes() == 1 else _Sum.apply(part)


def gather_words(words: Tensor, num_words: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenate the word embeddings of the captions of all processes, without gradient.

    Args:
        words: (C, Kmax, D), one caption for each image of the process; Kmax may differ between processes.
        num_words: int64 (C,), how many of the Kmax rows are words.

    Returns:
        words (W C, largest Kmax, D), padded by zeros, and num_words (W C,), in the order of the processes.

    Raises:
        OvsegError: processes have different numbers of captions or dimensions.
    """
    if num_processes() == 1:
        return words, num_words
    captions, longest, dimension = words.shape
    shapes = _concatenated(torch.tensor([[captions, longest, dimension]], device=words.device)).tolist()
    if len({(shape[0], shape[2]) for shape in shapes}) > 1:
        counts, dimensions = ([shape[axis] for shape in shapes] for axis in (0, 2))
        raise OvsegError(
            f"the processes have {counts} captions with embeddings of {dimensions} values: give each as many images "
            "and one text encoder, or set MODEL.OPENSEG.GROUNDING_SYNC to False"
        )
    with torch.no_grad():
        words = F.pad(words, (0, 0, 0, max(shape[1] for shape in shapes) - longest))
        return _concatenated(words), _concatenated(num_words)


def _concatenated(rows: Tensor) -> Tensor:
    """Return the concatenation of tensors of the same shape over all processes, without gradient."""
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def _summed(part: Tensor) -> Tensor:
    """Return the sum of tensors of the same shape over all processes, without gradient."""
    total = part.contiguous().clone()  # autograd may share a gradient with others
    dist.all_reduce(total)
    return total
