"""The best checkpoints of a run by scores of its evaluations (``TEST.SAVE_BEST``)."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from ovseg.checkpoint import save_torch
from ovseg.checkpoint.state_dicts import read_checkpoint
from ovseg.errors import OvsegError

logger = logging.getLogger(__name__)


class BestCheckpoints:
    """Keeps the weights with the highest value of each score in ``best_<score>.pth``, such as ``best_miou.pth``.

    A file holds ``model``, ``iteration``, the number of iterations done, ``score`` and ``value``; it replaces the
    earlier one at once, so that a process that dies leaves either of them whole.

    Args:
        folder: of the run.
        scores: names of scores, such as "mIoU" and "top1". Where several data sets have one, the first of them counts.
        resume: go on with the values of files in the folder.
    """

    def __init__(self, folder: str | Path, scores: Sequence[str], resume: bool = False):
        self.paths = {score: Path(folder) / f"best_{score.lower()}.pth" for score in scores}
        self.values = dict.fromkeys(scores, -math.inf)
        for score, path in self.paths.items() if resume and comm.is_main_process() else ():
            with contextlib.suppress(OvsegError, KeyError, TypeError, ValueError):  # no such file, or a damaged one
                self.values[score] = float(read_checkpoint(path)["value"])

    def update(self, results: Mapping[str, Any], iteration: int, state: Callable[[], Mapping[str, Any]]) -> None:
        """Write the files whose scores are higher than before; only the main process does.

        Args:
            results: of an evaluation, numbers at any depth.
            iteration: number of iterations done.
            state: returns the weights.

        Raises:
            OvsegError: the evaluation has no such score.
        """
        if not comm.is_main_process():
            return
        found = list(_numbers(results))
        for score, path in self.paths.items():
            value = next((value for name, value in found if name.lower() == score.lower()), None)
            if value is None:
                known = ", ".join(dict.fromkeys(name for name, _ in found))
                raise OvsegError(
                    f"TEST.SAVE_BEST names {score!r}, but the evaluation has only {known}: name one of them"
                )
            if value > self.values[score]:  # never for NaN
                self.values[score] = value
                save_torch({"model": state(), "iteration": iteration, "score": score, "value": value}, path)
                logger.info("best %s so far, %.2f, after iteration %d: %s", score, value, iteration, path)


def _numbers(results: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in results.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, int | float):
            yield str(name), float(value)
