"""The contrastive loss: by hand, over two processes, and in parts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ovseg.adaptation.contrastive import contrastive_loss, encode_in_parts
from ovseg.engine.launch import World, launch
from ovseg.engine.trainer import average_gradients

ROWS, DIM = 6, 5


def _problem() -> tuple[nn.Linear, nn.Parameter, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    tower = nn.Linear(7, DIM)
    for parameter in tower.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    scale = nn.Parameter(torch.tensor(1.5))
    crops = torch.randn(ROWS, 7, generator=generator)
    texts = torch.randn(ROWS, DIM, generator=generator)
    return tower, scale, crops, texts, torch.tensor([0, 1, 2, 0, 3, 1])


def _gradients(rows: slice, micro_batch: int = 0, **options) -> tuple[float, list[torch.Tensor]]:
    tower, scale, crops, texts, ids = _problem()

    def encode(crops: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        return tower(crops) + masks

    masks = torch.arange(ROWS)[:, None] / 10
    crops, masks, texts, ids = (part[rows] for part in (crops, masks, texts, ids))
    features = encode_in_parts(encode, (crops, masks), micro_batch)
    loss = contrastive_loss(features, texts, scale, ids, **options)
    loss.backward()
    parameters = [*tower.parameters(), scale]
    average_gradients(parameters)
    return loss.item(), [parameter.grad for parameter in parameters]


OPTIONS = ({}, {"ignore_equal_texts": True, "micro_batch": 2})


def _in_process(folder: str) -> None:
    torch.set_num_threads(1)
    rank = torch.distributed.get_rank()
    rows = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    torch.save([_gradients(rows, **options) for options in OPTIONS], Path(folder) / f"{rank}.pt")


def test_two_processes_give_the_gradients_of_one(tmp_path):
    launch(_in_process, World(processes_here=2), (str(tmp_path),))
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for options, (first, ours), (second, theirs) in zip(OPTIONS, *results, strict=True):
        loss, expected = _gradients(slice(None), ignore_equal_texts=options.get("ignore_equal_texts", False))
        assert (first + second) / 2 == pytest.approx(loss, abs=1e-6)
        for gradients in (ours, theirs):
            torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-6)
        assert expected[-1].abs() > 1e-3, "the logit scale has a gradient that could be wrong"


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_parts_give_the_gradients_of_the_whole_batch(micro_batch):
    loss, expected = _gradients(slice(None))
    parts_loss, gradients = _gradients(slice(None), micro_batch=micro_batch)
    assert parts_loss == pytest.approx(loss, abs=1e-6)
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-6)


def test_a_part_is_encoded_again_in_the_backward_pass():
    """In the order of parts, in which their gradients are added up."""
    weight, calls = nn.Parameter(torch.ones(())), []

    def encode(rows: torch.Tensor) -> torch.Tensor:
        calls.append(rows[0].item())
        return (rows[:, None] * weight).square()

    features = encode_in_parts(encode, (torch.arange(6.0),), 2)
    assert features[:, 0].tolist() == [0, 1, 4, 9, 16, 25] and sorted(calls) == [0, 2, 4]
    calls.clear()
    features.sum().backward()
    assert calls == [0, 2, 4] and weight.grad == 2 * 55


def test_loss_by_hand():
    images, texts = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = contrastive_loss(images, texts, torch.tensor(math.log(4.0)), torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-4)), abs=1e-6)


def test_equal_texts_are_wrong_answers_unless_ignored():
    _, scale, _, texts, ids = _problem()
    texts = texts[ids]  # equal numbers, equal features
    images = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(0))
    original = contrastive_loss(images, texts, scale, ids)
    ignoring = contrastive_loss(images, texts, scale, ids, ignore_equal_texts=True)
    assert ignoring < original
    # by hand: each row over its own answer and the pairs of other texts
    logits = scale.exp() * F.normalize(images) @ F.normalize(texts).T
    expected = 0.0
    for matrix in (logits, logits.T):
        for row in range(ROWS):
            others = [k for k in range(ROWS) if k == row or ids[k] != ids[row]]
            expected += (matrix[row, others].logsumexp(0) - matrix[row, row]) / (2 * ROWS)
    torch.testing.assert_close(ignoring, expected)
    different = torch.arange(ROWS)
    assert contrastive_loss(images, texts, scale, different, ignore_equal_texts=True) == original
