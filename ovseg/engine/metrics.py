"""The scalars of a training run, in a file of JSON lines, in TensorBoard and in Weights & Biases."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from ovseg.errors import OvsegError
from ovseg.io.files import atomic_path


class MetricsWriter(EventWriter):
    """Writes scalars: those of Detectron2's event storage by :meth:`write`, or any by :meth:`add`.

    Args:
        path: of the JSON lines, which are appended.
        tensorboard: folder of TensorBoard's files.
        step_key: name of the iteration in a line.
        prefix: of the names in TensorBoard that have no ``/``.
        purge_step: TensorBoard ignores what an earlier run has written after this iteration.
        wandb_run: gets all scalars, too.
        window: over which scalars with a smoothing hint are smoothed.
    """

    def __init__(
        self,
        path: Path,
        tensorboard: Path,
        *,
        step_key: str = "iteration",
        prefix: str = "",
        purge_step: int | None = None,
        wandb_run: Any = None,
        window: int = 20,
    ):
        from torch.utils.tensorboard import SummaryWriter

        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(str(tensorboard), purge_step=purge_step)
        self._wandb_run = wandb_run
        self._step_key, self._prefix, self._window = step_key, prefix, window
        self._last_write = -1

    def write(self) -> None:
        """Write what the storage has got since the last call."""
        fresh: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self._window).items():
            if iteration > self._last_write:
                fresh.setdefault(iteration, {})[name] = value
        for iteration, scalars in sorted(fresh.items()):
            self._last_write = iteration
            self._write_line(dict(sorted({**scalars, self._step_key: iteration}.items())))
            self._send(iteration, scalars)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of an iteration, in their order; "epoch" only to the file."""
        self._write_line({self._step_key: step, **values})
        self._send(step, {name: value for name, value in values.items() if name != "epoch"})

    def close(self) -> None:
        """Close the files and end the run of Weights & Biases."""
        self._file.close()
        self._tensorboard.close()
        if self._wandb_run is not None:
            self._wandb_run.finish()

    def _write_line(self, values: Mapping[str, float]) -> None:
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _send(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name if "/" in name else self._prefix + name, value, step)
        if self._wandb_run is not None:
            self._wandb_run.log(scalars, step=step)


def cut_lines(path: Path, step_key: str, last: int) -> None:
    """Remove the lines of iterations after ``last``, and damaged ones, of which a killed run may leave one.

    A missing file is created.
    """
    kept = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            if json.loads(line)[step_key] <= last:
                kept.append(line + "\n")
    with atomic_path(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def start_wandb(cfg: CfgNode) -> Any:
    """Begin a run of Weights & Biases, which stores the configuration; ``WANDB.PROJECT`` and ``WANDB.NAME`` name it.

    Raises:
        OvsegError: ``wandb`` is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise OvsegError(
            "WANDB.ENABLED is True but wandb is not installed: pip install wandb, or set WANDB.ENABLED False"
        ) from error
    return wandb.init(
        project=cfg.WANDB.PROJECT, name=cfg.WANDB.NAME, dir=cfg.OUTPUT_DIR, config=yaml.safe_load(cfg.dump())
    )
