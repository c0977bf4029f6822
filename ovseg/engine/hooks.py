"""Hooks of the training loop that Detectron2 lacks."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from rich.console import Console

from ovseg.io.progress import progress_bar

logger = logging.getLogger(__name__)


class Every(HookBase):
    """Calls a function every ``period`` iterations, and after the last one.

    Args:
        period: iterations; 0 for the last one alone.
        action: called with the number of iterations done.
    """

    def __init__(self, period: int, action: Callable[[int], None]):
        self.period, self.action = period, action

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done >= self.trainer.max_iter or (self.period > 0 and done % self.period == 0):
            self.action(done)


class SkippedRows(HookBase):
    """Counts the rows that the loaders of all processes could not use: a scalar, and a line of the log at the end.

    Args:
        loader: of this process, whose attribute ``skipped`` is the count so far.
        period: iterations between scalars; the last iteration has one, too.
        before: rows that were skipped before this run was resumed.
    """

    NAME = "skipped_rows"

    def __init__(self, loader: Any, period: int, before: int = 0):
        self.loader, self.period, self.before = loader, period, before

    def total(self) -> int:
        """Return the count of all processes, each of which calls this."""
        return self.before + sum(comm.all_gather(self.loader.skipped))

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done < self.trainer.max_iter and done % self.period:
            return
        total = self.total()
        self.trainer.storage.put_scalar(self.NAME, total, smoothing_hint=False)
        if done >= self.trainer.max_iter and total:
            logger.warning("in all, %d draws were of rows that cannot be used; others were drawn in their place", total)


class Meter(HookBase):
    """Reports the mean loss, the speed, the time spent waiting for data and the memory.

    Validation and saving between iterations do not count for the speed, nor does the wait for the first batch, while
    data-loader workers start. On a GPU, waiting is an upper bound of its idle time.

    Args:
        periods: iterations between reports, each of several (0: none); the last iteration is reported, too.
        samples: of an iteration, over all processes.
        unit: of the samples.
        write: called with the number of iterations done and the values, by name.
        describe: called with the number of iterations done, returns values to report first.

    Attributes:
        state: loss and speed of the last report, for a progress bar.
    """

    def __init__(
        self,
        periods: Sequence[int],
        samples: int,
        unit: str,
        write: Callable[[int, Mapping[str, float]], None],
        describe: Callable[[int], Mapping[str, float]] = lambda _: {},
    ):
        self.periods, self.samples, self.unit = periods, samples, unit
        self.write, self.describe = write, describe
        self.state = ""
        self._totals = [0, 0.0, 0.0]  # samples, seconds, seconds of waiting
        self._restart()

    def _restart(self) -> None:
        self._losses: list[float] = []
        self._seconds = self._waited = 0.0

    def before_step(self) -> None:
        self._began = time.perf_counter()

    def after_step(self) -> None:
        seconds, latest = time.perf_counter() - self._began, self.trainer.storage.latest()
        waited = latest["data_time"][0]
        if self.trainer.iter == self.trainer.start_iter:
            seconds, waited = seconds - waited, 0.0
        self._losses.append(latest["total_loss"][0])
        self._seconds, self._waited = self._seconds + seconds, self._waited + waited
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or any(period and done % period == 0 for period in self.periods):
            self._report(done)

    def _report(self, done: int) -> None:
        loss = torch.tensor(self._losses).mean().item()  # in float32, as the losses are
        samples = self.samples * len(self._losses)
        speed, waiting, memory = samples / self._seconds, self._waited / self._seconds, self._memory()
        self._totals = [a + b for a, b in zip(self._totals, (samples, self._seconds, self._waited), strict=True)]
        self._restart()
        self.state = f"loss {loss:.4f}, {speed:.1f} {self.unit}/s"
        values = {"loss": loss, f"{self.unit}_per_second": speed, "waiting": waiting, "memory_gib": memory}
        self.write(done, {**self.describe(done), **values})
        rate = self.trainer.storage.latest().get("lr", (math.nan,))[0]
        text = "step %d: loss %.4f, lr %.2e, %.1f %s/s, waiting for data %.1f %%, memory %.2f GiB"
        logger.info(text, done, loss, rate, speed, self.unit, 100 * waiting, memory)

    def after_train(self) -> None:
        samples, seconds, waited = self._totals
        if samples:
            text = "on the whole %.1f %s/s, waiting for data %.1f %%, peak memory %.2f GiB"
            logger.info(text, samples / seconds, self.unit, 100 * waited / seconds, self._memory())

    def _memory(self) -> float:
        """Return the peak memory so far, GiB: on the GPU that of tensors, else that of this process."""
        if self.trainer.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.trainer.device) / 2**30
        if sys.platform == "win32":
            return 0.0
        import resource

        # kibibytes, on macOS bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


class ProgressBar(HookBase):
    """Shows how many iterations are done, and a state.

    Args:
        title: of the bar.
        state: returns what stands next to the numbers.
        console: where to draw; by default, standard error.
        show: draw it at all.
    """

    def __init__(self, title: str, state: Callable[[], str], console: Console | None = None, show: bool = True):
        self.title, self.state = title, state
        self._bar = progress_bar("{task.fields[state]}", console=console, show=show)

    def before_train(self) -> None:
        self._bar.start()
        total, done = self.trainer.max_iter, self.trainer.start_iter
        self._task = self._bar.add_task(self.title, total=total, completed=done, state="")

    def after_step(self) -> None:
        self._bar.update(self._task, completed=self.trainer.iter + 1, state=self.state())

    def after_train(self) -> None:
        self._bar.stop()
