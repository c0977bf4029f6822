"""Losses over the batches of several processes are those of one process, with their gradients."""

import pytest
import torch

from ovseg.engine.launch import World, launch
from ovseg.errors import OvsegError
from ovseg.grounding import sync
from ovseg.grounding.sync import gather_rows, gather_words
from tests.grounding import processes


def test_processes_equal_one_in_loss_and_gradient(tmp_path):
    torch.manual_seed(0)
    inputs = {
        "images": torch.randn(4, 5, 6, dtype=torch.float64),
        "weight": torch.randn(6, 7, dtype=torch.float64),
        "words": torch.randn(4, 4, 7, dtype=torch.float64),
        "num_words": torch.tensor([1, 2, 4, 3]),
        "tau": torch.tensor(0.2, dtype=torch.float64),
    }
    weight, tau = (inputs[name].clone().requires_grad_() for name in ("weight", "tau"))
    loss = processes.synced_loss(inputs["images"], weight, inputs["words"], inputs["num_words"], tau)
    loss.backward()
    launch(processes.in_processes, World(processes_here=2), (inputs, tmp_path))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, expected in (("loss", loss.detach()), ("weight", weight.grad), ("tau", tau.grad)):
            torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-12)


def test_one_process_gathers_nothing():
    rows, number = torch.ones(2, 3, 4), torch.tensor([3, 0])
    assert gather_rows(rows) is rows
    assert gather_words(rows, number)[0] is rows and gather_words(rows, number)[1] is number


def test_processes_with_unequal_batches(monkeypatch):
    monkeypatch.setattr(sync, "num_processes", lambda: 2)
    monkeypatch.setattr(sync, "_concatenated", lambda shape: torch.cat((shape, shape + 1)))
    with pytest.raises(OvsegError, match=r"\[2, 3\] captions with .*GROUNDING_SYNC"):
        gather_words(torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int64))
