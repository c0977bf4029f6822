"""A shuffled stream of samples that can start anywhere, and random seeds of samples."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from itertools import count

import numpy as np
import torch
from torch.utils.data import Sampler


class StreamBatchSampler(Sampler):
    """Batches of a stream of samples in which every epoch is a new permutation of the data set.

    The stream is a function of ``seed`` alone, so neither restarts nor the number of processes change it: process
    ``rank`` takes its contiguous part of every global batch.

    Args:
        size: number of samples in the data set.
        batch_size: samples of a global batch.
        seed: of the permutations.
        start: position in the stream to start from, that is the number of samples used so far.
        rank, world_size: of this process.
        epochs: None for an endless stream, whose epochs follow each other without a gap. Else so many epochs, of which
            samples that do not fill a batch are left out.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        epochs: int | None = None,
    ):
        if batch_size % world_size:
            raise ValueError(f"a batch of {batch_size} cannot be shared by {world_size} processes")
        self.size, self.batch_size, self.seed, self.start, self.rank = size, batch_size, seed, start, rank
        self.share = batch_size // world_size
        self.epochs = epochs

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield lists of (position in the stream, index in the data set); with ``epochs``, of (epoch, index)."""
        length = self.size if self.epochs is None else self.size - self.size % self.batch_size
        starts = count(self.start, self.batch_size)
        if self.epochs is not None:
            starts = range(self.start, length * self.epochs, self.batch_size)
        epoch, order = -1, torch.empty(0)
        for first in starts:
            keys = []
            for position in range(first + self.rank * self.share, first + (self.rank + 1) * self.share):
                if position // length != epoch:
                    epoch = position // length
                    order = torch.randperm(self.size, generator=torch.Generator().manual_seed(mix(self.seed, epoch)))
                keys.append((position if self.epochs is None else epoch, int(order[position % length])))
            yield keys


def mix(*numbers: int) -> int:
    """Return a 32-bit seed made of several numbers; unlike a sum, (1, 2) and (2, 1) differ."""
    return int(np.random.SeedSequence([number % 2**63 for number in numbers]).generate_state(1)[0])


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed NumPy's and Python's global generators, which Detectron2's augmentations draw from; restore them after."""
    before = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before[0])
        random.setstate(before[1])
