"""Training checkpoints that survive being killed at any moment."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from ovseg.checkpoint import save_torch
from ovseg.checkpoint.state_dicts import read_checkpoint
from ovseg.errors import OvsegError
from ovseg.io.files import atomic_path

logger = logging.getLogger(__name__)

LAST = "last_checkpoint"
FINAL = "model_final"
_NUMBERED = re.compile(r"model_\d{7}\.pth")


class CheckpointFolder:
    """The checkpoints of one run: ``model_<iteration>.pth``, ``model_final.pth``; ``last_checkpoint`` names the newest.

    Each file is written beside its name, brought to the disk and renamed, the pointer last: whenever the process dies,
    every file with a proper name is whole.

    Args:
        folder: the run's ``OUTPUT_DIR``.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def __bool__(self) -> bool:
        return next(self._newest_first(), None) is not None

    def save(self, name: str, content: Mapping[str, Any]) -> Path:
        """Write ``<name>.pth`` (only tensors, numbers, strings and containers of these) and point to it.

        Raises:
            OvsegError: disk full or folder not writable; earlier checkpoints stay as they were.
        """
        path = self.folder / f"{name}.pth"
        save_torch(content, path)
        with atomic_path(self.folder / LAST) as temporary, temporary.open("w") as file:
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
                raise OvsegError(f"checkpoint {path} is not seen from every machine: share OUTPUT_DIR between them")
            content = read_training_checkpoint(path)
        return path, content

    def _load_newest_whole(self) -> tuple[Path, dict[str, Any]] | None:
        failures = []
        for path in self._newest_first():
            try:
                content = read_training_checkpoint(path)
            except OvsegError as error:
                failures.append(str(error))
                logger.warning("%s; TRYING THE ONE BEFORE IT", error)
                continue
            if failures:
                logger.warning("GOING BACK TO %s: what was trained after it is lost", path)
            return path, content
        if failures:
            raise OvsegError(
                f"no checkpoint in {self.folder} can be read ({failures[0]}): train from the start without --resume"
            )
        return None

    def _newest_first(self) -> Iterator[Path]:
        """What ``last_checkpoint`` names, then the older ones; all of them if it names nothing."""
        existing = [path for path in self.folder.glob("model_*.pth") if _NUMBERED.fullmatch(path.name)]
        existing.sort(reverse=True)
        final = self.folder / f"{FINAL}.pth"
        if final.exists():
            existing.insert(0, final)
        try:
            last = self.folder / (self.folder / LAST).read_text().strip()
        except (OSError, UnicodeDecodeError):
            last = None
        if last in existing:
            existing = existing[existing.index(last) :]
        yield from existing


def read_training_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training checkpoint to the CPU, without running code from it.

    Raises:
        OvsegError: truncated, damaged, or no training checkpoint.
    """
    content = read_checkpoint(path)
    if not {"model", "optimizer", "iteration"} <= content.keys():
        raise OvsegError(f"{path} is no training checkpoint: it has no optimiser state or iteration")
    return content


def numbered(iteration: int) -> str:
    """Name of the checkpoint after 0-based ``iteration``."""
    return f"model_{iteration:07d}"
