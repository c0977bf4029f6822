"""Where a model's time goes, measured from outside: its parts are wrapped, its code knows nothing of it."""

from __future__ import annotations

import contextlib
import functools
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn

REST = "rest"  # what no stage claims

# stage -> (path of the part, its method); what a model lacks is left out. In the order in which they run.
STAGES: dict[str, tuple[tuple[str, str], ...]] = {
    "backbone": (("backbone", "forward"),),
    "pixel decoder": (("sem_seg_head.pixel_decoder", "forward"),),
    "decoder": (("sem_seg_head.predictor", "forward"),),
    "whole image in CLIP": (("clip_adapter", "encode_whole"),),
    "calibration": (("proposer.refine", "forward"),),
    "masks": (("proposer", "forward"),),
    "crops": (("mask_namer", "inputs"), ("mask_namer", "draw")),
    "CLIP": (("mask_namer", "forward"),),
    "render": (("", "render_request"),),
}


def clock_of(device: torch.device, processor_time: bool = False) -> Callable[[], float]:
    """Seconds; on a GPU when all work that was asked of it is done.

    Args:
        processor_time: of this process on the CPU, all its threads together, which other programs disturb least.
    """
    if device.type != "cuda":
        return time.process_time if processor_time else time.perf_counter

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


class Stages:
    """Seconds of the stages of a program, each without the stages inside of it.

    Args:
        clock: see :func:`clock_of`.

    Attributes:
        seconds: by stage, summed over its calls.
    """

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The time of the block is this stage's."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        """The time since the last change is that of the innermost stage."""
        now = self.clock()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now

    def timed(self, function: Callable, name: str) -> Callable:
        """``function`` as a stage; of a generator every step is one."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                result = function(*args, **kwargs)
            return self._steps(result, name) if inspect.isgenerator(result) else result

        return call

    def _steps(self, generator: Iterator, name: str) -> Iterator:
        while True:
            with self.stage(name):
                try:
                    item = next(generator)
                except StopIteration:
                    return
            yield item


@contextlib.contextmanager
def time_stages(model: nn.Module, clock: Callable[[], float]) -> Iterator[Stages]:
    """Time the :data:`STAGES` of a model of the family, of all calls inside of the block.

    The whole of the block is the stage :data:`REST`, so the sum over all stages is the time that it took.
    """
    stages = Stages(clock)
    with contextlib.ExitStack() as wrapped:
        for name, parts in STAGES.items():
            for path, method in parts:
                steps = path.split(".") if path else ()
                owner = functools.reduce(lambda part, step: getattr(part, step, None), steps, model)
                if owner is not None and hasattr(owner, method):
                    timed = stages.timed(getattr(owner, method), name)
                    wrapped.enter_context(mock.patch.object(owner, method, timed))
        wrapped.enter_context(stages.stage(REST))
        yield stages
