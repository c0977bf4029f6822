"""Learning rate schedules; each is a function of the iteration, so that a run can be taken up at any of them."""

from __future__ import annotations

import math

import torch


def epoch_cosine_lr(
    iteration: int, *, base_lr: float, min_lr: float, warmup_lr: float, total: int, warmup: int
) -> float:
    """Return the learning rate of an iteration: a warm-up, then the rest of a half cosine (OVSegmentor, section 6).

    The cosine counts from iteration 0, not from the end of the warm-up, so there is a small jump. The published
    schedule is one step late: iteration i uses the value of i - 1, and iterations 0 and 1 both that of 0.

    Args:
        iteration: from 0.
        base_lr, min_lr: at the beginning and at the end of the cosine.
        warmup_lr: where the linear warm-up starts; it ends at ``base_lr``.
        total, warmup: iterations of the training and of the warm-up.
    """
    step = max(iteration - 1, 0)
    if step < warmup:
        return warmup_lr + step * (base_lr - warmup_lr) / warmup
    return min_lr + 0.5 * (base_lr - min_lr) * (1 + math.cos(math.pi * step / total))


class EpochCosineLR(torch.optim.lr_scheduler.LRScheduler):
    """:func:`epoch_cosine_lr` for each parameter group.

    Args:
        optimizer: whose learning rates are the highest ones, ``base_lr``.
        total, warmup: iterations of the training and of the warm-up.
        warmup_lr, min_lr: the learning rates at the start and at the end.
        accumulation: iterations for each step of the optimiser; the learning rate changes after a step only.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        total: int,
        warmup: int,
        warmup_lr: float,
        min_lr: float,
        accumulation: int = 1,
    ):
        self.total, self.warmup, self.accumulation = total, int(warmup), accumulation
        self.warmup_lr, self.min_lr = warmup_lr, min_lr
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        """Return the learning rate of each parameter group at ``last_epoch``, the number of iterations done."""
        iteration = self.last_epoch // self.accumulation * self.accumulation
        span = {"total": self.total, "warmup": self.warmup, "warmup_lr": self.warmup_lr, "min_lr": self.min_lr}
        return [epoch_cosine_lr(iteration, base_lr=lr, **span) for lr in self.base_lrs]


class WarmupCosineLR(torch.optim.lr_scheduler.LRScheduler):
    """Linear warm-up, ``lr * (step + 1) / warmup``, then half a cosine to zero; ``step`` counts from 0.

    Args:
        optimizer: whose learning rates are the highest ones.
        warmup: steps.
        steps: of the whole training.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, warmup: int, steps: int):
        self.warmup, self.steps = warmup, steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        """Return the learning rate of each parameter group at ``last_epoch``, the number of steps done."""
        step, warmup = self.last_epoch, self.warmup
        if step < warmup:
            return [lr * (step + 1) / warmup for lr in self.base_lrs]
        return [lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (self.steps - warmup))) for lr in self.base_lrs]
