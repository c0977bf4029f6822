"""Optimiser and learning rate schedule (specification, section 9.3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.projects.deeplab import build_lr_scheduler as build_deeplab_lr_scheduler
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from ovseg.errors import OvsegError

NORM_TYPES = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
POSITION_TABLES = ("relative_position_bias_table", "absolute_pos_embed")


class GradientClip:
    """Scales all gradients together to a norm of at most ``max_norm``; an optimiser's step pre-hook.

    As a hook it also comes after the un-scaling by AMP's gradient scaler, which belongs to the scaler's step.
    """

    def __init__(self, max_norm: float, norm_type: float):
        self.max_norm = max_norm
        self.norm_type = norm_type

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self.max_norm, self.norm_type)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW or SGD with one parameter group for each trainable tensor, in the order of the model's modules.

    ``BACKBONE_MULTIPLIER`` scales the learning rate below modules named backbone; position tables have no weight decay,
    norms ``WEIGHT_DECAY_NORM``, embeddings ``WEIGHT_DECAY_EMBED``, everything else, biases too, ``WEIGHT_DECAY``.
    ``CLIP_GRADIENTS.CLIP_TYPE``: "full_model", or Detectron2's "value" and "norm" of single tensors.

    Raises:
        OvsegError: unknown optimiser or way of clipping, or nothing to train.
    """
    solver, clip = cfg.SOLVER, cfg.SOLVER.CLIP_GRADIENTS
    groups = list(parameter_groups(cfg, model))
    if not groups:
        raise OvsegError("the model has no trainable parameter")
    if clip.ENABLED and clip.CLIP_TYPE not in ("full_model", "value", "norm"):
        raise OvsegError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clip.CLIP_TYPE!r}; choose full_model, value or norm")
    full_model = clip.ENABLED and clip.CLIP_TYPE == "full_model"

    def of_type(optimizer: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
        return optimizer if full_model else maybe_add_gradient_clipping(cfg, optimizer)

    if solver.OPTIMIZER == "ADAMW":
        optimizer = of_type(torch.optim.AdamW)(groups, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)
    elif solver.OPTIMIZER == "SGD":
        optimizer = of_type(torch.optim.SGD)(
            groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV
        )
    else:
        raise OvsegError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; choose ADAMW or SGD")
    if full_model:
        optimizer.register_step_pre_hook(GradientClip(clip.CLIP_VALUE, clip.NORM_TYPE))
    return optimizer


def parameter_groups(cfg: CfgNode, model: nn.Module) -> Iterator[dict[str, Any]]:
    """One group for each trainable tensor: ``params``, ``name``, ``lr``, ``weight_decay``."""
    solver = cfg.SOLVER
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            weight_decay = solver.WEIGHT_DECAY
            if any(table in name for table in POSITION_TABLES):
                weight_decay = 0.0
            elif isinstance(module, NORM_TYPES):
                weight_decay = solver.WEIGHT_DECAY_NORM
            elif isinstance(module, nn.Embedding):
                weight_decay = solver.WEIGHT_DECAY_EMBED
            yield {
                "params": [parameter],
                "name": f"{module_name}.{name}".removeprefix("."),
                "lr": solver.BASE_LR * (solver.BACKBONE_MULTIPLIER if "backbone" in module_name else 1.0),
                "weight_decay": weight_decay,
            }


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """``WarmupPolyLR`` or one of Detectron2's own by ``SOLVER.LR_SCHEDULER_NAME``.

    Raises:
        OvsegError: unknown name.
    """
    try:
        return build_deeplab_lr_scheduler(cfg, optimizer)
    except ValueError as error:
        raise OvsegError(f"SOLVER.LR_SCHEDULER_NAME = {cfg.SOLVER.LR_SCHEDULER_NAME!r}: {error}") from error
