"""The output folder of a fine-tuning run: owned by one run, whole files only, and able to go on after a kill."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ovseg.checkpoint import save_torch
from ovseg.checkpoint.state_dicts import read_checkpoint
from ovseg.errors import OvsegError
from ovseg.io.files import atomic_path, explained_writing, locked_folder

LAST, BEST, METRICS, RECIPE = "last.pt", "best.safetensors", "metrics.jsonl", "recipe.yaml"


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
        with explained_writing(self.folder), locked_folder(self.folder):
            if not resume and (self.folder / METRICS).exists():
                raise OvsegError(
                    f"{self.folder} holds a run already: --resume goes on with it, or choose another --output"
                )
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
        save_torch(content, self.folder / name)

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
