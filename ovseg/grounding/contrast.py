"""Contrastive losses of images and texts over all processes (CLIP's, GroupViT's multi-label loss)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from ovseg.grounding.sync import gather_rows, num_processes


def contrastive_loss(first: Tensor, second: Tensor, scale: Tensor) -> Tensor:
    """Compute the mean of the cross entropies from each row of one side to all rows of the other.

    Each process computes the loss of its own rows against those of all processes. The gradients that
    DistributedDataParallel averages are then those of one process with the whole batch.

    Args:
        first, second: (B, d), not normalised; row i of one belongs to row i of the other. B is the same in all
            processes.
        scale: factor of the cosines, without dimensions.

    Returns:
        scalar.
    """
    first, second = F.normalize(first, dim=-1), F.normalize(second, dim=-1)
    rank = dist.get_rank() if num_processes() > 1 else 0
    targets = torch.arange(len(first), device=first.device) + rank * len(first)
    to_second = F.cross_entropy(scale * first @ gather_rows(second).T, targets)
    to_first = F.cross_entropy(scale * second @ gather_rows(first).T, targets)
    return (to_second + to_first) / 2


def multi_label_loss(images: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """Compute GroupViT's contrast of images and several words of each (Xu et al., arXiv 2202.11094, section 3.2.2).

    From an image, the words of its caption together are one among the words of all captions; from a word, its image is
    one among all images. Processes and gradients: see :func:`contrastive_loss`.

    Args:
        images: (B, d), not normalised.
        labels: (B, M, d), not normalised.
        scale: factor of the cosines, without dimensions.

    Returns:
        scalar, the mean of both directions.
    """
    images, labels = F.normalize(images, dim=-1), F.normalize(labels, dim=-1)
    count, (rank, of_each) = len(images), (dist.get_rank() if num_processes() > 1 else 0, labels.shape[1])
    own = torch.arange(count, device=images.device) + rank * count
    to_labels = (scale * images @ gather_rows(labels.flatten(0, 1)).T).log_softmax(dim=1)  # (B, B_all * M)
    positive = to_labels.unflatten(1, (-1, of_each))[torch.arange(count, device=images.device), own]  # (B, M)
    to_images = scale * labels.flatten(0, 1) @ gather_rows(images).T  # (B * M, B_all)
    return (F.cross_entropy(to_images, own.repeat_interleave(of_each)) - positive.logsumexp(dim=1).mean()) / 2
