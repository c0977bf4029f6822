"""Pickles that no program writes, given to all that read pickles."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from random import Random

from ovseg.checkpoint.state_dicts import read_checkpoint, read_state_dict
from ovseg.data.prepare.raw_formats import read_index
from ovseg.errors import OvsegError
from tests import pickle_crafting


class Pickles:
    """Crafted and damaged pickles; any program that they start is seen by the harness, as is the file they make."""

    name = "pickles"
    inputs = 10_000

    def __init__(self, folder: Path) -> None:
        self.whole, self.crafted = pickle_crafting.seeds(), list(pickle_crafting.crafted())

    def make(self, rng: Random, folder: Path) -> Path:
        if rng.random() < 0.5:
            return pickle_crafting.write(rng.choice(self.crafted), folder)
        return pickle_crafting.write(pickle_crafting.mutated(rng, rng.choice(self.whole), self.whole), folder)

    def steps(self, path: Path) -> Iterable[Callable[[], object]]:
        return [partial(_running_nothing, read, path) for read in (read_checkpoint, _use_tensors, read_index)]


def _use_tensors(path: Path) -> None:
    for tensor in read_state_dict(path).values():
        tensor.clone()


def _running_nothing(read: Callable[[Path], object], path: Path) -> None:
    was_run = Path(pickle_crafting.WAS_RUN)
    try:
        read(path)
    except OvsegError:
        if was_run.exists():
            raise AssertionError("code of the pickle was run") from None
        raise
    assert not was_run.exists(), "code of the pickle was run"
