"""Optimisers of segmenters (specification, section 9.3) and of CLIP (section 12.2)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.projects.deeplab import build_lr_scheduler as build_deeplab_lr_scheduler
from torch import nn

from ovseg.engine.schedules import EpochCosineLR
from ovseg.errors import OvsegError

NORM_TYPES = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
FUSED = {"cpu", "cuda"}  # devices with a fused AdamW since PyTorch 2.4
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

    OVSegmentor has the groups of :func:`two_parameter_groups`, and one learning rate. In all other systems,
    ``BACKBONE_MULTIPLIER`` scales the learning rate below modules named backbone, and of LSeg's image network. Swin's
    position tables and temperatures have no weight decay, norms ``WEIGHT_DECAY_NORM``, embeddings
    ``WEIGHT_DECAY_EMBED``, everything else, biases too, ``WEIGHT_DECAY``. ``CLIP_GRADIENTS`` is done by
    :class:`GradientClip`.

    Raises:
        OvsegError: unknown optimiser or way of clipping, or nothing to train.
    """
    solver, clip = cfg.SOLVER, cfg.SOLVER.CLIP_GRADIENTS
    in_two_groups = cfg.MODEL.META_ARCHITECTURE == "OVSegmentor"
    groups = list((two_parameter_groups if in_two_groups else parameter_groups)(cfg, model))
    if not groups:
        raise OvsegError("the model has no trainable parameter")
    if solver.OPTIMIZER == "ADAMW":
        options = {"betas": tuple(solver.BETAS), "eps": solver.EPS}
        optimizer = fused_adamw(groups, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, **options)
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


def two_parameter_groups(cfg: CfgNode, model: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield the trainable tensors with weight decay, then those without: biases and all others of one dimension.

    Temperatures, which have none, decay (specification of OVSegmentor, section 6).
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    for group, decayed in (("decayed", True), ("undecayed", False)):
        tensors = [p for name, p in trained if (p.ndim != 1 and not name.endswith(".bias")) is decayed]
        if tensors:
            decay = cfg.SOLVER.WEIGHT_DECAY if decayed else 0.0
            yield {"params": tensors, "name": group, "lr": cfg.SOLVER.BASE_LR, "weight_decay": decay}


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the schedule of ``SOLVER.LR_SCHEDULER_NAME``: ``EpochCosine``, ``WarmupPolyLR``, or one of Detectron2's.

    Raises:
        OvsegError: unknown name.
    """
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME == "EpochCosine":
        return EpochCosineLR(
            optimizer,
            total=solver.MAX_ITER,
            warmup=solver.WARMUP_ITERS,
            warmup_lr=solver.WARMUP_LR,
            min_lr=solver.MIN_LR,
            accumulation=max(solver.ACCUMULATION_STEPS, 1),
        )
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
    return fused_adamw(options, lr=lr, betas=betas, eps=eps)


def fused_adamw(groups: Sequence[Mapping[str, Any]], **options: Any) -> torch.optim.AdamW:
    """Return AdamW that updates a tensor by one kernel, where its device has one: equal up to rounding.

    Most tensors have a group of their own, and AdamW's kernels for several tensors (``foreach``) work within groups.

    Args:
        groups: parameter groups.
        options: AdamW's.
    """
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return torch.optim.AdamW(groups, fused=devices <= FUSED or None, **options)
