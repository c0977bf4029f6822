"""OVSegmentor trains: runs survive SIGKILL and go on within an epoch, and two processes are as one."""

from __future__ import annotations

import json
import signal

import pytest
import torch

from ovseg.checkpoint.state_dicts import read_checkpoint
from ovseg.engine import run
from ovseg.errors import OvsegError
from tests.engine import ovsegmentor_runs, toy
from tests.processes import run_processes

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    ovsegmentor_runs.write_pairs(folder)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(pairs, tmp_path_factory, one_thread):
    folder = tmp_path_factory.mktemp("uninterrupted")
    ovsegmentor_runs.train(pairs, folder)
    return folder


def test_a_killed_run_goes_on_within_an_epoch(pairs, uninterrupted, tmp_path):
    assert list(toy.read_losses(uninterrupted)) == list(range(5))
    # the second checkpoint is cut in the middle: the run goes on after 4 of 10 pairs, of which an epoch has 8
    assert run_processes(ovsegmentor_runs.train, (pairs, tmp_path, False, 3)) == [-signal.SIGKILL]
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.pth"
    ovsegmentor_runs.train(pairs, tmp_path, resume=True)
    assert toy.read_losses(tmp_path) == toy.read_losses(uninterrupted)
    ours, theirs = (read_checkpoint(folder / "model_final.pth")["model"] for folder in (tmp_path, uninterrupted))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_what_trains(uninterrupted):
    before = read_checkpoint(uninterrupted / "model_0000000.pth")["model"]
    after = read_checkpoint(uninterrupted / "model_final.pth")["model"]
    same = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    unused = ("pooler.", "multimodal_groupingblock.blocks.0.assign.", "logit_scale_mask")
    assert not [name for name in same if not any(part in name for part in unused)], "the teacher, too"


def test_evaluations_while_it_trains(uninterrupted):
    record = json.loads((uninterrupted / "inference" / "zero_shot" / "results.json").read_text())
    assert (record["num_images"], record["num_classes"], record["iteration"]) == (10, 2, 5)
    assert 0 <= record["results"]["top1"] <= 100 and record["results"]["top5"] == 100
    for score in ("miou", "top1"):
        best = read_checkpoint(uninterrupted / f"best_{score}.pth")
        assert best["iteration"] in (3, 5) and 0 <= best["value"] <= 100


def test_stage_1_has_no_teacher(pairs, tmp_path):
    ovsegmentor_runs.train(pairs, tmp_path, stage=1)
    weights = read_checkpoint(tmp_path / "model_final.pth")["model"]
    assert not any(name.startswith("img_encoder_momentum") for name in weights)


def test_texts_that_are_too_long_are_refused_before_anything_starts(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "fit", lambda *_, **__: pytest.fail("the training has begun"))
    ovsegmentor_runs.register(pairs)
    cfg = ovsegmentor_runs.configuration(pairs, tmp_path, 1, "INPUT.TEXT_AUG.MAX_SEQ_LEN", 25)
    with pytest.raises(OvsegError, match=r"MAX_SEQ_LEN is 25, but the text encoder .* takes up to 24 tokens"):
        run.train(cfg)


def test_two_processes_equal_one(pairs, tmp_path):
    """In losses, gradients and statistics of batch normalisation."""
    arguments = ((rank, 2, pairs, tmp_path) for rank in range(2))
    assert run_processes(ovsegmentor_runs.one_of, *arguments) == [0, 0]
    expected = ovsegmentor_runs.one_step(pairs)
    assert {
        "loss_matching",
        "loss_entity",
        "loss_mask",
        "bridge_projector.linear_hidden.1.running_var",
    } < expected.keys()
    for rank in range(2):
        found = torch.load(tmp_path / f"step_{rank}.pt")
        assert found.keys() == expected.keys()
        for name, value in found.items():
            scale = expected[name].abs().max().clamp(min=1e-2)
            assert (value - expected[name]).abs().max() <= 1e-6 * scale, name
    assert list(toy.read_losses(tmp_path / "two")) == list(range(5)), "a whole run"
    assert (tmp_path / "two" / "best_miou.pth").is_file()
