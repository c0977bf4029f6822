"""What an evaluation counts, so that counts of several processes, and of runs that were killed, become one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from detectron2.utils import comm

State = Mapping[str, np.ndarray]


class Tally(Protocol):
    """Something that counts images.

    However the images are spread over tallies, adding the state of one to another must give the same bits.
    """

    def state(self) -> State:
        """All that is needed to go on elsewhere: arrays (no objects) by name."""

    def add(self, state: State) -> None:
        """Count what another tally has counted, too."""

    def check(self, state: State, images: Sequence[int]) -> None:
        """Raise ValueError or KeyError unless a state from disk can be that of a tally that counted these images."""


def check_counts(own: np.ndarray, other: np.ndarray) -> None:
    """Raise ValueError unless ``other`` has the type and shape of ``own`` and holds no negative number, no NaN."""
    if other.dtype != own.dtype or other.shape != own.shape or not (np.isfinite(other) & (other >= 0)).all():
        raise ValueError(f"holds {other.dtype} of shape {other.shape} that cannot be counts")


def add_other_processes(tally: Tally) -> None:
    """Bring the counts of all processes into the main one's tally; every process calls it, once."""
    gathered = comm.gather(tally.state(), dst=0)
    for state in gathered[1:] if comm.is_main_process() else ():
        tally.add(state)


class Stopwatch:
    """Seconds by what they were spent on: "reading", "model" and "evaluation"."""

    PARTS = ("reading", "model", "evaluation")

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.start()

    def start(self) -> None:
        """Begin a lap."""
        self._since = time.perf_counter()

    def lap(self, part: str) -> None:
        """Book the time since the last call under ``part``."""
        now = time.perf_counter()
        self.seconds[part] += now - self._since
        self._since = now

    def state(self) -> State:
        return {"seconds": np.array([self.seconds[part] for part in self.PARTS])}

    def add(self, state: State) -> None:
        self.seconds.update(dict(zip(self.PARTS, state["seconds"].tolist(), strict=True)))

    def check(self, state: State, images: Sequence[int]) -> None:
        check_counts(np.zeros(len(self.PARTS)), state["seconds"])
