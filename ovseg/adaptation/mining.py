"""Mining of a data set into one folder: by several processes, resumable, never by two runs at once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.utils.logger import log_every_n_seconds
from rich.console import Console

from ovseg.adaptation.miner import FoundPair
from ovseg.adaptation.pair_shards import SHARD, SHARDS, SUMMARY, ShardWriter
from ovseg.data.caption_files import CaptionedImage
from ovseg.errors import OvsegError
from ovseg.io.files import atomic_path, file_digest, locked_folder
from ovseg.io.progress import progress_bar

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"
POLL = 0.5  # seconds between looks at the other processes' shards
LARGEST_SHARD = 250  # images; about a thousand pairs


def default_shard_size(images: int) -> int:
    """Return the images of a shard: few enough that processes can share the work and little is redone after a kill.

    It must not depend on the number of processes, which may change when a run is resumed.
    """
    return max(5, min(LARGEST_SHARD, -(-images // 32)))


@dataclass(frozen=True)
class Work:
    """The images and shards of a run, the same in every process.

    Attributes:
        images: in a fixed order; shard i holds images [i * shard_size, (i + 1) * shard_size).
        shard_size: images of a shard.
        output: the folder.
    """

    images: Sequence[CaptionedImage]
    shard_size: int
    output: Path

    @property
    def shards(self) -> list[Path]:
        """Return the paths of all shards, written or not."""
        return [self.output / SHARD.format(i) for i in range(-(-len(self.images) // self.shard_size))]

    def missing(self) -> list[int]:
        """Return the numbers of the missing shards."""
        return [number for number, shard in enumerate(self.shards) if not shard.is_file()]

    def bad(self) -> list[str]:
        """Return what is wrong with the unusable images of finished shards."""
        files = (bad_file(shard) for shard in self.shards)
        texts = (file.read_text(encoding="utf-8", errors="backslashreplace") for file in files if file.is_file())
        return [line for text in texts for line in text.splitlines()]


def bad_file(shard: Path) -> Path:
    """Return the path of the list of a shard's unusable images."""
    return shard.with_suffix(".bad.txt")


@contextlib.contextmanager
def claim(output: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Lock an output folder for one run, which begins or resumes the mining that ``settings`` describe.

    The lock goes with the process, even by ``kill -9``. What a killed run left unfinished is removed.

    Raises:
        OvsegError: another run holds the folder; or it holds other pairs, or something else.
    """
    with locked_folder(output):
        _check_settings(output, json.loads(json.dumps(settings)))
        yield


def _check_settings(output: Path, settings: Mapping[str, Any]) -> None:
    path = output / SETTINGS
    # a run that failed before its first shard has left nothing
    if any(output.glob(SHARDS)) or (output / SUMMARY).exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise OvsegError(
                f"{output} holds pairs but no {SETTINGS}, so they are of another origin: choose another folder"
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise OvsegError(f"{path} is damaged: choose another --output, or delete {output}") from error
        if not isinstance(before, dict):
            raise OvsegError(f"{path} is damaged: choose another --output, or delete {output}")
        names = sorted({*before, *settings})
        if changed := [name for name in names if before.get(name) != settings.get(name)]:
            name = changed[0]
            raise OvsegError(
                f"{output} holds pairs that were mined with other settings ({', '.join(changed)}; {name} was "
                f"{before.get(name)!r}, now it is {settings.get(name)!r}): choose another --output, or delete it"
            )
        return
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def mine_shards(
    work: Work,
    mine: Callable[[CaptionedImage], list[FoundPair]],
    numbers: Sequence[int],
    largest_bad: float,
    title: str,
    show: bool,
) -> None:
    """Mine some shards, each written whole or not at all; with a bar that shows pairs/s and the time left.

    Args:
        mine: gives the pairs of an image.
        numbers: of the shards.
        largest_bad: stop when more images than this could not be used, in this process alone.
        title: of the bar.
        show: this process shows its progress.

    Raises:
        OvsegError: the disk is full, or too many images are unusable; finished shards stay.
    """
    jobs = [range(n * work.shard_size, min((n + 1) * work.shard_size, len(work.images))) for n in numbers]
    total, done, pairs, bad_images = sum(map(len, jobs)), 0, 0, 0
    began = time.perf_counter()
    console = Console(stderr=True)
    bar_shown = show and console.is_terminal
    with progress_bar("{task.fields[speed]:.1f} pairs/s", console=console, show=bar_shown) as progress:
        bar = progress.add_task(title, total=total, speed=0.0)
        for number, job in zip(numbers, jobs, strict=True):
            shard, bad = work.shards[number], []
            with ShardWriter(shard) as writer:
                for index in job:
                    try:
                        found = mine(work.images[index])
                    except OvsegError as error:
                        found = []
                        bad.append(f"{work.images[index].path}: {error}")
                    for count, pair in enumerate(found):
                        writer.write(f"{index:09d}_{count:03d}", pair.image, pair.mask, pair.info)
                    done, pairs = done + 1, pairs + len(found)
                    speed = pairs / (time.perf_counter() - began)
                    progress.update(bar, completed=done, speed=speed)
                    if show and not bar_shown:
                        left = (time.perf_counter() - began) / done * (total - done)
                        message = f"{title}: {done}/{total} images, {speed:.1f} pairs/s, {left:.0f} s left"
                        log_every_n_seconds(logging.INFO, message, n=30, name=__name__)
                _write_bad(shard, bad)  # before the shard, whose presence says that all is there
            bad_images += len(bad)
            if bad_images > largest_bad:
                raise OvsegError(
                    f"{bad_images} images could not be used, more than 1 % ({bad[-1]}; all in "
                    f"{work.output}/*.bad.txt): correct them and mine into another folder, or add --allow-bad"
                )


def wait_for_all(work: Work) -> None:
    """Wait until every process has written its shards.

    A barrier would end after half an hour, and the last shard may take longer; torchrun ends this process if another
    one dies.
    """
    while work.missing():
        time.sleep(POLL)


def _write_bad(shard: Path, bad: Sequence[str]) -> None:
    file = bad_file(shard)
    file.unlink(missing_ok=True)
    if bad:
        with atomic_path(file) as temporary:
            temporary.write_text("".join(" ".join(line.split()) + "\n" for line in bad), encoding="utf-8")


def fingerprint(images: Sequence[CaptionedImage]) -> str:
    """Return a digest of images and captions: names, ids and texts, not pixels."""
    digest = hashlib.sha256()
    for item in images:
        digest.update(repr((item.path.name, item.image_id, item.captions)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def file_fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        OvsegError: it cannot be read.
    """
    try:
        return file_digest(path)
    except OSError as error:
        raise OvsegError(f"cannot read {path} ({error.strerror}): check the path") from error
