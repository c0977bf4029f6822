"""Work on the images of a data set into the shards of one folder: by several processes, resumable, one run at a time.

Mask-text pairs are mined this way, and pseudo-masks made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml
from detectron2.utils import comm
from rich.console import Console

from ovseg.config import load_cfg
from ovseg.config.files import by_content
from ovseg.data.caption_files import CaptionedImage, check_bad
from ovseg.errors import OvsegError
from ovseg.io.files import atomic_path, file_digest, locked_folder, write_text

SETTINGS, SUMMARY = "settings.json", "summary.json"
BAD_IMAGES = "bad_images.txt"
POLL = 0.5  # seconds between looks at the other processes' shards
LARGEST_SHARD = 250  # images


def default_shard_size(images: int) -> int:
    """Return the images of a shard: few enough that processes can share the work and little is redone after a kill.

    It must not depend on the number of processes, which may change when a run is resumed.
    """
    return max(5, min(LARGEST_SHARD, -(-images // 32)))


class ShardFile(Protocol):
    """A shard that is being written; it appears under its name when the block that holds it has ended well."""

    def add(self, index: int, item: CaptionedImage, found: Any) -> None:
        """Add what was found in one image, the number ``index`` of all."""


@dataclass(frozen=True)
class Kind:
    """What a run makes.

    Attributes:
        what: for messages, "pairs".
        shard: name of a shard's file with the place of its number, "pairs-{:05d}.tar".
        open: begins a shard.
    """

    what: str
    shard: str
    open: Callable[[Path], AbstractContextManager[ShardFile]]


@dataclass(frozen=True)
class Work:
    """The images and shards of a run, the same in every process.

    Attributes:
        kind: what is made of the images.
        images: in a fixed order; shard i holds images [i * shard_size, (i + 1) * shard_size).
        shard_size: images of a shard.
        output: the folder.
    """

    kind: Kind
    images: Sequence[CaptionedImage]
    shard_size: int
    output: Path

    @property
    def shards(self) -> list[Path]:
        """Return the paths of all shards, written or not."""
        return [self.shard(number) for number in range(-(-len(self.images) // self.shard_size))]

    def shard(self, number: int) -> Path:
        """Return the path of a shard."""
        return self.output / self.kind.shard.format(number)

    def indices(self, number: int) -> range:
        """Return the numbers of the images of a shard."""
        return range(number * self.shard_size, min((number + 1) * self.shard_size, len(self.images)))

    def images_of(self, number: int) -> Sequence[CaptionedImage]:
        """Return the images of a shard."""
        return self.images[number * self.shard_size : (number + 1) * self.shard_size]

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
def filled(
    work: Work, settings: Callable[[], Mapping[str, Any]], make: Callable[[Sequence[int]], None]
) -> Iterator[None]:
    """Fill the folder of a run by all processes; the block gets it complete, and locked.

    Args:
        work: the run.
        settings: gives what the shards depend on; called in the main process.
        make: makes the shards of the given numbers, the share of this process.

    Raises:
        OvsegError: see :func:`claim`; or from ``make``.
    """
    main = comm.is_main_process()
    with contextlib.ExitStack() as stack:
        if main:
            stack.enter_context(claim(work.output, settings(), work.kind))
        # only the main process looks, for all must divide the same list
        missing, complete = comm.all_gather((work.missing(), (work.output / SUMMARY).is_file()))[0]
        if main and complete and not missing:
            Console(stderr=True, soft_wrap=True).print(f"{work.output} is complete already", markup=False)
        if missing:
            if main:
                (work.output / SUMMARY).unlink(missing_ok=True)  # shards of a finished run were deleted
            if share := missing[comm.get_rank() :: comm.get_world_size()]:
                make(share)
        wait_for_all(work)
        yield


@contextlib.contextmanager
def claim(output: Path, settings: Mapping[str, Any], kind: Kind) -> Iterator[None]:
    """Lock an output folder for one run, which begins or resumes the work that ``settings`` describe.

    The lock goes with the process, even by ``kill -9``. What a killed run left unfinished is removed.

    Raises:
        OvsegError: another run holds the folder; or it holds results of other settings, or something else.
    """
    with locked_folder(output):
        _check_settings(output, json.loads(json.dumps(settings)), kind)
        yield


def _check_settings(output: Path, settings: Mapping[str, Any], kind: Kind) -> None:
    path = output / SETTINGS
    # a run that failed before its first shard has left nothing
    if any(output.glob(kind.shard.format(0).replace("00000", "*"))) or (output / SUMMARY).exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise OvsegError(
                f"{output} holds {kind.what} but no {SETTINGS}, so they are of another origin: choose another folder"
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise OvsegError(f"{path} is damaged: choose another --output, or delete {output}") from error
        if not isinstance(before, dict):
            raise OvsegError(f"{path} is damaged: choose another --output, or delete {output}")
        names = sorted({*before, *settings})
        if changed := [name for name in names if before.get(name) != settings.get(name)]:
            name = changed[0]
            raise OvsegError(
                f"{output} holds {kind.what} that were made with other settings ({', '.join(changed)}; {name} was "
                f"{before.get(name)!r}, now it is {settings.get(name)!r}): choose another --output, or delete it"
            )
        return
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def wait_for_all(work: Work) -> None:
    """Wait until every process has written its shards.

    A barrier would end after half an hour, and the last shard may take longer; torchrun ends this process if another
    one dies.
    """
    while work.missing():
        time.sleep(POLL)


def check_images(work: Work, allow_bad: bool) -> list[str]:
    """Return the unusable images of a filled folder, after writing them to its ``bad_images.txt``.

    Raises:
        OvsegError: they are more than 1 % and not allowed.
    """
    if bad := work.bad():
        write_lines(work.output / BAD_IMAGES, bad)
    check_bad(len(bad), len(work.images), "images", work.output / BAD_IMAGES, allow_bad)
    return bad


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a list for users."""
    write_text(path, "".join(f"{line}\n" for line in lines))


def teacher_settings(config_file: str, weights: str | None, opts: Sequence[str]) -> dict[str, Any]:
    """Return what a trained segmenter's results depend on: digests of its configuration and its weights."""
    cfg = load_cfg(config_file, opts)
    files = {"weights": weights or cfg.MODEL.WEIGHTS, "clip_weights": cfg.MODEL.CLIP_ADAPTER.CLIP_WEIGHTS}
    settings = {
        name: file_fingerprint(Path(path)) if path and Path(path).is_file() else path for name, path in files.items()
    }
    cfg.MODEL.WEIGHTS = cfg.MODEL.CLIP_ADAPTER.CLIP_WEIGHTS = ""
    content = yaml.safe_dump(by_content(yaml.safe_load(cfg.dump())))
    return settings | {"config": hashlib.sha256(content.encode()).hexdigest()}


def fingerprint(images: Iterable[tuple[Any, ...]]) -> str:
    """Return a digest of what identifies images: names, ids and texts, not pixels."""
    digest = hashlib.sha256()
    for item in images:
        digest.update(repr(item).encode("utf-8", "surrogatepass"))
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
