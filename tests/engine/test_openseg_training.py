"""OpenSeg trains: the loss falls, runs survive SIGKILL, and processes with synced losses are as one."""

from __future__ import annotations

import signal

import pytest
import torch

from ovseg.checkpoint.state_dicts import read_checkpoint
from tests.engine import openseg_runs, toy
from tests.processes import run_processes

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    openseg_runs.write_scenes(folder)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(scenes, tmp_path_factory, one_thread):
    folder = tmp_path_factory.mktemp("uninterrupted")
    openseg_runs.train(scenes, folder)
    return folder


def test_killed_and_resumed_weights_are_those_of_an_uninterrupted_run(scenes, uninterrupted, tmp_path):
    assert list(toy.read_losses(uninterrupted)) == list(range(6))
    # the second checkpoint is cut in the middle, then the pointer to it
    assert run_processes(openseg_runs.train, (scenes, tmp_path, False, 3)) == [-signal.SIGKILL]
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert run_processes(openseg_runs.train, (scenes, tmp_path, True, 2)) == [-signal.SIGKILL]
    openseg_runs.train(scenes, tmp_path, resume=True)
    assert toy.read_losses(tmp_path) == toy.read_losses(uninterrupted)
    ours, theirs = (read_checkpoint(folder / "model_final.pth")["model"] for folder in (tmp_path, uninterrupted))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_weights_move_but_those_of_the_text_tower(scenes, uninterrupted):
    before = read_checkpoint(uninterrupted / "model_0000001.pth")["model"]
    after = read_checkpoint(uninterrupted / "model_final.pth")["model"]
    same = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    assert all(name.startswith("clip_adapter.") for name in same), same
    assert not any(name.startswith("clip_adapter.") for name in set(before) - same)


def test_two_processes_equal_one_in_loss_and_gradient(scenes, tmp_path):
    """Through the whole model, and in a training run by the words alone: one image has none, one process more masks."""
    for path in scenes.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert run_processes(openseg_runs.one_of, *((rank, 2, tmp_path) for rank in range(2))) == [0, 0]
    expected = openseg_runs.gradients()
    for rank in range(2):
        found = torch.load(tmp_path / f"gradients_{rank}.pt")
        assert found.keys() == expected.keys()
        for name, value in found.items():
            scale = expected[name].abs().max().clamp(min=1e-3)
            assert (value - expected[name]).abs().max() < 1e-4 * scale, name
    openseg_runs.train(tmp_path, tmp_path / "one", opts=(*openseg_runs.SYNCED, "MODEL.OPENSEG.SEG_LOSS_WEIGHT", 0.0))
    one, two = (toy.read_losses(tmp_path / name) for name in ("one", "two"))
    assert list(one) == list(two) == list(range(6))
    first = {iteration: one[iteration] for iteration in range(4)}
    assert {iteration: two[iteration] for iteration in first} == pytest.approx(first, abs=1e-3)
    assert two == pytest.approx(one, abs=1e-2)  # rounding grows from step to step


def test_mixed_precision_trains(scenes, uninterrupted, tmp_path):
    openseg_runs.train(scenes, tmp_path, opts=("SOLVER.AMP.ENABLED", True, "SOLVER.MAX_ITER", 2))
    losses, full = toy.read_losses(tmp_path), toy.read_losses(uninterrupted)
    assert losses[0] != full[0]
    assert losses[0] == pytest.approx(full[0], rel=0.1)


def test_a_teacher_learns_masks_alone(scenes, tmp_path):
    opts = ("MODEL.OPENSEG.GROUNDING_LOSS_WEIGHT", 0.0, "SOLVER.MAX_ITER", 25, "SOLVER.CHECKPOINT_PERIOD", 100)
    openseg_runs.train(scenes, tmp_path, opts=opts)
    losses = list(toy.read_losses(tmp_path).values())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_channels_last_is_equal_up_to_rounding(scenes, uninterrupted, tmp_path):
    openseg_runs.train(scenes, tmp_path, opts=("SOLVER.CHANNELS_LAST", True, "SOLVER.MAX_ITER", 2))
    losses, plain = toy.read_losses(tmp_path), toy.read_losses(uninterrupted)
    assert losses[0] == pytest.approx(plain[0], rel=1e-4)
    weight = read_checkpoint(tmp_path / "model_final.pth")["model"]["backbone.res2.0.conv2.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
