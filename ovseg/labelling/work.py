"""Segmentation of the images of a labelling run into records: by one process, several, or workers of Ray."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import threading
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from multiprocessing import connection
from pathlib import Path
from typing import Any

from ovseg.errors import OvsegError, user_errors
from ovseg.io.cpus import usable_cpus
from ovseg.io.ray_options import RayOptions
from ovseg.labelling.options import Model
from ovseg.labelling.records import PATTERN, RecordWriter, failed_record, record_file, record_of, stamp_of
from ovseg.labelling.stream import reason_of_failure, segment_stream

POLL = 0.3  # seconds between looks at the records of other processes
UNITS, LARGEST_UNIT = 64, 100  # of the work by Ray: its least number of parts, and images of one


def label_images(model: Model, images: Sequence[Path], output: Path, advance: Callable[[int], None]) -> None:
    """Append a record of each image to the files of the output folder.

    Args:
        images: to label.
        output: the folder, which the caller has locked.
        advance: called with the number of further images that are done.

    Raises:
        OvsegError: the model cannot be loaded, nothing more can be written, or a process was killed; finished images
            are recorded.
    """
    processes = min(model.processes, len(images))
    if model.ray is not None:
        _label_by_ray(model, model.ray, images, output, advance)
    elif processes > 1:
        _label_by_processes(model, images, output, advance, processes)
    else:
        Labeller(model, model.device, record_file(output, 0), advance)(images)


class Labeller:
    """Appends records of images to a file.

    Args:
        model: loaded here.
        device: that it computes on.
        file: of the records.
        advance: called with 1 after each image.
    """

    def __init__(
        self, model: Model, device: str | None, file: Path, advance: Callable[[int], None] = lambda count: None
    ):
        self.model, self.file, self.advance = model, file, advance
        with RecordWriter(file):  # what cannot be written is reported before the model is loaded
            pass
        from ovseg.segmenter import Segmenter

        self.segmenter = Segmenter.from_config(model.config_file, opts=model.opts, device=device)
        self.segmenter.prepare(model.vocabulary)

    def __call__(self, images: Sequence[Path]) -> None:
        """Label images.

        Raises:
            CannotWrite: nothing more can be written.
        """
        jobs = ((image, stamp_of(image)) for image in images)  # before it is read
        stages = {"batch": self.model.batch, "savers": self.model.savers, "ahead": max(4, self.model.batch)}

        def record(job: tuple[Path, Any], result: Any) -> str:
            return record_of(*job, result)

        stream = segment_stream(self.segmenter, jobs, self.model.vocabulary, record, **stages)
        with RecordWriter(self.file) as records, contextlib.closing(stream) as outcomes:
            for outcome in outcomes:
                image, stamp = outcome.item
                if outcome.error is None:
                    records.append(outcome.value)
                else:
                    records.append(failed_record(image, stamp, reason_of_failure(image, outcome.error)))
                self.advance(1)


def _label_by_ray(
    model: Model, options: RayOptions, images: Sequence[Path], output: Path, advance: Callable[[int], None]
) -> None:
    from ovseg.io.ray_pool import run_units  # Ray is an extra

    size = max(1, min(LARGEST_UNIT, len(images) // UNITS))
    units = [images[start : start + size] for start in range(0, len(images), size)]
    with contextlib.closing(
        run_units(options, partial(_ray_labeller, model, output), units, output, model.device)
    ) as done:
        for unit, _ in done:
            advance(len(unit))


def _ray_labeller(model: Model, output: Path, device: str | None) -> Labeller:
    """Return a labeller with a file of its own: the records of a worker that dies stay, no other one writes there."""
    import ovseg

    ovseg.register()
    return Labeller(model, device, output / PATTERN.format(secrets.token_hex(6)))


def _label_by_processes(
    model: Model, images: Sequence[Path], output: Path, advance: Callable[[int], None], processes: int
) -> None:
    context = multiprocessing.get_context("spawn")  # CUDA cannot be used in forked processes
    devices = _devices(model.device, processes)
    files = [record_file(output, rank) for rank in range(processes)]
    before = [file.stat().st_size if file.exists() else 0 for file in files]
    started = [
        context.Process(target=_process, args=(model, images[rank::processes], output, devices[rank], rank, processes))
        for rank in range(processes)
    ]
    with _ended(started):
        for process in started:
            process.start()
        while True:
            alive = [process for process in started if process.is_alive()]
            connection.wait([process.sentinel for process in alive], POLL)
            for rank, file in enumerate(files):
                lines, before[rank] = _new_lines(file, before[rank])
                advance(lines)
            failed = [process for process in started if process.exitcode not in (None, 0)]
            if any(process.exitcode == 2 for process in failed):
                raise OvsegError("a process of this run could not go on, for the reason above")
            if not alive:
                break
    if failed:
        status = failed[0].exitcode
        how = f"was killed (signal {-status})" if status < 0 else f"ended with status {status}"
        raise OvsegError(
            f"a process of this run {how}: finished images are kept, run the same command again; if memory ran out, "
            "with fewer --processes"
        )


def _process(model: Model, images: Sequence[Path], output: Path, device: str | None, rank: int, processes: int) -> None:
    """Label a share of the images in a process of its own, which ends with its parent."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with user_errors():
        import torch

        import ovseg

        if (device or "cpu") == "cpu":
            torch.set_num_threads(max(1, usable_cpus() // processes))
        ovseg.register()
        Labeller(model, device, record_file(output, rank))(images)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _devices(device: str | None, processes: int) -> list[str | None]:
    """Return the device of each process: its own GPU where there are any and no other device is named."""
    import torch

    if device in (None, "cuda") and (count := torch.cuda.device_count()):
        return [f"cuda:{rank % count}" for rank in range(processes)]
    return [device] * processes


@contextlib.contextmanager
def _ended(processes: Sequence[Any]) -> Generator[None, None, None]:
    """End all processes with the block, gently at first."""
    try:
        yield
    finally:
        begun = [process for process in processes if process.pid is not None]
        for process in begun:
            if process.is_alive():
                process.terminate()
        until = time.monotonic() + 10
        for process in begun:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()


def _new_lines(file: Path, offset: int) -> tuple[int, int]:
    """Return the number of lines behind an offset, and the offset behind them."""
    try:
        with file.open("rb") as opened:
            opened.seek(offset)
            content = opened.read()
    except OSError:  # not there yet
        return 0, offset
    end = content.rfind(b"\n") + 1
    return content.count(b"\n", 0, end), offset + end
