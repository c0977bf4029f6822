"""Tallies: mergeable counts, which combine several processes and interrupted runs into one result."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from detectron2.utils import comm

State = Mapping[str, np.ndarray]


class Tally:
    """Base class of mergeable counts over images; it counts nothing itself.

    Adding states must give bit-identical results for any distribution of the images over tallies.
    """

    def state(self) -> State:
        """Return the full state as arrays (no objects) by name."""
        return {}

    def add(self, state: State) -> None:
        """Add the state of another tally."""

    def check(self, state: State, images: Sequence[int]) -> None:
        """Raise ValueError or KeyError unless ``state``, read from disk, is a valid state for these images."""


def check_counts(own: np.ndarray, other: np.ndarray) -> None:
    """Raise ValueError unless ``other`` has the type and shape of ``own`` and holds no negative number, no NaN."""
    if other.dtype != own.dtype or other.shape != own.shape or not (np.isfinite(other) & (other >= 0)).all():
        raise ValueError(f"holds {other.dtype} of shape {other.shape} that cannot be counts")


def add_other_processes(tally: Tally) -> None:
    """Add the counts of all processes to the main process's tally; every process calls it once."""
    gathered = comm.gather(tally.state(), dst=0)
    for state in gathered[1:] if comm.is_main_process() else ():
        tally.add(state)


class Stopwatch(Tally):
    """Tally of seconds by activity; "grounding" is the second pass of Grounding mIoU."""

    PARTS = ("reading", "model", "grounding", "evaluation")

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.start()

    def start(self) -> None:
        """Start a lap."""
        self._since = time.perf_counter()

    def lap(self, part: str) -> None:
        """Add the time since the last call to ``part``."""
        now = time.perf_counter()
        self.seconds[part] += now - self._since
        self._since = now

    def state(self) -> State:
        return {"seconds": np.array([self.seconds[part] for part in self.PARTS])}

    def add(self, state: State) -> None:
        self.seconds.update(dict(zip(self.PARTS, state["seconds"].tolist(), strict=True)))

    def check(self, state: State, images: Sequence[int]) -> None:
        check_counts(np.zeros(len(self.PARTS)), state["seconds"])


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` file by name; nothing is unpickled.

    Raises:
        ValueError: the file is missing, damaged, or holds anything but arrays; the message is one line.
    """
    if not path.is_file():
        raise ValueError("is not a file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: np.asarray(archive[name]) for name in archive.files}
    except Exception as error:  # damaged archives raise almost anything
        raise ValueError((str(error) or type(error).__name__).splitlines()[0][:200]) from error
