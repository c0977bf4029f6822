"""Symmetric contrastive loss of pairs over all processes (CLIP's; OVSegmentor, specification 5.1)."""

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
