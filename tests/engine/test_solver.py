from __future__ import annotations

from itertools import repeat

import pytest
import torch
from torch import nn

from ovseg.config import get_cfg
from ovseg.engine.solver import GradientClip, build_lr_scheduler, build_optimizer, fused_adamw
from ovseg.engine.trainer import Trainer
from ovseg.errors import OvsegError


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.relative_position_bias_table = nn.Parameter(torch.ones(3))
        self.backbone.norm = nn.LayerNorm(2)
        self.backbone.proj = nn.Linear(2, 2)
        self.query_embed = nn.Embedding(2, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.shared = self.query_embed
        self.non_object_embedding = nn.Parameter(torch.ones(1, 2))


def cfg_with(**solver):
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1, 0.01, 0.5
    cfg.SOLVER.WEIGHT_DECAY_NORM, cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.002, 0.003
    for key, value in solver.items():
        cfg.merge_from_list([f"SOLVER.{key.replace('__', '.')}", value])
    return cfg


def test_one_group_per_tensor_with_the_published_rules():
    optimizer = build_optimizer(cfg_with(), Model())
    assert type(optimizer) is torch.optim.AdamW
    assert {g["name"]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups} == {
        "non_object_embedding": (0.1, 0.01),
        "backbone.relative_position_bias_table": (0.05, 0.0),
        "backbone.norm.weight": (0.05, 0.002),
        "backbone.norm.bias": (0.05, 0.002),
        "backbone.proj.weight": (0.05, 0.01),
        "backbone.proj.bias": (0.05, 0.01),
        "query_embed.weight": (0.1, 0.003),
    }
    assert all(len(group["params"]) == 1 for group in optimizer.param_groups)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_one_kernel_is_equal_to_plain_adamw(layout):
    weights = []
    for make in (fused_adamw, torch.optim.AdamW):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 2))
        model = model.to(memory_format=layout)
        optimizer = make([{"params": [p], "weight_decay": 0.1} for p in model.parameters()], lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            (model(torch.randn(2, 3, 4, 4)) ** 2).sum().backward()
            optimizer.step()
        weights.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped_after_the_loss_scale_is_taken_off():
    found = []
    for scaled in (True, False):
        parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
        optimizer = fused_adamw([{"params": [parameter]}], lr=0.1, eps=1.0)  # whose steps follow the gradients' size
        optimizer.register_step_pre_hook(GradientClip("value", 0.5, 2.0))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        trainer = Trainer(
            lambda batch, p=parameter: {"loss": (p * batch).sum()},
            repeat(torch.tensor([0.1, 3.0])),
            optimizer,
            scheduler,
            seed=0,
            scale_losses=scaled,
        )
        trainer.train(0, 2)
        assert parameter.grad.tolist() == pytest.approx([0.1, 0.5])
        found.append(parameter.detach())
    torch.testing.assert_close(*found)


def test_full_model_clip_scales_all_gradients_together():
    model = Model()
    optimizer = build_optimizer(
        cfg_with(
            OPTIMIZER="SGD",
            MOMENTUM=0.0,
            WEIGHT_DECAY=0.0,
            WEIGHT_DECAY_NORM=0.0,
            WEIGHT_DECAY_EMBED=0.0,
            BACKBONE_MULTIPLIER=1.0,
            CLIP_GRADIENTS__ENABLED=True,
            CLIP_GRADIENTS__CLIP_TYPE="full_model",
            CLIP_GRADIENTS__CLIP_VALUE=0.01,
        ),
        model,
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, float(number + 1))
    before = torch.cat([p.detach().flatten().clone() for p in parameters])
    gradient = torch.cat([p.grad.flatten().clone() for p in parameters])
    optimizer.step()
    change = torch.cat([p.detach().flatten() for p in parameters]) - before
    torch.testing.assert_close(change, -0.1 * 0.01 * gradient / gradient.norm(), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("clip_type", "clipped"), [("value", [[0.5, 0.25]]), ("norm", [[0.3, 0.4]])])
def test_clipping_of_single_tensors(clip_type, clipped):
    model = Model()
    optimizer = build_optimizer(
        cfg_with(
            CLIP_GRADIENTS__ENABLED=True,
            CLIP_GRADIENTS__CLIP_TYPE=clip_type,
            CLIP_GRADIENTS__CLIP_VALUE=0.5,
        ),
        model,
    )
    model.non_object_embedding.grad = torch.tensor([[3.0, 0.25 if clip_type == "value" else 4.0]])
    optimizer.step()
    torch.testing.assert_close(model.non_object_embedding.grad, torch.tensor(clipped), rtol=1e-5, atol=1e-6)


def test_poly_schedule_with_warm_up():
    cfg = cfg_with(LR_SCHEDULER_NAME="WarmupPolyLR", MAX_ITER=100, WARMUP_ITERS=10, WARMUP_FACTOR=1e-6)
    optimizer = build_optimizer(cfg, Model())
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    expected = [0.1 * min(1e-6 * (1 - t / 10) + t / 10, 1.0) * (1 - t / 100) ** 0.9 for t in range(100)]
    assert rates == pytest.approx(expected, rel=1e-6)
    assert optimizer.param_groups[0]["lr"] == 0


@pytest.mark.parametrize("name", ["WarmupMultiStepLR", "WarmupCosineLR"])
def test_detectron2_schedules_by_name(name):
    cfg = cfg_with(LR_SCHEDULER_NAME=name, MAX_ITER=100, STEPS=(50,))
    scheduler = build_lr_scheduler(cfg, build_optimizer(cfg, Model()))
    assert scheduler.get_lr()[0] < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"OPTIMIZER": "LAMB"}, "SOLVER.OPTIMIZER is 'LAMB'"),
        ({"CLIP_GRADIENTS__ENABLED": True, "CLIP_GRADIENTS__CLIP_TYPE": "half"}, "CLIP_TYPE is 'half'"),
        ({"LR_SCHEDULER_NAME": "Step"}, "LR_SCHEDULER_NAME = 'Step'"),
    ],
)
def test_unknown_names(options, message):
    cfg = cfg_with(**options)
    with pytest.raises(OvsegError, match=message):
        build_lr_scheduler(cfg, build_optimizer(cfg, Model()))


def test_nothing_to_train():
    with pytest.raises(OvsegError, match="no trainable parameter"):
        build_optimizer(cfg_with(), nn.Linear(2, 2).requires_grad_(False))
