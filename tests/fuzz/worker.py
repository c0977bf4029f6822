"""The process that inputs are tried in: makes each, runs its steps, judges how they end."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import huggingface_hub
import torch

from ovseg.errors import OvsegError
from tests.scripts import REPO

STACK = "stack.txt"
LONGEST_MESSAGE = 2000  # characters
_RAW = re.compile(r"please report|Traceback|\b[A-Z]\w+(?:Error|Exception)\b(?!\w)")
_STARTS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen"}
_CONNECTS = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname"}
_WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass
class Verdict:
    """How one input ended; see :class:`tests.fuzz.harness.Defect` for the kinds that are defects."""

    kind: str
    place: str = ""
    message: str = ""
    details: str = ""
    peak: int = 0  # bytes
    index: int = -1


class Guard:
    """Notes programs that are started, connections, and files written outside the allowed folders."""

    def __init__(self, *allowed: Path) -> None:
        self.noted: list[tuple[str, str]] = []
        self._allowed = tuple(f"{folder}{os.sep}" for folder in allowed)
        sys.addaudithook(self._look)

    def _look(self, event: str, arguments: tuple) -> None:
        if event in _STARTS:
            self.noted.append(("executed", f"{event} {arguments[:2]!r:.200}"))
        elif event in _CONNECTS:
            self.noted.append(("network", f"{event} {arguments[1:]!r:.200}"))
        elif event in _WRITES or (event == "open" and self._is_writing(*arguments)):
            paths = arguments[:2] if event in ("os.rename", "os.symlink", "os.link") else arguments[:1]
            if event == "os.symlink":
                paths = paths[1:]
            for path in paths:
                if isinstance(path, (str, bytes)) and not self._is_allowed(os.path.realpath(os.fsdecode(path))):
                    self.noted.append(("outside", f"{event} {os.fsdecode(path)!r:.200}"))

    @staticmethod
    def _is_writing(path: object, mode: str | None, flags: int) -> bool:
        return bool(set(mode or "") & set("wax+")) or (isinstance(flags, int) and bool(flags & _WRITING))

    def _is_allowed(self, path: str) -> bool:
        return f"{path}{os.sep}".startswith(self._allowed) or path.startswith(("/dev/", "/proc/"))


def work(pipe: Connection, target: type, indices: range, seed: int, scratch: Path) -> None:
    """Try the inputs ``indices`` of a target; sends a :class:`Verdict` of each and waits to be answered.

    Where it is when it dies, or is sent SIGUSR1, comes to be in the file ``STACK``.
    """
    os.setsid()  # what an input starts dies with us
    _furnish(scratch)
    try:
        subject = target(_empty(scratch / "seeds"))
    except BaseException:
        pipe.send(traceback.format_exc())
        raise
    folder = scratch / "input"
    guard = Guard(folder, scratch / "seeds", scratch / "tmp", scratch / "cache")
    pipe.send(None)
    stack = open(scratch / STACK, "w")  # noqa: SIM115 - faulthandler writes to it at the end
    faulthandler.enable(stack)
    faulthandler.register(signal.SIGUSR1, stack)
    for index in indices:
        os.chdir(_empty(folder))
        verdict = _try(subject, random.Random(f"{target.name} {seed} {index}"), folder, guard)
        os.chdir(scratch)
        pipe.send(verdict)
        pipe.recv()


def _try(subject: Any, rng: random.Random, folder: Path, guard: Guard) -> Verdict:
    try:
        given = subject.make(rng, folder)
        steps = list(subject.steps(given))
    except Exception as error:
        return Verdict("harness", _place(error), _name(error), traceback.format_exc())
    guard.noted.clear()
    with _peak() as peak:
        verdict = judge(steps)
    verdict.peak = peak()
    if guard.noted:
        kind, what = guard.noted[0]
        return Verdict(kind, what.split(" ")[0], what, f"{given!r:.2000}", verdict.peak)
    verdict.details += f"\n{given!r:.2000}"
    return verdict


def judge(steps: Iterable[Callable[[], Any]]) -> Verdict:
    """Run each step; the verdict is of the first that fails, else "ok" if any step takes the input, else "refused"."""
    verdict = Verdict("refused")
    for step in steps:
        try:
            step()
            verdict.kind = "ok"
        except OvsegError as error:
            if fault := fault_of(str(error)):
                return Verdict("message", f"{fault}: {_place(error)}", f"{str(error)!r:.600}", traceback.format_exc())
        except SystemExit as error:
            if error.code != 2:
                return Verdict("traceback", f"exit {error.code!r}: {_place(error)}", "", traceback.format_exc())
        except Exception as error:
            place = f"{type(error).__name__}: {_place(error)}"
            return Verdict("traceback", place, f"{_name(error):.300}", traceback.format_exc())
    return verdict


def fault_of(message: str) -> str:
    """What makes a message unfit for people; empty for a good one."""
    if "\n" in message or "\r" in message:
        return "several lines"
    if len(message) >= LONGEST_MESSAGE:
        return "too long"
    return f"says {found[0]}" if (found := _RAW.search(message)) else ""


def _name(error: BaseException) -> str:
    return f"{type(error).__name__}: {error!s:.300}"


def _place(error: BaseException) -> str:
    """The project's innermost line that the error went through."""
    return _innermost([(f.filename, f.lineno, f.name) for f in traceback.extract_tb(error.__traceback__)])


def place_of_stack(file: Path) -> str:
    """The project's innermost line in what faulthandler wrote last; empty where it did not."""
    stack = file.read_text(errors="replace").rpartition("most recent call first")[2] if file.is_file() else ""
    return _innermost(re.findall(r'File "(.*?)", line (\d+) in (.*)', stack)[::-1])


def _innermost(frames: list[tuple[str, Any, str]]) -> str:
    ours = [frame for frame in frames if frame[0].startswith(f"{REPO}{os.sep}") and ".venv" not in frame[0]]
    product = [frame for frame in ours if f"{os.sep}fuzz{os.sep}" not in frame[0]] or ours or frames
    return f"{os.path.relpath(product[-1][0], REPO)}:{product[-1][1]} {product[-1][2]}" if product else ""


@contextlib.contextmanager
def _peak() -> Iterator[Callable[[], int]]:
    """Return a function that returns the largest resident size since, in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        yield lambda: 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    except OSError:  # not Linux: the largest of all inputs so far
        yield lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _furnish(scratch: Path) -> None:
    """One thread, no output, every folder that is written to by default below ``scratch``."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    warnings.simplefilter("ignore")
    tempfile.tempdir = str(scratch / "tmp")
    for name in ("tmp", "cache"):
        (scratch / name).mkdir(exist_ok=True)
    huggingface_hub.constants.HF_HUB_OFFLINE = True  # the variable was read on import
    home = scratch / "cache"
    os.environ.update(TMPDIR=tempfile.tempdir, OVSEG_CACHE=str(home), HOME=str(home))
    os.environ.update(MPLCONFIGDIR=str(home), XDG_CACHE_HOME=str(home))
    programs = scratch / "bin"  # Pillow looks for Ghostscript: let it find one
    programs.mkdir(exist_ok=True)
    (programs / "gs").write_text("#!/bin/sh\n")
    (programs / "gs").chmod(0o755)
    os.environ["PATH"] = f"{programs}:{os.environ['PATH']}"
    if not os.environ.get("OVSEG_FUZZ_OUTPUT"):
        silence = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(silence, stream)
