"""Pseudo-masks by Ray Data: the teacher in actors, on one machine or on all of a cluster.

A task is a shard. Its result comes back to the process that was started, which writes it, so the machines share nothing
but the folder of images, under one path. When a worker dies, Ray gives its task to another one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ovseg.adaptation.pseudo_options import PseudoOptions
from ovseg.adaptation.pseudo_teacher import FoundMasks, Teacher
from ovseg.adaptation.shard_work import Tally, Work, write_bad
from ovseg.data.caption_files import CaptionedImage
from ovseg.errors import OvsegError

# before the import: nothing is reported to anybody, no lines of Ray's own processes appear on the terminal, and workers
# have the priority of this process (Ray's default is 15 below, which starves them on a busy machine)
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_worker_niceness", "0")
import ray
import ray.data

OBJECT_STORE = 256 << 20  # bytes, of a local cluster; a shard's result has about 1 MB


class ShardTeacher:
    """The actor: a teacher that labels all images of a shard.

    Args:
        options: of the run.
        gpu: whether Ray gives it a GPU of its own.
    """

    def __init__(self, options: PseudoOptions, gpu: bool):
        self.failure = ""  # returned, for Ray gives an error of this method as a text with its own trace around it
        try:
            self.teacher = Teacher.of(options, "cuda" if gpu else options.device or "cpu")
        except OvsegError as error:
            self.failure = str(error)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Label shards.

        Args:
            batch: ``number`` of each shard and ``paths`` of its images, JSON.

        Returns:
            ``number``; ``found``, a JSON list of {"height", "width", "masks"} or {"error"}; ``process``, this one; and
            ``failure``, why there is no teacher, else empty.
        """
        found = ["[]" if self.failure else self._label(text) for text in batch["paths"]]
        own = {"process": [os.getpid()] * len(found), "failure": [self.failure] * len(found)}
        return {"number": batch["number"].tolist(), "found": found} | own

    def _label(self, paths: str) -> str:
        found = []
        for path in json.loads(paths):
            try:
                found.append(vars(self.teacher(CaptionedImage(Path(path), "", ()))))
            except OvsegError as error:
                found.append({"error": str(error)})
        return json.dumps(found)


def fill_with_ray(options: PseudoOptions, work: Work, numbers: Sequence[int]) -> None:
    """Make some shards by ``options.ray`` actors; each is written when its result arrives, in any order.

    A running cluster is used if ``RAY_ADDRESS`` names one; otherwise a local one is started, and stopped at the end.

    Raises:
        OvsegError: the teacher cannot be built, the disk is full, or too many images are unusable.
    """
    jobs, total = [], 0
    for number in numbers:
        paths = [os.path.abspath(work.images[index].path) for index in work.indices(number)]
        jobs.append({"number": number, "paths": json.dumps(paths)})
        total += len(paths)
    options = replace(
        options,
        config_file=_absolute(options.config_file),
        weights=_absolute(options.weights),
        opts=[_absolute(value) if isinstance(value, str) else value for value in options.opts or ()],
    )
    tally = Tally(work, total, options.allow_bad, "images")
    with _cluster(options.ray) as (resources, processes), tally:
        gpu = resources.get("GPU", 0) > 0 and options.device != "cpu"
        results = ray.data.from_items(jobs, override_num_blocks=len(jobs)).map_batches(
            ShardTeacher,
            batch_size=1,
            concurrency=min(options.ray, len(jobs)),
            num_cpus=1,
            num_gpus=1 if gpu else None,
            fn_constructor_args=(options, gpu),
        )
        for row in results.iter_rows():
            processes.add(int(row["process"]))
            if row["failure"]:
                raise OvsegError(row["failure"])
            tally.check(_write(work, int(row["number"]), json.loads(row["found"]), tally))


def _absolute(path: str | None) -> str | None:
    """Return the absolute path of a file; actors may have another working folder. Names and None are kept."""
    return os.path.abspath(path) if path and os.path.isfile(path) else path


def _write(work: Work, number: int, results: Sequence[dict[str, Any]], tally: Tally) -> list[str]:
    """Write a shard, and return what is wrong with its unusable images."""
    bad, shard = [], work.shard(number)
    with work.kind.open(shard) as file:
        for index, result in zip(work.indices(number), results, strict=True):
            if "error" in result:
                bad.append(f"{work.images[index].path}: {result['error']}")
            else:
                file.add(index, work.images[index], FoundMasks(**result))
        write_bad(shard, bad)
    tally.advance(len(results), sum(len(result.get("masks", ())) for result in results))
    return bad


@contextlib.contextmanager
def _cluster(actors: int) -> Iterator[tuple[dict[str, float], set[int]]]:
    """Connect to the running cluster, or start one on this machine that lasts as long as the block.

    Yields:
        the cluster's resources; and a set for the numbers of its processes, which are ended with a cluster of this
        machine: Ray lets them clean up, which takes seconds, and does not wait.
    """
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    processes: set[int] = set()
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            if os.environ.get("RAY_ADDRESS"):
                ray.init(**quiet)
            else:
                temporary = tempfile.TemporaryDirectory(prefix="ovseg-ray-", ignore_cleanup_errors=True)
                stack.callback(_end, processes)
                ray.init(
                    address="local",
                    num_cpus=actors,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE,
                    _temp_dir=stack.enter_context(temporary),
                    **quiet,
                )
            stack.callback(ray.shutdown)  # first of all callbacks
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        yield ray.cluster_resources(), processes


def _end(processes: set[int]) -> None:
    """End those of the processes that are still workers of Ray."""
    for process in processes:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"ray::"):
                os.kill(process, signal.SIGKILL)
