"""Evaluations that survive being killed: what each process has counted so far, on disk."""

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
from ovseg.io.files import atomic_path

logger = logging.getLogger(__name__)

FOLDER = ".partial"
SAVE_PERIOD = 30.0  # seconds: what is lost at most when a process is killed
_RUN, _DONE = "run.json", "done"


class PartialEvaluation:
    """The counts of an evaluation that is not finished, in parts: one for each process of each run that worked on it.

    A part is replaced whole, and says which images it has counted, so whenever a process dies the parts on disk hold
    every image once or not at all. They lie in ``<folder>/.partial`` beside ``run.json``, the fingerprint of what is
    evaluated. Every process makes one of these; the main one reads what is there.

    Args:
        folder: of the data set's results.
        fingerprint: plain nested values; only parts with an equal one are taken up.
        resume: take them up. Without, or with another fingerprint, they are removed.

    Attributes:
        done: (n,) int64 ascending, the images that earlier runs have counted; the same in all processes. None before
            :meth:`track`.

    Raises:
        OvsegError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path, fingerprint: Mapping[str, Any], resume: bool) -> None:
        self.folder = Path(folder) / FOLDER
        self._session = comm.all_gather(uuid.uuid4().hex[:12])[0]
        self._resumed = comm.is_main_process() and self._open(fingerprint, resume)
        self._num_images: int = fingerprint["data"]["num_images"]
        self._earlier: dict[str, State] = {}
        self.done: np.ndarray | None = None
        self._tallies: dict[str, Tally] = {}
        self._counted: list[int] = []
        self._whole = True
        self._saved = time.monotonic()

    def part(self, suffix: str) -> Path:
        """A file name of this run and process alone, for what is streamed to disk; the folder is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{self._session}.{comm.get_rank()}{suffix}"

    def track(self, **tallies: Tally) -> None:
        """Take the tallies, by name, whose states make this process's part, and the earlier parts that fit them."""
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
        """While the tallies count these images; whatever breaks in, a part with half of them is never saved."""
        self._whole = False
        yield
        self._counted.extend(images)
        self._whole = True
        if time.monotonic() - self._saved > SAVE_PERIOD:
            self.save()

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Save at the end of the block, and when an error, Ctrl-C or SIGTERM (as an exception) ends it."""
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
            OvsegError: disk full, or another evaluation has begun in the folder.
        """
        self._check_that_it_is_ours()
        content: dict[str, np.ndarray] = {_DONE: np.array(self._counted, dtype=np.int64)}
        for name, tally in self._tallies.items():
            content.update({f"{name}/{key}": value for key, value in tally.state().items()})
        with atomic_path(self.part(".npz")) as temporary, open(temporary, "wb") as file:
            np.savez(file, **content)
        self._saved = time.monotonic()

    def restore(self) -> None:
        """Add what earlier runs have counted to the main process's tallies; call it once, when all is counted."""
        for content in self._earlier.values():
            for name, tally in self._tallies.items():
                tally.add(_state_of(name, content))
        self._earlier = {}

    def remove(self) -> None:
        """Remove all parts: the results are on disk, or nobody wants them."""
        if comm.is_main_process():
            remove_parts(self.folder.parent)

    def _open(self, fingerprint: Mapping[str, Any], resume: bool) -> bool:
        """Whether earlier parts are to be taken up; the others are removed, and ``run.json`` is ours afterwards."""
        run = _read_run(self.folder / _RUN)
        fits = bool(run and resume and not (changed := differences(run["fingerprint"], fingerprint)))
        if not fits and os.path.lexists(self.folder):
            if resume and run:
                logger.warning(
                    "--resume: %s is an unfinished evaluation of something else and is dropped, all images are "
                    "evaluated again (%s)",
                    *(self.folder, "; ".join(changed[:5]) + (f"; {len(changed) - 5} more" if len(changed) > 5 else "")),
                )
            elif resume:
                logger.warning("--resume: %s is damaged, all images are evaluated again", self.folder / _RUN)
            else:
                logger.warning("removing the unfinished evaluation in %s (--resume takes one up)", self.folder)
            remove_parts(self.folder.parent)
        with atomic_path(self.folder / _RUN) as temporary:
            temporary.write_text(json.dumps({"session": self._session, "fingerprint": fingerprint}))
        return fits

    def _read_parts(self) -> dict[str, State]:
        """Contents of the parts by name; one that is damaged or counts an image again is left out and removed."""
        parts: dict[str, State] = {}
        seen: set[int] = set()
        for path in sorted(self.folder.glob("*.npz")):
            if path.name.startswith("."):
                continue  # of a process that was killed while it wrote
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
        """The images of a part; an exception says what is wrong with it."""
        done = content[_DONE]
        images = done.tolist()
        if done.dtype != np.int64 or done.ndim != 1 or len(set(images)) != len(images):
            raise ValueError("its list of images is damaged")
        if images and not 0 <= min(images) <= max(images) < self._num_images:
            raise ValueError(f"it counts images that are not among the {self._num_images} of the data set")
        for name, tally in self._tallies.items():
            tally.check(_state_of(name, content), images)
        return images

    def _check_that_it_is_ours(self) -> None:
        if comm.is_main_process():
            run = _read_run(self.folder / _RUN)
            if run is None or run["session"] != self._session:
                raise OvsegError(
                    f"another evaluation has begun to write to {self.folder.parent}: wait for it, or choose another "
                    "OUTPUT_DIR"
                )


def remove_parts(folder: str | Path) -> None:
    """Remove what an unfinished evaluation has left in the folder of a data set's results.

    Raises:
        OvsegError: it cannot be removed.
    """
    _remove(Path(folder) / FOLDER)


def _remove(path: Path) -> None:
    """Remove a file, or a folder with what is in it; OvsegError if that cannot be."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OvsegError(f"cannot remove {path} ({error.strerror}): choose another OUTPUT_DIR") from error


def _state_of(name: str, content: State) -> State:
    """The part of a tally in the content of a file."""
    start = f"{name}/"
    return {key.removeprefix(start): content[key] for key in content if key.startswith(start)}


def _read_run(path: Path) -> dict[str, Any] | None:
    try:
        run = json.loads(path.read_text())
        return run if isinstance(run["fingerprint"], dict) and isinstance(run["session"], str) else None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
