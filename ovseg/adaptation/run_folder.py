"""The output folder of a fine-tuning run: owned by one run, whole files only, and able to go on after a kill."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ovseg.errors import OvsegError
from ovseg.files import atomic_path, locked_folder
from ovseg.state_dicts import read_checkpoint

logger = logging.getLogger(__name__)

LAST, BEST, METRICS, RECIPE = "last.pt", "best.safetensors", "metrics.jsonl", "recipe.yaml"
_TEMPORARY = re.compile(r"\.(last|best|epoch_\d+|metrics|recipe)\.\d+\.tmp(\.\w+)?")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_SPACE_TEXT = re.compile(r"No space left on device|os error 28|Disk quota exceeded|os error 122")
_LITTLE = 1 << 20  # bytes left on a disk that counts as full


def damaged_run(path: Path, what: object) -> OvsegError:
    """Return the error for a checkpoint that cannot be gone on from."""
    reason = " ".join(str(what).split())[:200]
    return OvsegError(f"{path} is not a checkpoint of fine-tuning, or is damaged ({reason}): choose another --output")


class RunFolder:
    """Files of one run; only the main process writes.

    Args:
        folder: made if need be.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @contextlib.contextmanager
    def owned(self, resume: bool) -> Iterator[None]:
        """Keep other runs out while the block lasts; the system frees the folder when this process dies.

        Raises:
            OvsegError: another process is at work there, the folder holds a run and ``resume`` is off, or it cannot
                be written; or the disk gets full within the block.
        """
        with self._explained(), locked_folder(self.folder):
            if not resume and (self.folder / METRICS).exists():
                raise OvsegError(
                    f"{self.folder} holds a run already: --resume goes on with it, or choose another --output"
                )
            for path in self.folder.iterdir():
                if _TEMPORARY.fullmatch(path.name):
                    logger.info("removing %s, left by an interrupted run", path)
                    path.unlink(missing_ok=True)
            yield

    def read_last(self) -> dict[str, Any] | None:
        """The newest checkpoint; None if there is none yet.

        Raises:
            OvsegError: it is damaged, or not one of a run.
        """
        path = self.folder / LAST
        if not path.exists():
            return None
        last = read_checkpoint(path)
        kinds = {
            "settings": str,
            "step": int,
            "best": (int, float),
            "best_epoch": int,
            "optimizer": dict,
            "scaler": dict,
        }
        if wrong := [name for name, kind in kinds.items() if not isinstance(last.get(name), kind)]:
            raise damaged_run(path, f"its {wrong[0]} is not right")
        return last

    def save(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a checkpoint (tensors, numbers, strings and containers of these); it appears when it is whole."""
        with atomic_path(self.folder / name) as temporary, temporary.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())

    def start_metrics(self, step: int) -> None:
        """Begin the file of metrics, or cut what comes after ``step``, which is going to be done again."""
        path = self.folder / METRICS
        kept = []
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for line in text.splitlines():
            # the last line of a killed run, or a damaged one
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                if step and json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
        with atomic_path(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")

    def add_metrics(self, values: Mapping[str, Any]) -> None:
        """Append one line of JSON; "step" is among the values."""
        with (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(values)) + "\n")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Say so when the disk is full or the folder cannot be written: torch and safetensors raise their own kinds."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            number = getattr(error, "errno", None)
            if isinstance(error, OSError) and number in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
                raise OvsegError(f"cannot write {self.folder} ({error.strerror}): choose another --output") from error
            if number in _NO_SPACE or _NO_SPACE_TEXT.search(str(error)) or self._full(error):
                raise OvsegError(
                    f"disk full while writing into {self.folder}: free some space and run again with --resume"
                ) from error
            raise

    def _full(self, error: Exception) -> bool:
        """Whether an error of PyTorch's file writer comes from a full disk, which its text does not tell."""
        return "PytorchStreamWriter" in str(error) and shutil.disk_usage(self.folder).free < _LITTLE
