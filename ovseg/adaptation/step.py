"""Gradients of one fine-tuning step, whatever fits into memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ovseg.adaptation.contrastive import contrastive_loss


def contrastive_backward(
    encode: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    texts: Tensor,
    text_ids: Tensor,
    logit_scale: Tensor,
    *,
    micro_batch: int = 0,
    ignore_equal_texts: bool = False,
    scale_loss: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> Tensor:
    """Add to the gradients those of this process' contrastive loss.

    Every pair is compared with all others, so parts of a batch cannot be summed as they are: with ``micro_batch`` all
    features are first worked out without a graph, the loss gives their gradients, and then each part is encoded again
    to hand these on (Gao et al. 2021, arXiv 2101.06983). The result is that of the whole batch.

    Args:
        encode: rows of all inputs -> float32 features (b, D).
        inputs: crops (n, 3, S, S), and what else ``encode`` needs of each of the n pairs.
        texts: float32 (n, D), without gradient.
        text_ids, logit_scale, ignore_equal_texts: as :func:`ovseg.adaptation.contrastive.contrastive_loss`.
        micro_batch: pairs encoded at a time; 0 for all.
        scale_loss: AMP's gradient scaler.

    Returns:
        the loss, scalar, detached and not scaled.
    """

    def loss_of(features: Tensor) -> Tensor:
        loss = contrastive_loss(features, texts, logit_scale, text_ids, ignore_equal_texts=ignore_equal_texts)
        scale_loss(loss).backward()
        return loss.detach()

    if not 0 < micro_batch < len(texts):
        return loss_of(encode(*inputs))
    parts = list(zip(*(tensor.split(micro_batch) for tensor in inputs), strict=True))
    with torch.no_grad():
        features = torch.cat([encode(*part) for part in parts])
    features.requires_grad_()
    loss = loss_of(features)
    for part, gradient in zip(parts, features.grad.split(micro_batch), strict=True):
        encode(*part).backward(gradient)
    return loss
