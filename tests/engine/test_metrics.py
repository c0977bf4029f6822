"""What a run reports: the metrics file, TensorBoard, and the hooks that measure."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine import hooks
from detectron2.utils.events import EventStorage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ovseg.engine.hooks import Every, Meter
from ovseg.engine.metrics import MetricsWriter, cut_lines
from ovseg.engine.schedules import WarmupCosineLR
from ovseg.engine.trainer import Trainer


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_scalars_of_the_storage_are_written_once(tmp_path):
    runs = []
    run = SimpleNamespace(log=lambda values, step: runs.append((step, values)), finish=lambda: runs.append("finished"))
    writer = MetricsWriter(tmp_path / "metrics.json", tmp_path, wandb_run=run)
    with EventStorage(3) as storage:
        storage.put_scalars(total_loss=2.0, lr=0.1, smoothing_hint=False)
        writer.write()
        writer.write()
        storage.iter = 4
        storage.put_scalar("total_loss", 1.0, smoothing_hint=False)
        writer.write()
    writer.close()
    first = {"iteration": 3, "lr": 0.1, "total_loss": 2.0}
    assert lines(tmp_path / "metrics.json") == [first, {"iteration": 4, "total_loss": 1.0}]
    assert list(lines(tmp_path / "metrics.json")[0]) == sorted(first)
    assert runs == [(3, {"total_loss": 2.0, "lr": 0.1}), (4, {"total_loss": 1.0}), "finished"]


def test_values_keep_their_order_and_go_to_tensorboard(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", step_key="step", prefix="train/")
    writer.add(7, {"epoch": 1, "loss": 0.5, "val/top1": 25.0})
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 7, "epoch": 1, "loss": 0.5, "val/top1": 25.0}\n'
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["train/loss", "val/top1"]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(7, 0.5)]


def test_lines_after_the_checkpoint_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(5)) + '{"step": 5, "lo')
    cut_lines(path, "step", 2)
    assert lines(path) == [{"step": step} for step in range(3)]
    cut_lines(path, "step", -1)
    assert path.read_text() == ""


@pytest.fixture
def trainer():
    """A trainer of one weight, by a function: no model, no configuration."""
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    schedule = WarmupCosineLR(optimizer, 0, 10)
    trainer = Trainer(
        lambda batch: {"square": (weight - batch).square()}, [torch.zeros(())] * 5, optimizer, schedule, seed=0
    )
    trainer.register_hooks([hooks.LRScheduler(optimizer, schedule)])
    return trainer


def test_meter_reports_means_since_the_last_report(trainer):
    written, losses = [], []
    record = hooks.CallbackHook(after_step=lambda t: losses.append(t.storage.latest()["square"][0]))
    meter = Meter(
        (2, 0), 8, "images", lambda step, values: written.append((step, values)), lambda step: {"epoch": step / 5}
    )
    trainer.register_hooks([record, meter])
    trainer.train(0, 5)
    assert [step for step, _ in written] == [2, 4, 5]
    assert list(written[0][1]) == ["epoch", "loss", "images_per_second", "waiting", "memory_gib"]
    means = [torch.tensor(part).mean().item() for part in (losses[:2], losses[2:4], losses[4:])]
    assert [values["loss"] for _, values in written] == means
    assert meter.state.startswith(f"loss {means[-1]:.4f}, ")
    assert all(0 <= values["waiting"] < 1 and values["images_per_second"] > 0 for _, values in written)


@pytest.mark.parametrize(("period", "expected"), [(2, [2, 4, 5]), (5, [5]), (0, [5])])
def test_every_few_iterations_and_at_the_end(trainer, period, expected):
    calls = []
    trainer.register_hooks([Every(period, calls.append)])
    trainer.train(0, 5)
    assert calls == expected


def test_resumed_trainer_has_the_place_in_the_schedule(trainer):
    trainer.train(0, 4)
    rate = trainer.optimizer.param_groups[0]["lr"]
    trainer.iter = 3
    state = trainer.state_dict()
    trainer.optimizer.param_groups[0]["lr"] = 9.0
    trainer.load_state_dict(state)
    assert trainer.optimizer.param_groups[0]["lr"] == rate == trainer.scheduler.get_lr()[0]
