"""Training runs: they learn, survive SIGKILL, and do not depend on the number of processes."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from detectron2.config import CfgNode

from ovseg.checkpoint.state_dicts import read_checkpoint
from ovseg.engine import trainer
from ovseg.engine.launch import World, _free_port, launch
from ovseg.engine.run import autocast_dtype, evaluate, train
from ovseg.errors import OvsegError
from tests.engine import toy
from tests.processes import run_processes

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def uninterrupted(dataset_folder, one_thread, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    toy.register(toy.write_dataset_once(dataset_folder))
    toy.train_recording(toy.small_cfg(folder))
    return folder


def test_loss_falls_and_files_are_written(dataset, tmp_path):
    toy.train_recording(
        toy.small_cfg(tmp_path, SOLVER__MAX_ITER=60, SOLVER__CHECKPOINT_PERIOD=25, INPUT__COLOR_AUG_SSD=False)
    )
    losses = toy.read_losses(tmp_path)
    assert list(losses) == list(range(60))
    assert sum(losses[i] for i in range(50, 60)) < 0.5 * sum(losses[i] for i in range(10))
    names = {path.name.split(".out")[0] for path in tmp_path.iterdir()}
    assert {"model_0000024.pth", "model_0000049.pth", "model_final.pth", "last_checkpoint", "metrics.json"} <= names
    assert any(name.startswith("events") for name in names), "TensorBoard"
    assert not any(".tmp" in name for name in names)


def test_same_seed_same_losses_another_seed_others(dataset, uninterrupted, tmp_path):
    toy.train_recording(toy.small_cfg(tmp_path / "same", DATALOADER__NUM_WORKERS=2))
    assert toy.read_losses(tmp_path / "same") == toy.read_losses(uninterrupted)
    toy.train_recording(toy.small_cfg(tmp_path / "other", SEED=8))
    assert toy.read_losses(tmp_path / "other")[0] != toy.read_losses(uninterrupted)[0]


def test_killed_while_writing_resumes_to_the_same_losses(dataset_folder, dataset, uninterrupted, tmp_path):
    """First killed within the second checkpoint's file, after resuming within the pointer to it."""

    def run_until_killed(nth_write: int, resume: bool) -> None:
        arguments = (dataset_folder, tmp_path, nth_write, resume)
        assert run_processes(toy.train_and_die, arguments) == [-signal.SIGKILL]

    def temporary() -> list[Path]:
        return list(tmp_path.glob(".*.tmp*"))

    run_until_killed(3, resume=False)  # file, pointer, file
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    assert not (tmp_path / "model_0000007.pth").exists()
    assert len(temporary()) == 1
    run_until_killed(2, resume=True)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
    assert (tmp_path / "model_0000007.pth").exists()
    toy.train_recording(toy.small_cfg(tmp_path), resume=True)

    assert toy.read_losses(tmp_path) == toy.read_losses(uninterrupted)
    assert temporary() == []
    ours, theirs = (read_checkpoint(folder / "model_final.pth") for folder in (tmp_path, uninterrupted))
    torch.testing.assert_close(ours["model"], theirs["model"], rtol=0, atol=0)
    assert ours["samples_used"] == theirs["samples_used"] == 12 * 4


def test_damaged_checkpoint_falls_back_to_the_one_before(dataset, uninterrupted, tmp_path, caplog):
    toy.train_recording(toy.small_cfg(tmp_path))
    for name, size in (("model_final.pth", 1000), ("model_0000011.pth", 0)):
        if (tmp_path / name).exists():
            os.truncate(tmp_path / name, size)
    (tmp_path / "losses.jsonl").unlink()
    toy.train_recording(toy.small_cfg(tmp_path), resume=True)
    assert "is truncated" in caplog.text and "GOING BACK TO" in caplog.text
    losses, expected = toy.read_losses(tmp_path), toy.read_losses(uninterrupted)
    assert list(losses) == [8, 9, 10, 11]
    assert losses == {i: expected[i] for i in losses}


def test_all_checkpoints_damaged(dataset, tmp_path):
    (tmp_path / "model_0000003.pth").write_bytes(b"<html>not found</html>")
    with pytest.raises(OvsegError, match=r"no checkpoint in .* can be read"):
        toy.train_recording(toy.small_cfg(tmp_path), resume=True)


def test_resume_continues_beyond_the_end_and_in_an_empty_folder(dataset, tmp_path):
    toy.train_recording(toy.small_cfg(tmp_path, SOLVER__MAX_ITER=4), resume=True)
    toy.train_recording(toy.small_cfg(tmp_path, SOLVER__MAX_ITER=6, SOLVER__IMS_PER_BATCH=2), resume=True)
    assert list(toy.read_losses(tmp_path)) == list(range(6))
    assert read_checkpoint(tmp_path / "model_final.pth")["samples_used"] == 4 * 4 + 2 * 2
    toy.train_recording(toy.small_cfg(tmp_path, SOLVER__MAX_ITER=6), resume=True)  # complete: nothing to do
    assert len((tmp_path / "losses.jsonl").read_text().splitlines()) == 6


def test_number_of_classes_is_checked_before_anything_is_built(dataset, tmp_path, monkeypatch):
    for name in ("build_model", "build_train_loader"):
        monkeypatch.setattr(f"ovseg.engine.run.{name}", lambda *_, **__: pytest.fail("something was built"))
    message = r"NUM_CLASSES is 5, but the training data set engine_test_train has 2 classes: add MODEL\S+NUM_CLASSES 2"
    with pytest.raises(OvsegError, match=message):
        train(toy.small_cfg(tmp_path, MODEL__SEM_SEG_HEAD__NUM_CLASSES=5))


def test_checkpoint_of_another_model(dataset, uninterrupted, tmp_path):
    checkpoint = torch.load(uninterrupted / "model_final.pth", weights_only=True)
    checkpoint["model"].pop("head.bias")
    torch.save(checkpoint, tmp_path / "model_final.pth")
    with pytest.raises(OvsegError, match="another configuration"):
        toy.train_recording(toy.small_cfg(tmp_path), resume=True)


def test_non_finite_loss_names_the_iteration(dataset, tmp_path):
    cfg = toy.small_cfg(tmp_path, SOLVER__BASE_LR=1e30, SOLVER__CLIP_GRADIENTS__ENABLED=False, SOLVER__OPTIMIZER="SGD")
    with pytest.raises(OvsegError, match=r"infinite or NaN at iteration \d+ .*loss_pixels"):
        toy.train_recording(cfg)


def test_mixed_precision_on_cpu_is_bfloat16(dataset, uninterrupted, tmp_path):
    toy.train_recording(toy.small_cfg(tmp_path, SOLVER__AMP__ENABLED=True))
    losses, full = toy.read_losses(tmp_path), toy.read_losses(uninterrupted)
    assert losses[0] != full[0]
    assert losses[0] == pytest.approx(full[0], rel=0.05)
    assert autocast_dtype(True, "cuda:0") is torch.float16
    assert autocast_dtype(False, "cuda") is None


def test_two_processes_and_two_machines_equal_one_process(dataset_folder, dataset, tmp_path):
    def cfg(name: str) -> CfgNode:
        return toy.small_cfg(tmp_path / name, MODEL__MASK_FORMER__DROPOUT=0.0)

    launch(toy.train_in_process, World(processes_here=2), (str(dataset_folder), cfg("processes")))
    url = f"tcp://127.0.0.1:{_free_port()}"
    machines = [World(1, 2, rank, url) for rank in range(2)]
    job = (toy.train_in_process, (str(dataset_folder), cfg("machines")))
    assert run_processes(launch_machine, *((world, *job) for world in machines)) == [0, 0]
    toy.train_recording(cfg("one"))
    one, *others = (toy.read_losses(tmp_path / name) for name in ("one", "processes", "machines"))
    for losses in others:
        assert list(losses) == list(one) == list(range(12))
        assert losses == pytest.approx(one, abs=1e-4)


def launch_machine(world: World, main: Callable, args: tuple) -> None:
    """What is run on each machine."""
    launch(main, world, args)


def test_evaluation_needs_weights(tmp_path):
    with pytest.raises(OvsegError, match=r"MODEL\.WEIGHTS is empty"):
        evaluate(toy.small_cfg(tmp_path))


def test_unprepared_data_set(tmp_path):
    with pytest.raises(OvsegError, match="not registered"):
        toy.train_recording(toy.small_cfg(tmp_path, DATASETS__TRAIN="('nowhere',)"))


def test_wandb_missing(dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(OvsegError, match="wandb is not installed"):
        toy.train_recording(toy.small_cfg(tmp_path, WANDB__ENABLED=True))


def test_wandb_gets_every_scalar(dataset, tmp_path, monkeypatch):
    class Run(list):
        def log(self, values, step):
            self.append((step, values))

        def finish(self):
            self.append("finished")

    runs = []

    def init(**options):
        runs.append((options, Run()))
        return runs[0][1]

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    toy.train_recording(toy.small_cfg(tmp_path, WANDB__ENABLED=True, WANDB__NAME="a", SOLVER__MAX_ITER=3))
    ((options, run),) = runs
    assert (options["project"], options["name"], options["config"]["SEED"]) == ("open_vocab_seg", "a", 7)
    step, values = run[0]
    assert step == 2 and values["total_loss"] == toy.read_losses(tmp_path)[2] and "lr" in values
    assert run[-1] == "finished"


def test_several_processes_use_nothing_deprecated(tmp_path, monkeypatch):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        monkeypatch.setattr(trainer.comm, "get_world_size", lambda: 2)
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)
            assert not trainer.parallel(torch.nn.Linear(2, 2)).broadcast_buffers
    finally:
        dist.destroy_process_group()
