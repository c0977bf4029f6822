"""CLIP's symmetric contrastive loss over the batches of all processes (Radford et al. 2021, section 2.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

LOGIT_SCALE_MAX = math.log(100)


class _GatherRows(torch.autograd.Function):
    """All processes' rows, in the order of ranks.

    Every process has a loss of its own that depends on the rows of all, so the gradient of a process' rows is the sum
    of their gradients by all losses. (``torch.distributed.nn.functional.all_gather`` was found to give other gradients
    with gloo and torch 2.15.)
    """

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        return _all_gather(rows)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(comm.get_world_size())[comm.get_rank()]


def _all_gather(rows: Tensor) -> Tensor:
    parts = [torch.empty_like(rows) for _ in range(comm.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def gather_rows(rows: Tensor) -> Tensor:
    """Return rows (n, ...) of every process, (processes x n, ...); gradients flow back to each row's process."""
    if comm.get_world_size() == 1:
        return rows
    return _GatherRows.apply(rows) if rows.requires_grad else _all_gather(rows)


def contrastive_loss(
    images: Tensor, texts: Tensor, logit_scale: Tensor, text_ids: Tensor, *, ignore_equal_texts: bool = False
) -> Tensor:
    """Return the symmetric InfoNCE of this process' rows against the rows of all processes.

    The mean of the processes' losses is the loss of the whole batch; so are their gradients.

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
    target = torch.arange(len(images), device=images.device) + comm.get_rank() * len(images)
    of_images = scale * images @ gather_rows(texts).T  # (n, processes x n)
    of_texts = scale * texts @ gather_rows(images).T
    if ignore_equal_texts:
        equal = text_ids[:, None] == gather_rows(text_ids)
        equal[torch.arange(len(images), device=images.device), target] = False
        of_images, of_texts = (logits.masked_fill(equal, float("-inf")) for logits in (of_images, of_texts))
    return (F.cross_entropy(of_images, target) + F.cross_entropy(of_texts, target)) / 2


def encode_in_parts(encode: Callable[..., Tensor], inputs: Sequence[Tensor], micro_batch: int) -> Tensor:
    """Encode a batch with the memory that a part of it needs.

    Every pair is compared with all others, so losses of parts cannot be summed. The graph of a part is not kept: in the
    backward pass each part is encoded again (Gao et al. 2021, arXiv 2101.06983). The gradients are those of the whole
    batch.

    Args:
        encode: computes features (b, D) of rows of all inputs.
        inputs: crops (n, 3, S, S), and what else ``encode`` needs of each of the n pairs.
        micro_batch: pairs encoded at a time; 0 for all.

    Returns:
        features (n, D).
    """
    if not 0 < micro_batch < len(inputs[0]):
        return encode(*inputs)
    parts = list(zip(*(tensor.split(micro_batch) for tensor in inputs), strict=True))
    # in reverse, as the backward pass begins with what was computed last: it adds up gradients in the order of parts
    features = [checkpoint(encode, *part, use_reentrant=False) for part in reversed(parts)]
    return torch.cat(features[::-1])


def bound_logit_scale(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Keep the inverse temperature within 1 .. 100 after each step of the optimiser."""

    def clamp(*_: object) -> None:
        with torch.no_grad():
            model.logit_scale.clamp_(0, LOGIT_SCALE_MAX)

    optimizer.register_step_post_hook(clamp)
