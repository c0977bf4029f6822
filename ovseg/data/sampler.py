"""An endless shuffled stream of samples that can start anywhere, and per-sample random seeds."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from itertools import count

import numpy as np
import torch
from torch.utils.data import Sampler


class StreamBatchSampler(Sampler):
    """Batches of an endless stream in which every epoch is a new permutation of the data set.

    The stream is a function of ``seed`` alone, so neither restarts nor the number of processes change it: process
    ``rank`` takes its contiguous part of every global batch.

    Args:
        size: number of samples in the data set.
        batch_size: samples of a global batch.
        seed: of the permutations.
        start: position in the stream to start from, that is the number of samples used so far.
        rank, world_size: of this process.
    """

    def __init__(self, size: int, batch_size: int, seed: int, start: int = 0, rank: int = 0, world_size: int = 1):
        if batch_size % world_size:
            raise ValueError(f"a batch of {batch_size} cannot be shared by {world_size} processes")
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.rank = rank
        self.share = batch_size // world_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield lists of (position in the stream, index in the data set)."""
        epoch, order = -1, torch.empty(0)
        for batch in count(self.start + self.rank * self.share, self.batch_size):
            keys = []
            for position in range(batch, batch + self.share):
                if position // self.size != epoch:
                    epoch = position // self.size
                    order = torch.randperm(self.size, generator=torch.Generator().manual_seed(mix(self.seed, epoch)))
                keys.append((position, int(order[position % self.size])))
            yield keys


def mix(*numbers: int) -> int:
    """A 32-bit seed out of several numbers; unlike a sum, (1, 2) and (2, 1) differ."""
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
