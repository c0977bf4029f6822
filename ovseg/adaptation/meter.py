"""What a fine-tuning run tells: losses, speed, how long it waits for data, memory."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from rich.console import Console
from rich.logging import RichHandler
from torch import Tensor

from ovseg.adaptation.run_folder import RunFolder
from ovseg.errors import OvsegError

logger = logging.getLogger(__name__)


class Meter:
    """Collects figures between two lines of the log; the main process writes them.

    Args:
        folder: its metrics file gets a line for every log.
        writer: TensorBoard's, or None.
        device: where the model is.
    """

    def __init__(self, folder: RunFolder, writer: Any, device: torch.device):
        self.folder, self.writer, self.device = folder, writer, device
        self.state = ""
        self._totals = [0.0, 0.0, 0.0]  # pairs, seconds, seconds of waiting
        self.restart()

    def restart(self) -> None:
        """Begin a new line of the log here."""
        self._losses: list[Tensor] = []
        self._pairs, self._waited, self._began = 0, 0.0, time.perf_counter()

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Hand batches on, measuring how long they are waited for; the first one, workers starting, does not count.

        On a GPU this is the time in which no new work is handed to it, an upper bound of its idling.
        """
        iterator, first = iter(batches), True
        while True:
            began = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - began
            if first:
                first = self.restart()
            yield batch

    def add(self, loss: Tensor, pairs: int) -> None:
        """A step is done; ``loss`` is not looked at before it has to be."""
        self._losses.append(loss)
        self._pairs += pairs

    def check(self) -> None:
        """Refuse to go on with a loss that is infinite or NaN."""
        if self._losses and not math.isfinite(self._losses[-1].item()):
            raise OvsegError(
                "the loss became infinite or NaN: lower --lr or raise --warmup, and go on from the last checkpoint "
                "with a new --output and that checkpoint as --clip"
            )

    def log(self, step: int, **values: float) -> None:
        """Write the means since the last time; every process must call this."""
        self.check()
        loss = torch.stack(self._losses).mean()
        if comm.get_world_size() > 1:
            dist.all_reduce(loss)
        loss = loss.item() / comm.get_world_size()
        seconds = time.perf_counter() - self._began
        speed, waiting = self._pairs / seconds, self._waited / seconds
        for k, value in enumerate((self._pairs, seconds, self._waited)):
            self._totals[k] += value
        self.state = f"loss {loss:.4f}, {speed:.1f} pairs/s"
        self.write(
            step, {**values, "loss": loss, "pairs_per_second": speed, "waiting": waiting, "memory_gib": self._memory()}
        )
        logger.info(
            "step %d: loss %.4f, lr %.2e, %.1f pairs/s, waiting for data %.1f %%, memory %.2f GiB",
            step,
            loss,
            values.get("lr", math.nan),
            speed,
            100 * waiting,
            self._memory(),
        )
        self.restart()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Put figures into the metrics file and TensorBoard."""
        if not comm.is_main_process():
            return
        self.folder.add_metrics({"step": step, **values})
        for name, value in values.items():
            if name != "epoch":
                self.writer.add_scalar(name if "/" in name else f"train/{name}", value, step)

    def summarise(self) -> None:
        """Log the whole run's speed."""
        pairs, seconds, waited = self._totals
        if pairs:
            logger.info(
                "on the whole %.1f pairs/s, waiting for data %.1f %%, peak memory %.2f GiB",
                pairs / seconds,
                100 * waited / seconds,
                self._memory(),
            )

    def _memory(self) -> float:
        """Peak memory so far, GiB: on the GPU what tensors took there, else of this process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        if sys.platform == "win32":
            return 0.0
        import resource

        # kibibytes, on macOS bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def log_to_terminal() -> Console:
    """Log above the progress bar, in the main process only; returns the bar's console."""
    console = Console(stderr=True)
    package = logging.getLogger("ovseg")
    if comm.is_main_process() and not logging.getLogger().handlers:
        logging.basicConfig(format="%(message)s", handlers=[RichHandler(console=console, show_path=False)])
    package.setLevel(logging.INFO if comm.is_main_process() else logging.ERROR)
    return console
