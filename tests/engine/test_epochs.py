"""Trainings that count epochs: the schedule, gradients that are added up, the teacher, the best checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from ovseg.checkpoint.state_dicts import read_checkpoint
from ovseg.config import get_cfg
from ovseg.config.limits import check_config
from ovseg.engine import run
from ovseg.engine.best import BestCheckpoints
from ovseg.engine.epochs import in_iterations
from ovseg.engine.schedules import epoch_cosine_lr
from ovseg.engine.solver import build_lr_scheduler, build_optimizer
from ovseg.errors import OvsegError
from tests.engine import toy

pytestmark = pytest.mark.usefixtures("one_thread")


class Model(nn.Module):
    """A tensor of each kind that the rule of the optimiser knows."""

    def __init__(self):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.pos_embed = nn.Parameter(torch.ones(4, 2))
        self.vector = nn.Parameter(torch.ones(3))
        self.linear = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.embedding = nn.Embedding(2, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def solver_cfg(**solver):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "OVSegmentor"
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY = 0.1, 0.05
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


def test_the_published_schedule():
    """Five iterations in an epoch, two epochs of warm-up; the values of the recording ``lr_stage1``."""
    rates = {"base_lr": 3.2e-4, "min_lr": 8e-5, "warmup_lr": 8e-6, "total": 150, "warmup": 10}
    found = [epoch_cosine_lr(i, **rates) for i in range(150)]
    assert found[:4] == pytest.approx([8e-6, 8e-6, 3.92e-5, 7.04e-5])
    assert found[10:12] == pytest.approx([2.888e-4, 3.17377712e-4]), "a jump where the warm-up ends"
    assert found[-1] == pytest.approx(8e-5 + 1.2e-4 * (1 + math.cos(math.pi * 148 / 150)))
    without = {**rates, "warmup": 0}
    assert [epoch_cosine_lr(i, **without) for i in range(2)] == [3.2e-4] * 2


def test_the_schedule_of_the_optimiser():
    cfg = solver_cfg(LR_SCHEDULER_NAME="EpochCosine", MAX_ITER=12, WARMUP_ITERS=4, WARMUP_LR=0.01, MIN_LR=0.02)
    span = {"base_lr": 0.1, "min_lr": 0.02, "warmup_lr": 0.01, "total": 12, "warmup": 4}
    for steps, iterations in ((0, range(12)), (3, [i // 3 * 3 for i in range(12)])):
        cfg.SOLVER.ACCUMULATION_STEPS = steps
        optimizer = build_optimizer(cfg, Model())
        scheduler, found = build_lr_scheduler(cfg, optimizer), []
        for _ in range(12):
            found.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            scheduler.step()
        assert found == [[epoch_cosine_lr(i, **span)] * 2 for i in iterations]


def test_only_vectors_and_biases_do_not_decay():
    model = Model()
    optimizer = build_optimizer(solver_cfg(BETAS=[0.8, 0.9], EPS=1e-5), model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [([names[id(p)] for p in group["params"]], group["weight_decay"]) for group in optimizer.param_groups]
    assert groups == [
        (["logit_scale", "pos_embed", "linear.weight", "embedding.weight"], 0.05),
        (["vector", "linear.bias", "norm.weight", "norm.bias"], 0.0),
    ]
    assert {(group["lr"], group["betas"], group["eps"]) for group in optimizer.param_groups} == {
        (0.1, (0.8, 0.9), 1e-5)
    }


def test_epochs_in_iterations():
    cfg = solver_cfg(MAX_EPOCHS=3, WARMUP_EPOCHS=1, IMS_PER_BATCH=4, CHECKPOINT_PERIOD=2)
    cfg.TEST.EVAL_PERIOD = 1
    counted = in_iterations(cfg, 19)  # three samples fill no batch
    solver = counted.SOLVER
    assert (solver.MAX_ITER, solver.WARMUP_ITERS, solver.CHECKPOINT_PERIOD, counted.TEST.EVAL_PERIOD) == (12, 4, 8, 4)
    assert in_iterations(counted, 19) is counted
    cfg.SOLVER.ACCUMULATION_STEPS = 3
    assert in_iterations(cfg, 19).SOLVER.MAX_ITER == 9, "an epoch ends with a step of the optimiser"
    with pytest.raises(OvsegError, match=r"the 11 training samples are fewer than IMS_PER_BATCH, 4 x ACC\S+ 3: lower"):
        in_iterations(cfg, 11)


def test_periods_end_with_steps():
    with pytest.raises(OvsegError, match=r"CHECKPOINT_PERIOD is 5000: give a multiple of SOLVER.ACCUMULATION_STEPS, 3"):
        check_config(toy.small_cfg(Path("unused"), SOLVER__ACCUMULATION_STEPS=3, SOLVER__CHECKPOINT_PERIOD=5000))


def parameters_after(folder, **options):
    options = {"INPUT__COLOR_AUG_SSD": False, "MODEL__MASK_FORMER__DROPOUT": 0.0, **options}
    toy.train_recording(toy.small_cfg(folder, **options))
    return read_checkpoint(folder / "model_final.pth")["model"]


def test_two_batches_make_one(dataset, tmp_path):
    """The mean gradient of two batches is that of both together, as the losses are means."""
    halves = {"SOLVER__ACCUMULATION_STEPS": 2, "SOLVER__IMS_PER_BATCH": 4, "SOLVER__MAX_ITER": 8}
    plain = {"SOLVER__CHECKPOINT_PERIOD": 4, "SOLVER__WARMUP_ITERS": 0, "SOLVER__LR_SCHEDULER_NAME": "EpochCosine"}
    constant = plain | {"SOLVER__MIN_LR": 0.03}
    parts = parameters_after(tmp_path / "parts", **constant, **halves)
    whole = parameters_after(tmp_path / "whole", **constant, SOLVER__IMS_PER_BATCH=8, SOLVER__MAX_ITER=4)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


def test_resumed_between_steps(dataset, tmp_path):
    options = {"SOLVER__ACCUMULATION_STEPS": 3, "SOLVER__MAX_EPOCHS": 2, "SOLVER__IMS_PER_BATCH": 1}
    whole = parameters_after(tmp_path / "whole", **options, SOLVER__CHECKPOINT_PERIOD=1)
    assert read_checkpoint(tmp_path / "whole" / "model_final.pth")["iteration"] == 17  # ten images, nine used
    (tmp_path / "whole" / "model_final.pth").unlink()
    (tmp_path / "whole" / "last_checkpoint").write_text("model_0000008.pth")
    cfg = toy.small_cfg(tmp_path / "whole", INPUT__COLOR_AUG_SSD=False, MODEL__MASK_FORMER__DROPOUT=0.0, **options)
    toy.train_recording(cfg, resume=True)
    torch.testing.assert_close(read_checkpoint(tmp_path / "whole" / "model_final.pth")["model"], whole, rtol=0, atol=0)


def test_the_teacher_follows_each_iteration(dataset, tmp_path, monkeypatch):
    updates = []
    monkeypatch.setattr(toy.EngineTestModel, "update_teacher", lambda model: updates.append(1), raising=False)
    toy.train_recording(toy.small_cfg(tmp_path, SOLVER__MAX_ITER=4, SOLVER__ACCUMULATION_STEPS=2))
    assert len(updates) == 4


def scored_run(cfg, scores, resume=False):
    """Train with the given scores as the results of the evaluations."""
    scores = iter(scores)
    run.fit(
        cfg,
        resume,
        make_loader=lambda seed, start: run.build_train_loader(cfg, seed=seed, start=start),
        make_model=lambda found: run.load_model(cfg) if found is None else run._restored_model(cfg, *found),
        evaluate=lambda model, done: {"voc": {"sem_seg": {"mIoU": next(scores)}}, "coco": {"sem_seg": {"mIoU": 99.0}}},
    )


def test_the_best_checkpoint(dataset, tmp_path):
    cfg = toy.small_cfg(tmp_path, SOLVER__MAX_ITER=12, TEST__EVAL_PERIOD=4)
    cfg.TEST.SAVE_BEST = ["mIoU"]
    best = tmp_path / "best_miou.pth"
    scored_run(cfg, [30.0, 50.0, 40.0])
    content = read_checkpoint(best)
    assert (content["iteration"], content["value"]) == (8, 50.0)
    torch.testing.assert_close(content["model"], read_checkpoint(tmp_path / "model_0000007.pth")["model"])
    cfg.SOLVER.MAX_ITER = 20
    scored_run(cfg, [45.0, 51.0], resume=True)
    assert read_checkpoint(best)["iteration"] == 20, "45 is less than what the file has"


def test_scores_that_are_not_there(tmp_path):
    best = BestCheckpoints(tmp_path, ["mIoU", "top1"])
    with pytest.raises(OvsegError, match=r"names 'top1', but the evaluation has only mIoU: name one"):
        best.update({"sem_seg": {"mIoU": math.nan}}, 4, dict)
    assert list(tmp_path.iterdir()) == [], "NaN is no best value"


def test_metrics_count_iterations(dataset, tmp_path):
    toy.train_recording(toy.small_cfg(tmp_path, SOLVER__MAX_EPOCHS=2))
    lines = [json.loads(line) for line in Path(tmp_path, "metrics.json").read_text().splitlines()]
    assert lines[-1]["iteration"] == 3
