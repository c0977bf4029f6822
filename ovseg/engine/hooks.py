"""Hooks of the training loop that Detectron2 lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter, get_event_storage

from ovseg.engine.checkpoints import FINAL, numbered
from ovseg.errors import OvsegError


class CheckpointHook(HookBase):
    """Saves every ``period`` iterations, and at the end as ``model_final``.

    Args:
        period: iterations; 0 saves only the end.
        save: called with the checkpoint's name.
    """

    def __init__(self, period: int, save: Callable[[str], None]):
        self.period = period
        self.save = save

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done >= self.trainer.max_iter:
            self.save(FINAL)
        elif self.period > 0 and done % self.period == 0:
            self.save(numbered(self.trainer.iter))


class WandbWriter(EventWriter):
    """Sends all scalars to Weights & Biases.

    Args:
        cfg: ``WANDB.PROJECT`` and ``WANDB.NAME`` name the run; all of it is stored with it.

    Raises:
        OvsegError: ``wandb`` is not installed.
    """

    def __init__(self, cfg: CfgNode):
        try:
            import wandb
        except ImportError as error:
            raise OvsegError(
                "WANDB.ENABLED is True but wandb is not installed: pip install wandb, or set WANDB.ENABLED False"
            ) from error
        self._run: Any = wandb.init(
            project=cfg.WANDB.PROJECT, name=cfg.WANDB.NAME, dir=cfg.OUTPUT_DIR, config=yaml.safe_load(cfg.dump())
        )
        self._last_write = -1

    def write(self) -> None:
        """Send what is newer than the last time."""
        latest = get_event_storage().latest()
        fresh: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in latest.items():
            if iteration > self._last_write:
                fresh.setdefault(iteration, {})[name] = value
        for iteration in sorted(fresh):
            self._run.log(fresh[iteration], step=iteration)
            self._last_write = iteration

    def close(self) -> None:
        self._run.finish()
