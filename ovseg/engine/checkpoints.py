"""The folder of a training run: owned by one run, and with checkpoints that survive being killed at any moment."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from ovseg.checkpoint import save_torch
from ovseg.checkpoint.state_dicts import read_checkpoint
from ovseg.errors import OvsegError, reason_of
from ovseg.io.files import atomic_path, explained_writing, locked_folder

logger = logging.getLogger(__name__)

POINTER = "last_checkpoint"
FINAL = "model_final.pth"
SEGMENTER = {"model": Mapping, "optimizer": Mapping, "iteration": int}  # what its checkpoints hold
_NUMBERED = re.compile(r"model_\d{7}\.pth")
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RuntimeError, IndexError, RecursionError)


class CheckpointFolder:
    """The checkpoints of one run.

    Each file is written next to its name, brought to the disk and renamed: whenever the process dies, every file with a
    proper name is whole.

    Args:
        folder: of the run.
        entries: what a checkpoint holds to resume from: the types of entries by their keys.
        newest: name of the file that is always the newest checkpoint, written after all others. None for Detectron2's
            layout: ``model_<iteration>.pth``, ``model_final.pth``, and ``last_checkpoint``, which names the newest.
        option: the key or the flag that names the folder, for messages.
    """

    def __init__(
        self,
        folder: str | Path,
        entries: Mapping[str, type | tuple[type, ...]] = SEGMENTER,
        newest: str | None = None,
        option: str = "OUTPUT_DIR",
    ):
        self.folder = Path(folder)
        self.entries, self.newest, self.option = entries, newest, option

    def __bool__(self) -> bool:
        return next(self._newest_first(), None) is not None

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Keep other runs out; the main process holds the folder, and the system frees it when that process dies.

        Raises:
            OvsegError: another run uses the folder, it cannot be written, or the disk gets full within the block.
        """
        with contextlib.ExitStack() as stack:
            if comm.is_main_process():
                stack.enter_context(explained_writing(self.folder))
                stack.enter_context(locked_folder(self.folder, f"choose another {self.option}"))
            yield

    def save(self, name: str, content: Mapping[str, Any]) -> Path:
        """Write a checkpoint (only tensors, numbers, strings and containers of these).

        Raises:
            OvsegError: disk full or folder not writable; earlier checkpoints stay as they were.
        """
        path = self.folder / name
        save_torch(content, path)
        if self.newest is None:
            with atomic_path(self.folder / POINTER) as temporary, temporary.open("w") as file:
                file.write(path.name)
                file.flush()
                os.fsync(file.fileno())
            logger.info("saved checkpoint %s", path)
        return path

    def load_newest(self) -> tuple[Path, dict[str, Any]] | None:
        """Read the newest checkpoint that is whole; every process gets the same one.

        A damaged one is skipped with a warning. None if there is no checkpoint at all.

        Raises:
            OvsegError: there are checkpoints but none can be read, or another machine does not see the file.
        """
        path, content, problem = None, None, None
        if comm.is_main_process():
            try:
                path, content = self._load_newest_whole() or (None, None)
            except OvsegError as error:
                problem = error
        if comm.get_world_size() > 1:
            path, problem = comm.all_gather((path, problem))[0]
        if problem is not None:
            raise problem
        if path is None:
            return None
        if content is None:
            if not path.exists():
                raise OvsegError(f"checkpoint {path} is not seen from every machine: share {self.option} between them")
            content = read_training_checkpoint(path, self.entries)
        return path, content

    @contextlib.contextmanager
    def reading(self, path: Path) -> Iterator[None]:
        """Explain errors of the block, which uses the contents of a checkpoint.

        Raises:
            OvsegError: the contents are damaged.
        """
        try:
            yield
        except _DAMAGE as error:
            raise OvsegError(
                f"{path} is not a checkpoint of this training, or is damaged ({reason_of(error)}): choose another "
                f"{self.option}"
            ) from error

    def _load_newest_whole(self) -> tuple[Path, dict[str, Any]] | None:
        failures = []
        for path in self._newest_first():
            try:
                content = read_training_checkpoint(path, self.entries)
            except OvsegError as error:
                failures.append(str(error))
                continue
            for failure in failures:
                logger.warning("%s", failure)
            if failures:
                logger.warning("GOING BACK TO %s: what was trained after it is lost", path)
            return path, content
        if failures:
            raise OvsegError(
                f"no checkpoint in {self.folder} can be read ({failures[0]}): train from the start without --resume, "
                f"in another {self.option}"
            )
        return None

    def _newest_first(self) -> Iterator[Path]:
        """Yield the newest file; in Detectron2's layout what the pointer names, then the older ones, or all files."""
        if self.newest is not None:
            if (path := self.folder / self.newest).exists():
                yield path
            return
        existing = [path for path in self.folder.glob("model_*.pth") if _NUMBERED.fullmatch(path.name)]
        existing.sort(reverse=True)
        if (final := self.folder / FINAL).exists():
            existing.insert(0, final)
        try:
            last = self.folder / (self.folder / POINTER).read_text().strip()
        except (OSError, UnicodeDecodeError):
            last = None
        yield from existing[existing.index(last) :] if last in existing else existing


def read_training_checkpoint(path: Path, entries: Mapping[str, type | tuple[type, ...]] = SEGMENTER) -> dict[str, Any]:
    """Read a training checkpoint to the CPU, without running code from it.

    Raises:
        OvsegError: truncated, damaged, or without what training resumes from.
    """
    content = read_checkpoint(path)
    if wrong := [name for name, kind in entries.items() if not isinstance(content.get(name), kind)]:
        raise OvsegError(f"{path} is not a training checkpoint: its {wrong[0]} is missing or of another type")
    return content


def numbered(iteration: int) -> str:
    """Return the name of the checkpoint after 0-based ``iteration``."""
    return f"model_{iteration:07d}.pth"
