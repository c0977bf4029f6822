"""Shards of a run, made in this process or by workers of Ray; each is written whole or not at all."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.logger import log_every_n_seconds
from rich.console import Console

from ovseg.adaptation.shard_work import Kind, Work, bad_file
from ovseg.data.caption_files import ALLOWED_BAD, CaptionedImage
from ovseg.errors import OvsegError
from ovseg.io.files import atomic_path
from ovseg.io.progress import progress_bar
from ovseg.io.ray_options import RayOptions

Find = Callable[[CaptionedImage], Sized]


@dataclass(frozen=True)
class ShardJob:
    """A shard to make.

    Attributes:
        shard: its path.
        first: number of its first image.
        images: in order.
    """

    shard: Path
    first: int
    images: Sequence[CaptionedImage]


@dataclass(frozen=True)
class ShardMaker:
    """Makes shards, each written whole or not at all.

    Args:
        kind: of the shards.
        find: gives what is in an image; OvsegError: the image is unusable.
        advance: called after each image with 1 and the number of things found in it.
    """

    kind: Kind
    find: Find
    advance: Callable[[int, int], None] = lambda images, found: None

    def __call__(self, job: ShardJob) -> tuple[int, list[str]]:
        """Make a shard; return how much was found, and what is wrong with its unusable images."""
        total, bad = 0, []
        with self.kind.open(job.shard) as file:
            for index, image in enumerate(job.images, job.first):
                found: Sized = ()
                try:
                    found = self.find(image)
                except OvsegError as error:
                    bad.append(f"{image.path}: {error}")
                else:
                    file.add(index, image, found)
                total += len(found)
                self.advance(1, len(found))
            write_bad(job.shard, bad)  # before the shard, whose presence says that all is there
        return total, bad


def fill_shards(
    work: Work,
    finder: Callable[[str], Find],
    numbers: Sequence[int],
    allow_bad: bool,
    device: str | None = None,
    ray: RayOptions | None = None,
) -> None:
    """Make some shards, with a bar that shows the speed and the time left.

    Args:
        finder: gives ``find`` of :class:`ShardMaker`, from the name of a device; pickled where Ray is used.
        numbers: of the shards.
        allow_bad: go on when more than 1 % of all images are unusable, already in this process alone.
        device: None for a GPU if there is any.
        ray: make them by workers of Ray.

    Raises:
        OvsegError: the disk is full, or too many images are unusable; finished shards stay.
    """
    jobs = [ShardJob(work.shard(number), work.indices(number)[0], work.images_of(number)) for number in numbers]
    with Tally(work, sum(len(job.images) for job in jobs), allow_bad) as tally:
        if ray is not None:
            from ovseg.io.ray_pool import run_units  # Ray is an extra

            results = run_units(ray, partial(_maker, work.kind, finder), jobs, work.output, device)
            with contextlib.closing(results):  # workers end before the lock of the folder is released
                for job, (found, bad) in results:
                    tally.advance(len(job.images), found)
                    tally.check(bad)
        else:
            make = ShardMaker(work.kind, finder(_device_here(device)), tally.advance)
            for job in jobs:
                tally.check(make(job)[1])


def _maker(kind: Kind, finder: Callable[[str], Find], device: str) -> ShardMaker:
    return ShardMaker(kind, finder(device))


def _device_here(device: str | None) -> str:
    """Return the device of this process: its own GPU where there are any and no other device is named."""
    if device in (None, "cuda") and torch.cuda.is_available():
        return f"cuda:{comm.get_local_rank()}"
    return device or "cpu"


def write_bad(shard: Path, bad: Sequence[str]) -> None:
    """Write the list of a shard's unusable images, or remove an old one where all are usable."""
    file = bad_file(shard)
    file.unlink(missing_ok=True)
    if bad:
        with atomic_path(file) as temporary:
            temporary.write_text("".join(" ".join(line.split()) + "\n" for line in bad), encoding="utf-8")


class Tally:
    """Progress of a process, and its count of unusable images; the main process shows it.

    Args:
        work: the run.
        total: images of this process.
        allow_bad: any number of images may be unusable.
    """

    def __init__(self, work: Work, total: int, allow_bad: bool):
        processes = comm.get_world_size()
        self.work, self.total, self.what = work, total, work.kind.what
        self.largest_bad = math.inf if allow_bad else ALLOWED_BAD * len(work.images)
        self.title = "images" if processes == 1 else f"images (1 of {processes} processes)"
        self.done = self.found = self.bad = 0

    def __enter__(self) -> Tally:
        self.began = time.perf_counter()
        console, self.shown = Console(stderr=True), comm.is_main_process()
        self.drawn = self.shown and console.is_terminal
        self.bar = progress_bar("{task.fields[speed]:.1f} " + f"{self.what}/s", console=console, show=self.drawn)
        self.bar.__enter__()
        self.task = self.bar.add_task(self.title, total=self.total, speed=0.0)
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)

    def advance(self, images: int, found: int) -> None:
        """Count images that are done, and what was found in them."""
        self.done, self.found = self.done + images, self.found + found
        passed = time.perf_counter() - self.began
        speed = self.found / passed
        self.bar.update(self.task, completed=self.done, speed=speed)
        if self.shown and not self.drawn:
            left = passed / self.done * (self.total - self.done)
            message = f"{self.title}: {self.done}/{self.total}, {speed:.1f} {self.what}/s, {left:.0f} s left"
            log_every_n_seconds(logging.INFO, message, n=30, name=__name__)

    def check(self, bad: Sequence[str]) -> None:
        """Count the unusable images of a shard.

        Raises:
            OvsegError: they are too many.
        """
        self.bad += len(bad)
        if self.bad > self.largest_bad:
            raise OvsegError(
                f"{self.bad} images could not be used, more than 1 % ({bad[-1]}; all in {self.work.output}/*.bad.txt): "
                "correct them and begin in another folder, or add --allow-bad"
            )
