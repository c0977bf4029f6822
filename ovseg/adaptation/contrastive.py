"""CLIP's symmetric contrastive loss over the batches of all processes (Radford et al. 2021, section 2.3)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


class _GatherRows(torch.autograd.Function):
    """All processes' rows, in the order of ranks.

    Every process has a loss of its own that depends on the rows of all, so the gradient of a process' rows is the sum
    of what all losses ask of them. (``torch.distributed.nn.functional.all_gather`` was found to give other gradients
    with gloo and torch 2.15.)
    """

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        return _all_gather(rows)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _all_gather(rows: Tensor) -> Tensor:
    parts = [torch.empty_like(rows) for _ in range(_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def gather_rows(rows: Tensor) -> Tensor:
    """Rows (n, ...) of every process, (processes x n, ...); gradients flow to where each row came from."""
    if _world_size() == 1:
        return rows
    return _GatherRows.apply(rows) if rows.requires_grad else _all_gather(rows)


def contrastive_loss(
    images: Tensor, texts: Tensor, logit_scale: Tensor, text_ids: Tensor, *, ignore_equal_texts: bool = False
) -> Tensor:
    """Symmetric InfoNCE of this process' rows against the rows of all processes.

    The mean of the processes' losses is the loss of the whole batch; with :func:`average_gradients` so are the
    gradients.

    Args:
        images: float32 (n, D) image features, need not be normalised; as many in each process.
        texts: float32 (n, D) text features, likewise.
        logit_scale: logarithm of the inverse temperature, scalar.
        text_ids: int64 (n,), equal where the texts are.
        ignore_equal_texts: leave equal texts of other pairs out, instead of taking them for wrong answers as the
            original does.

    Returns:
        scalar float32.
    """
    images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
    scale = logit_scale.exp()
    rank = dist.get_rank() if _world_size() > 1 else 0
    target = torch.arange(len(images), device=images.device) + rank * len(images)
    of_images = scale * images @ gather_rows(texts).T  # (n, processes x n)
    of_texts = scale * texts @ gather_rows(images).T
    if ignore_equal_texts:
        equal = text_ids[:, None] == gather_rows(text_ids)
        equal[torch.arange(len(images), device=images.device), target] = False
        of_images, of_texts = (logits.masked_fill(equal, float("-inf")) for logits in (of_images, of_texts))
    return (F.cross_entropy(of_images, target) + F.cross_entropy(of_texts, target)) / 2


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients by their means over all processes; nothing to do for one process."""
    if _world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(together)
    together /= _world_size()
    for gradient, mean in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
