"""Runs a target in a process of its own and survives whatever becomes of that process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tests.fuzz.worker import STACK, Verdict, place_of_stack, work

DEADLINE = 20.0  # seconds for one input
START = 180.0  # seconds for a worker to build its seeds
LARGEST = 3 * 2**30  # bytes of resident memory, above what the process is forked with
_GLANCE = 0.05  # seconds between looks at the worker's memory


class Target(Protocol):
    """One kind of input.

    ``__init__`` takes a folder for seeds, in the worker; ``inputs`` is how many are made by default.
    """

    name: str
    inputs: int = 2000

    def __init__(self, folder: Path) -> None: ...

    def make(self, rng: Any, folder: Path) -> Any:
        """Make an input that depends on ``rng`` alone; its files go to ``folder``."""

    def steps(self, given: Any) -> Iterable[Callable[[], Any]]:
        """The calls that the input is given to; each is judged by itself."""


@dataclass
class Defect:
    """One way to fail.

    Attributes:
        kind: "traceback", "message", "hang", "crash", "memory", "executed", "network", "outside" or "harness".
        place: where in the project.
        indices: the inputs that end so.
        message: of the first.
    """

    kind: str
    place: str
    message: str
    indices: list[int] = field(default_factory=list)


@dataclass
class Result:
    """What became of the inputs of one target; ``peak`` in bytes, times in seconds."""

    target: str
    inputs: int = 0
    ok: int = 0
    refused: int = 0
    peak: int = 0
    slowest: float = 0.0
    seconds: float = 0.0
    defects: dict[tuple[str, str], Defect] = field(default_factory=dict)

    def count(self, kind: str) -> int:
        """Inputs that failed in this way."""
        return sum(len(defect.indices) for defect in self.defects.values() if defect.kind == kind)

    def add(self, verdict: Verdict, seconds: float) -> None:
        self.inputs += 1
        self.peak = max(self.peak, verdict.peak)
        self.slowest = max(self.slowest, seconds)
        if verdict.kind in ("ok", "refused"):
            setattr(self, verdict.kind, getattr(self, verdict.kind) + 1)
            return
        key = verdict.kind, verdict.place
        self.defects.setdefault(key, Defect(*key, verdict.message)).indices.append(verdict.index)


def fuzz(
    target: type[Target],
    indices: range,
    seed: int = 0,
    *,
    seconds: float = 600.0,
    deadline: float = DEADLINE,
    largest: int = LARGEST,
    keep: Path | None = None,
) -> Result:
    """Give a target its inputs, in worker processes one after the other: a new one follows each that died.

    Args:
        seconds: no further input after so long.
        deadline: seconds for one input, after which its process is killed.
        largest: bytes of resident memory that it may add to those it is forked with; killed above that.
        keep: folder for the first input of each defect.
    """
    result, began = Result(target.name), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ovseg-fuzz-") as scratch:
        following = indices.start
        while following < indices.stop and time.monotonic() - began < seconds:
            todo = range(following, indices.stop, indices.step)
            with _Worker(target, todo, seed, Path(scratch).resolve()) as worker:
                for verdict, spent in worker.verdicts(deadline, largest, began + seconds):
                    new = (verdict.kind, verdict.place) not in result.defects
                    result.add(verdict, spent)
                    following = verdict.index + indices.step
                    if new and keep and verdict.kind not in ("ok", "refused"):
                        _keep_input(target, verdict, worker.folder, keep)
                    worker.go_on()
    result.seconds = time.monotonic() - began
    return result


class _Worker:
    """A process that works through indices and reports each; killed, with all its children, at the end."""

    def __init__(self, target: type[Target], indices: range, seed: int, scratch: Path) -> None:
        # fork: the parent has imported torch and Detectron2 already, which takes many seconds
        context = multiprocessing.get_context("fork")
        self.folder = scratch / "input"
        self._indices, self._name, self._stack = indices, target.name, scratch / STACK
        self._pipe, theirs = context.Pipe()
        self._inherited = resident(os.getpid())  # gigabytes, after a long session of tests
        self._process = context.Process(target=work, args=(theirs, target, indices, seed, scratch), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def go_on(self) -> None:
        """Let it take the next input: the folder of the last one may be emptied."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)

    def verdicts(self, deadline: float, largest: int, until: float) -> Iterator[tuple[Verdict, float]]:
        """A verdict on each input, and the seconds it took, until the worker is lost or the time is over."""
        if (lost := self._wait(START, largest)) is not None:
            raise RuntimeError(f"the worker of {self._name} does not start: {lost.kind} {lost.message}")
        if (problem := self._receive()) is not None:
            raise RuntimeError(f"the seeds of {self._name} cannot be made: {problem}")
        for index in self._indices:
            began = time.monotonic()
            verdict = self._wait(deadline, largest) or self._receive()
            verdict.index = index
            yield verdict, time.monotonic() - began
            if verdict.kind in ("hang", "crash", "memory") or time.monotonic() > until:
                return

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            return Verdict("crash", place_of_stack(self._stack), f"ended by {_signal_name(self._process.exitcode)}")

    def _where(self) -> str:
        """The line that it is at."""
        os.kill(self._process.pid, signal.SIGUSR1)
        time.sleep(0.3)
        return place_of_stack(self._stack)

    def _wait(self, deadline: float, largest: int) -> Verdict | None:
        """None once there is a message, or the process is gone; a verdict where it must be killed."""
        end = time.monotonic() + deadline
        while not self._pipe.poll(_GLANCE):
            if (used := resident(self._process.pid)) > self._inherited + largest:
                return Verdict("memory", self._where(), f"{used / 2**30:.1f} GB", peak=used)
            if time.monotonic() > end:
                return Verdict("hang", self._where(), f"more than {deadline:g} s")
        return None


def resident(pid: int) -> int:
    """Bytes of memory; 0 where the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _signal_name(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"


def _keep_input(target: type[Target], verdict: Verdict, folder: Path, keep: Path) -> None:
    kept = keep / f"{target.name}-{verdict.index}"
    shutil.rmtree(kept, ignore_errors=True)
    with contextlib.suppress(OSError, RecursionError):  # what cannot be copied can be made again
        shutil.copytree(folder, kept, symlinks=True, ignore_dangling_symlinks=True)
    kept.mkdir(parents=True, exist_ok=True)
    text = f"{verdict.kind} at {verdict.place}\n{verdict.message}\n\n{verdict.details}\n"
    (kept / "VERDICT.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
