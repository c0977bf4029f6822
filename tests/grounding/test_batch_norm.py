"""Batch normalisation over processes is that of one process with all samples."""

from __future__ import annotations

import torch
from torch import nn

from ovseg.engine.launch import World, launch
from ovseg.grounding.batch_norm import SharedBatchNorm
from tests.grounding import processes


def plain_norm() -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
        norm.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
        norm.running_var.fill_(2.0)
        norm.num_batches_tracked.fill_(7)
    return norm


def test_processes_of_unequal_shares_equal_one(tmp_path):
    torch.manual_seed(0)
    state = {name: tensor.clone() for name, tensor in plain_norm().state_dict().items()}
    cases = [(100 + torch.randn(shape).double(), torch.randn(shape).double()) for shape in ((6, 3), (6, 3, 4))]
    launch(processes.normalise_in_processes, World(processes_here=2), (cases, state, (4, 2), tmp_path))
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for case, (x, target) in enumerate(cases):
        for name, value in processes.normalise(x, target, plain_norm()).items():
            parts = value.split((4, 2)) if name in ("out", "x") else (value, value)
            for rank in range(2):
                torch.testing.assert_close(found[rank][case][name], parts[rank], rtol=0, atol=1e-10, msg=name)


def test_one_process_is_plain_and_evaluation_too():
    norm = plain_norm()
    shared = SharedBatchNorm(3).double()
    shared.load_state_dict(norm.state_dict())
    x = torch.randn(5, 3, 2).double()
    assert torch.equal(norm(x), shared(x))
    assert torch.equal(norm.eval()(x), shared.eval()(x))
    torch.testing.assert_close(norm.state_dict(), shared.state_dict(), rtol=0, atol=0)
