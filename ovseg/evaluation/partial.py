"""Partial results on disk, from which an interrupted evaluation resumes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils import comm

from ovseg.errors import OvsegError
from ovseg.evaluation.identity import differences
from ovseg.evaluation.tally import State, Tally, read_arrays
from ovseg.io.files import atomic_path, write_text

logger = logging.getLogger(__name__)

FOLDER = ".partial"
SAVE_PERIOD = 30.0  # seconds: what is lost at most when a process is killed
_RUN, _DONE = "run.json", "done"


class PartialEvaluation:
    """The counts of an unfinished evaluation, in parts: one for each process of each run that contributed to it.

    A part is replaced atomically and lists the images that it has counted, so that the parts on disk hold every image
    at most once, whenever a process dies. They are stored in ``<folder>/.partial`` together with ``run.json``, which
    holds the fingerprint of the evaluation. Every process creates one object; only the main process reads the parts.

    Args:
        folder: folder of the data set's results.
        fingerprint: plain nested values; only parts with an equal fingerprint are used.
        resume: use the existing parts. Otherwise, or if the fingerprint differs, they are removed.

    Attributes:
        done: (n,) int64, ascending, the images that earlier runs have counted; the same in all processes. None before
            :meth:`track`.

    Raises:
        OvsegError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, fingerprint: Mapping[str, Any], resume: bool) -> None:
        self.folder = Path(folder) / FOLDER
        self._session = comm.all_gather(uuid.uuid4().hex[:12])[0]
        self._resumed = comm.is_main_process() and self._open(fingerprint, resume)
        comm.synchronize()  # other processes write into the folder only after the main one has cleared it
        self._num_images: int = fingerprint["data"]["num_images"]
        self._earlier: dict[str, State] = {}
        self.done: np.ndarray | None = None
        self._tallies: dict[str, Tally] = {}
        self._counted: list[int] = []
        self._whole = True
        self._saved = time.monotonic()

    def part(self, suffix: str) -> Path:
        """Return a file name that is unique to this run and process, and create its folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{self._session}.{comm.get_rank()}{suffix}"

    def track(self, **tallies: Tally) -> None:
        """Set the tallies, by name, whose states form this process's part, and read the earlier parts."""
        self._tallies = tallies
        if self._resumed:
            self._earlier = self._read_parts()
            images = sum(len(part[_DONE]) for part in self._earlier.values())
            logger.info("--resume: %d images were evaluated before, in %s", images, self.folder)
        done = [state[_DONE] for state in self._earlier.values()]
        found = np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *done]))
        self.done = comm.all_gather(found if comm.is_main_process() else None)[0]

    @contextlib.contextmanager
    def counting(self, images: Iterable[int]) -> Iterator[None]:
        """Mark the block in which the tallies count ``images``; if it is interrupted, no incomplete part is saved."""
        self._whole = False
        yield
        self._counted.extend(images)
        self._whole = True
        if time.monotonic() - self._saved > SAVE_PERIOD:
            self.save()

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Save at the end of the block, also if it is ended by an error, Ctrl-C or SIGTERM (raised as an exception)."""
        try:
            yield
        except BaseException:
            if self._whole and self._counted:
                self.save()
            raise
        self.save()

    def save(self) -> None:
        """Replace this process's part.

        Raises:
            OvsegError: the disk is full, or another evaluation has started in the folder.
        """
        if comm.is_main_process():
            run = _read_run(self.folder / _RUN)
            if run is None or run["session"] != self._session:
                raise OvsegError(
                    f"another evaluation is writing to {self.folder.parent}: wait for it, or choose another OUTPUT_DIR"
                )
        content: dict[str, np.ndarray] = {_DONE: np.array(self._counted, dtype=np.int64)}
        for name, tally in self._tallies.items():
            content |= {f"{name}/{key}": value for key, value in tally.state().items()}
        with atomic_path(self.part(".npz")) as temporary, open(temporary, "wb") as file:
            np.savez(file, **content)
        self._saved = time.monotonic()

    def restore(self) -> None:
        """Add the counts of earlier runs to the main process's tallies; call it once, after the last image."""
        for content in self._earlier.values():
            for name, tally in self._tallies.items():
                tally.add(_state_of(name, content))
        self._earlier = {}

    def remove(self) -> None:
        """Remove all parts."""
        if comm.is_main_process():
            remove_parts(self.folder.parent)

    def _open(self, fingerprint: Mapping[str, Any], resume: bool) -> bool:
        """Write ``run.json`` and return whether earlier parts can be used; if not, they are removed."""
        run = _read_run(self.folder / _RUN)
        fits = bool(run and resume and not (changed := differences(run["fingerprint"], fingerprint)))
        if not fits and os.path.lexists(self.folder):
            if resume and run:
                logger.warning(
                    "--resume: %s is an unfinished evaluation with other settings and is dropped, all images are "
                    "evaluated again (%s)",
                    *(self.folder, "; ".join(changed[:5]) + (f"; {len(changed) - 5} more" if len(changed) > 5 else "")),
                )
            elif resume:
                logger.warning("--resume: %s is damaged, all images are evaluated again", self.folder / _RUN)
            else:
                logger.warning("removing the unfinished evaluation in %s (--resume continues one)", self.folder)
            remove_parts(self.folder.parent)
        write_text(self.folder / _RUN, json.dumps({"session": self._session, "fingerprint": fingerprint}))
        return fits

    def _read_parts(self) -> dict[str, State]:
        """Read the parts by name; a part that is damaged or counts an image again is left out and removed."""
        parts: dict[str, State] = {}
        seen: set[int] = set()
        for path in sorted(self.folder.glob("*.npz")):
            if path.name.startswith("."):
                continue  # temporary file of a killed process
            problem = ""
            try:
                content = read_arrays(path)
                images = self._check_part(content)
                problem = "holds images of another part" if seen.intersection(images) else ""
            except (ValueError, KeyError, TypeError, IndexError, OverflowError, OSError, RecursionError) as error:
                problem = f"cannot be read ({error})"
            if problem:
                logger.warning("%s %s: its images are evaluated again", path, problem)
                _remove(path)
                continue
            seen.update(images)
            parts[path.stem] = content
        return parts

    def _check_part(self, content: State) -> list[int]:
        """Return the images of a part; an exception states what is wrong with it."""
        done = content[_DONE]
        images = done.tolist()
        if done.dtype != np.int64 or done.ndim != 1 or len(set(images)) != len(images):
            raise ValueError("its list of images is damaged")
        if images and not 0 <= min(images) <= max(images) < self._num_images:
            raise ValueError(f"it counts images that are not among the {self._num_images} of the data set")
        for name, tally in self._tallies.items():
            tally.check(_state_of(name, content), images)
        return images


def remove_parts(folder: str | Path) -> None:
    """Remove the parts of an unfinished evaluation from the folder of a data set's results.

    Raises:
        OvsegError: a file cannot be removed.
    """
    _remove(Path(folder) / FOLDER)


def _remove(path: Path) -> None:
    """Remove a file, or a folder with its content; raise OvsegError on failure."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OvsegError(f"cannot remove {path} ({error.strerror}): choose another OUTPUT_DIR") from error


def _state_of(name: str, content: State) -> State:
    """Return the state of one tally from the content of a part."""
    start = f"{name}/"
    return {key.removeprefix(start): content[key] for key in content if key.startswith(start)}


def _read_run(path: Path) -> dict[str, Any] | None:
    try:
        run = json.loads(path.read_text())
        return run if isinstance(run["fingerprint"], dict) and isinstance(run["session"], str) else None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
