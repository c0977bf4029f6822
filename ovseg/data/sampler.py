"""A shuffled stream of samples that can start anywhere, and random seeds of samples."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
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
        drop_last: leave these out of the epochs of an endless stream, too, so that no batch holds a sample twice. Such
            a stream has whole batches only: one that is to start within a batch starts with the next one.

    Raises:
        ValueError: processes cannot share a batch; or, with ``drop_last``, there are fewer samples than in one.
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
        drop_last: bool = False,
    ):
        if batch_size % world_size:
            raise ValueError(f"a batch of {batch_size} cannot be shared by {world_size} processes")
        if drop_last and size < batch_size:
            raise ValueError(f"{size} samples fill no batch of {batch_size}")
        self.size, self.batch_size, self.seed, self.rank = size, batch_size, seed, rank
        self.start = start + (-start % batch_size if drop_last else 0)
        self.share = batch_size // world_size
        self.epochs, self.whole = epochs, drop_last or epochs is not None

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield lists of (position in the stream, index in the data set); with ``epochs``, of (epoch, index)."""
        length = self.size - (self.size % self.batch_size if self.whole else 0)
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


class MixedBatchSampler(Sampler):
    """Batches of an endless stream of samples of several data sets, each sample's drawn with given probabilities.

    The samples of each data set, on their own, are one permutation of it after another. As in
    :class:`StreamBatchSampler`, the stream is a function of ``seed`` alone.

    Args:
        sizes: number of samples in each data set.
        weights: of the data sets, proportional to their probabilities.
        batch_size: samples of a global batch.
        seed: of choices and permutations.
        start: position in the stream to start from, that is the number of samples used so far.
        rank, world_size: of this process.
    """

    _BLOCK = 1 << 16  # choices drawn at a time, whatever the size of a batch

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        if batch_size % world_size:
            raise ValueError(f"a batch of {batch_size} cannot be shared by {world_size} processes")
        self.sizes, self.batch_size, self.seed, self.start = list(sizes), batch_size, seed, start
        self.share = batch_size // world_size
        self.rank = rank
        self._ends = np.cumsum(weights) / np.sum(weights)
        self._block, self._choices = -1, np.empty(0, np.int64)
        self._orders = [(-1, torch.empty(0))] * len(self.sizes)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield lists of (position in the stream, index in all data sets one after another)."""
        offsets = np.cumsum([0, *self.sizes[:-1]]).tolist()
        visits = self._visits(self.start)
        for first in count(self.start, self.batch_size):
            keys = []
            for position in range(first, first + self.batch_size):
                chosen = self._choice(position)
                if 0 <= position - first - self.rank * self.share < self.share:
                    keys.append((position, offsets[chosen] + self._index(chosen, visits[chosen])))
                visits[chosen] += 1
            yield keys

    def _choice(self, position: int) -> int:
        if position // self._BLOCK != self._block:
            self._block = position // self._BLOCK
            self._choices = self._draw(self._block)
        return int(self._choices[position % self._BLOCK])

    def _draw(self, block: int) -> np.ndarray:
        draws = np.random.default_rng(mix(self.seed, block)).random(self._BLOCK)
        return np.searchsorted(self._ends[:-1], draws, side="right")

    def _visits(self, position: int) -> list[int]:
        """Return how many samples of each data set are before a position of the stream."""
        visits = np.zeros(len(self.sizes), np.int64)
        for block in range(-(-position // self._BLOCK)):
            drawn = self._draw(block)[: position - block * self._BLOCK]
            visits += np.bincount(drawn, minlength=len(visits))
        return visits.tolist()

    def _index(self, chosen: int, visit: int) -> int:
        size = self.sizes[chosen]
        epoch, order = self._orders[chosen]
        if visit // size != epoch:
            epoch = visit // size
            order = torch.randperm(size, generator=torch.Generator().manual_seed(mix(self.seed, chosen, epoch)))
            self._orders[chosen] = epoch, order
        return int(order[visit % size])


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
