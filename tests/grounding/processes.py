"""What the processes of a test of :mod:`ovseg.grounding.sync` do; importable, as processes are spawned."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from ovseg.grounding.batch_norm import SharedBatchNorm
from ovseg.grounding.contrast import multi_label_loss
from ovseg.grounding.sync import gather_rows, gather_words


def similarity(regions: Tensor, words: Tensor, num_words: Tensor, tau: Tensor) -> Tensor:
    """Return equation 3 for every image and caption by one product of all with all: float64 (B, C)."""
    cosines = torch.einsum("bnd,ckd->bcnk", F.normalize(regions, dim=-1), F.normalize(words, dim=-1))
    attended = ((cosines / tau).softmax(2) * cosines).sum(2)
    there = torch.arange(words.shape[1]) < num_words[:, None]
    return (attended * there).sum(-1) / num_words.clamp(min=1)


def contrastive(scores: Tensor, tau: Tensor) -> Tensor:
    target = torch.arange(len(scores))
    return F.cross_entropy(scores / tau, target) + F.cross_entropy(scores.T / tau, target)


def synced_loss(images: Tensor, weight: Tensor, words: Tensor, num_words: Tensor, tau: Tensor) -> Tensor:
    words, num_words = gather_words(words, num_words)
    return contrastive(gather_rows(similarity(images @ weight, words, num_words, tau)), tau)


def in_processes(inputs: dict[str, Tensor], folder: Path) -> None:
    """Compute loss and averaged gradients of the rows of this process, as DistributedDataParallel does."""
    rank, world = dist.get_rank(), dist.get_world_size()
    weight, tau = (inputs[name].clone().requires_grad_() for name in ("weight", "tau"))
    images, words, num_words = (inputs[name].chunk(world)[rank] for name in ("images", "words", "num_words"))
    words = words[:, : int(num_words.max())]  # another number of columns in each process
    loss = synced_loss(images, weight, words, num_words, tau)
    loss.backward()
    for parameter in (weight, tau):
        dist.all_reduce(parameter.grad)
        parameter.grad /= world
    torch.save({"loss": loss.detach(), "weight": weight.grad, "tau": tau.grad}, folder / f"{rank}.pt")


def labels_in_processes(images: Tensor, labels: Tensor, scale: Tensor, folder: Path) -> None:
    """Compute the multi-label loss of the rows of this process, and the gradients of these rows."""
    rank, world = dist.get_rank(), dist.get_world_size()
    images, labels = (rows.chunk(world)[rank].clone().requires_grad_() for rows in (images, labels))
    loss = multi_label_loss(images, labels, scale)
    loss.backward()
    torch.save({"loss": loss.detach(), "images": images.grad, "labels": labels.grad}, folder / f"{rank}.pt")


def normalise(x: Tensor, target: Tensor, norm: torch.nn.Module) -> dict[str, Tensor]:
    """Train a norm on the sum of its output times a target; return outputs, gradients and statistics."""
    x = x.clone().requires_grad_()
    out = norm(x)
    (out * target).sum().backward()
    found = {"out": out.detach(), "x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    return found | {name: buffer.clone() for name, buffer in norm.named_buffers()}


def normalise_in_processes(
    cases: list[tuple[Tensor, Tensor]], state: dict[str, Tensor], shares: tuple[int, ...], folder: Path
) -> None:
    """Normalise the share of this process of each case, and average the gradients of the parameters."""
    rank, world = dist.get_rank(), dist.get_world_size()
    results = []
    for case in cases:
        x, target = (tensor.split(shares)[rank] for tensor in case)
        norm = SharedBatchNorm(x.shape[1]).double()
        norm.load_state_dict(state)
        found = normalise(x, world * target, norm)  # averaging takes the factor away
        found["x"] /= world
        for name in ("weight", "bias"):
            dist.all_reduce(found[name])
            found[name] /= world
        results.append(found)
    torch.save(results, folder / f"{rank}.pt")
