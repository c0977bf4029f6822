"""Contrastive losses against sums over pairs, and over processes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from ovseg.engine.launch import World, launch
from ovseg.grounding.contrast import contrastive_loss, multi_label_loss
from tests.grounding import processes

SCALE = torch.tensor(3.0, dtype=torch.float64)


def vectors(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_several_words_of_each_image():
    torch.manual_seed(0)
    images, labels = vectors(4, 6), vectors(4, 3, 6)
    similarity = torch.einsum("id,jmd->ijm", F.normalize(images, dim=-1), F.normalize(labels, dim=-1)) * SCALE
    weights = similarity.exp().tolist()
    to_labels = [-math.log(sum(weights[i][i]) / sum(map(sum, weights[i]))) for i in range(4)]
    to_images = [
        -math.log(weights[i][i][m] / sum(weights[j][i][m] for j in range(4))) for i in range(4) for m in range(3)
    ]
    expected = (sum(to_labels) / 4 + sum(to_images) / 12) / 2
    assert multi_label_loss(images, labels, SCALE).item() == pytest.approx(expected, abs=1e-12)


def test_one_word_is_the_loss_of_pairs():
    torch.manual_seed(1)
    images, labels = vectors(5, 6), vectors(5, 1, 6)
    expected = contrastive_loss(images, labels[:, 0], SCALE)
    torch.testing.assert_close(multi_label_loss(images, labels, SCALE), expected)


def test_processes_are_as_one(tmp_path):
    torch.manual_seed(2)
    images, labels = vectors(4, 6).requires_grad_(), vectors(4, 3, 6).requires_grad_()
    loss = multi_label_loss(images, labels, SCALE)
    loss.backward()
    launch(processes.labels_in_processes, World(processes_here=2), (images.detach(), labels.detach(), SCALE, tmp_path))
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    torch.testing.assert_close(sum(each["loss"] for each in found) / 2, loss.detach())
    for name, expected in (("images", images.grad), ("labels", labels.grad)):  # DistributedDataParallel averages
        torch.testing.assert_close(torch.cat([each[name] for each in found]) / 2, expected)
