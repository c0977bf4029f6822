"""Optimisers and learning rate schedules of segmenters (specification, section 9.3) and of CLIP (section 12.2)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.projects.deeplab import build_lr_scheduler as build_deeplab_lr_scheduler
from torch import nn

from ovseg.errors import OvsegError

NORM_TYPES = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
BACKBONE = re.compile(r"backbone|^pretrained\b")  # in names of modules; the second is the image network of LSeg
UNDECAYED = ("relative_position_bias_table", "absolute_pos_embed", "log_scale")  # parts of names: tables, temperatures


class GradientClip:
    """Bounds the gradients; an optimiser's step pre-hook.

    As a hook it also comes after the un-scaling by AMP's gradient scaler, which belongs to the scaler's step.

    Args:
        clip_type: "full_model" bounds the norm of all gradients together, "norm" that of each tensor, "value" each
            element.
        bound: of the norm or the value.
        norm_type: p of the norm.
    """

    def __init__(self, clip_type: str, bound: float, norm_type: float):
        if clip_type not in ("full_model", "norm", "value"):
            raise OvsegError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clip_type!r}; choose full_model, norm or value")
        self.clip_type = clip_type
        self.bound = bound
        self.norm_type = norm_type

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.clip_type == "full_model":
            nn.utils.clip_grad_norm_(parameters, self.bound, self.norm_type)
        elif self.clip_type == "norm":
            for parameter in parameters:
                nn.utils.clip_grad_norm_(parameter, self.bound, self.norm_type)
        else:
            nn.utils.clip_grad_value_(parameters, self.bound)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW or SGD with one parameter group for each trainable tensor, in the order of the model's modules.

    ``BACKBONE_MULTIPLIER`` scales the learning rate below modules named backbone, and of LSeg's image network. Swin's
    position tables and temperatures have no weight decay, norms ``WEIGHT_DECAY_NORM``, embeddings
    ``WEIGHT_DECAY_EMBED``, everything else, biases too, ``WEIGHT_DECAY``. ``CLIP_GRADIENTS`` is done by
    :class:`GradientClip`.

    Raises:
        OvsegError: unknown optimiser or way of clipping, or nothing to train.
    """
    solver, clip = cfg.SOLVER, cfg.SOLVER.CLIP_GRADIENTS
    groups = list(parameter_groups(cfg, model))
    if not groups:
        raise OvsegError("the model has no trainable parameter")
    if solver.OPTIMIZER == "ADAMW":
        optimizer = torch.optim.AdamW(groups, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)
    elif solver.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)
    else:
        raise OvsegError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; choose ADAMW or SGD")
    if clip.ENABLED:
        optimizer.register_step_pre_hook(GradientClip(clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE))
    return optimizer


def parameter_groups(cfg: CfgNode, model: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield one group for each trainable tensor: ``params``, ``name``, ``lr``, ``weight_decay``."""
    solver = cfg.SOLVER
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            weight_decay = solver.WEIGHT_DECAY
            if any(part in name for part in UNDECAYED):
                weight_decay = 0.0
            elif isinstance(module, NORM_TYPES):
                weight_decay = solver.WEIGHT_DECAY_NORM
            elif isinstance(module, nn.Embedding):
                weight_decay = solver.WEIGHT_DECAY_EMBED
            yield {
                "params": [parameter],
                "name": f"{module_name}.{name}".removeprefix("."),
                "lr": solver.BASE_LR * (solver.BACKBONE_MULTIPLIER if BACKBONE.search(module_name) else 1.0),
                "weight_decay": weight_decay,
            }


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Return ``WarmupPolyLR`` or one of Detectron2's own schedules, by ``SOLVER.LR_SCHEDULER_NAME``.

    Raises:
        OvsegError: unknown name.
    """
    try:
        return build_deeplab_lr_scheduler(cfg, optimizer)
    except ValueError as error:
        raise OvsegError(f"SOLVER.LR_SCHEDULER_NAME = {cfg.SOLVER.LR_SCHEDULER_NAME!r}: {error}") from error


def build_adamw(
    parameters: Mapping[str, nn.Parameter],
    group_of: Callable[[str, nn.Parameter], int],
    weight_decays: Sequence[float],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.98),
    eps: float = 1e-6,
) -> torch.optim.AdamW:
    """Return AdamW with a parameter group for each weight decay; empty ones are left out.

    Args:
        parameters: what trains, by name.
        group_of: returns the index of a parameter's weight decay.
        weight_decays: of the groups.
        lr, betas, eps: AdamW's.
    """
    groups: list[list[nn.Parameter]] = [[] for _ in weight_decays]
    for name, parameter in parameters.items():
        groups[group_of(name, parameter)].append(parameter)
    options = [{"params": ps, "weight_decay": d} for ps, d in zip(groups, weight_decays, strict=True) if ps]
    return torch.optim.AdamW(options, lr=lr, betas=betas, eps=eps)


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
