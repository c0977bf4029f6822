"""Mask-text pairs on disk: WebDataset shards, written whole or not at all and read at random (spec section 12.1)."""

from __future__ import annotations

import bisect
import contextlib
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch.utils.data
from webdataset import TarWriter

from ovseg.adaptation.image_root import ImageRoot
from ovseg.errors import OvsegError
from ovseg.io.files import atomic_path
from ovseg.io.tar_index import index_tar

SUMMARY = "summary.json"
SHARD = "pairs-{:05d}.tar"
SHARDS = "pairs-*.tar"
PARTS = ("png", "mask.png", "json")  # of each sample


@dataclass(frozen=True)
class Pair:
    """One masked region and its text.

    Attributes:
        image: uint8 (h, w, 3) RGB crop of the mask's box, the background as it was.
        mask: bool (h, w).
        text: the noun or phrase.
        key: unique name.
    """

    image: np.ndarray
    mask: np.ndarray
    text: str
    key: str


class ShardWriter:
    """Writes one tar shard; the file appears under its name when the ``with`` block has ended well.

    Args:
        path: ``OUT/pairs-00000.tar``.

    Raises:
        OvsegError: the disk is full or the folder cannot be written; nothing half is left.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> ShardWriter:
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
            self._file = stack.enter_context(open(temporary, "wb"))
            stack.callback(lambda: os.fsync(self._file.fileno()))
            stack.callback(self._file.flush)
            self._stack = stack.pop_all()
        # a fixed time of change makes equal pairs equal bytes
        self._tar = TarWriter(self._file, encoder=False, compress=False, mtime=0, user="ovseg", group="ovseg")
        return self

    def write(self, key: str, image: np.ndarray, mask: np.ndarray, info: Mapping[str, Any]) -> None:
        """Add a pair.

        Args:
            key: without dots, ascending within the shard.
            image: uint8 (h, w, 3) RGB.
            mask: bool (h, w).
            info: "text", and other values to keep, JSON.
        """
        self._tar.write(
            {
                "__key__": key,
                "png": encode_png(image[:, :, ::-1]),
                "mask.png": encode_png(mask.astype(np.uint8) * 255),
                "json": json.dumps(dict(info), ensure_ascii=False).encode("utf-8"),
            }
        )

    def __exit__(self, kind, value, trace) -> bool | None:
        if kind is None:
            with self._stack:
                self._tar.close()
            return None
        with contextlib.suppress(Exception):
            self._tar.close()  # or its destructor would write to the closed file
        return self._stack.__exit__(kind, value, trace)


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode (h, w) or BGR (h, w, 3) uint8 as the bytes of a PNG file."""
    return cv2.imencode(".png", np.ascontiguousarray(pixels))[1].tobytes()


def decode_png(data: bytes, flags: int) -> np.ndarray:
    """Return the image of a PNG or JPEG file's bytes, as ``cv2.imdecode``; ValueError if damaged."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:  # no bytes, or a size beyond OpenCV's limit
        raise ValueError("an image cannot be decoded") from error
    if pixels is None:
        raise ValueError("an image cannot be decoded")
    return pixels


class PairDataset(torch.utils.data.Dataset):
    """Pairs of one or more shards, in the order of shards and of pairs within them, read at random.

    Only positions are held in memory (about 150 bytes a pair); nothing stays open, so it may go to worker processes.

    Args:
        paths: shard files, or folders that a finished run of ``tools/mine_mask_text_pairs.py`` has filled; or one path.

    Raises:
        OvsegError: a path is missing, a folder is not complete, a shard is truncated or none of ours.
    """

    def __init__(self, paths: Sequence[str | Path] | str | Path):
        given = [paths] if isinstance(paths, str | Path) else paths
        self.shards = [shard for path in given for shard in find_shards(Path(path))]
        self.keys: list[str] = []
        self._starts: list[int] = []  # first pair of each shard
        spans = []
        for shard in self.shards:
            self._starts.append(len(self.keys))
            keys, rows = _index(shard)
            self.keys += keys
            spans += rows
        self._spans = np.array(spans, np.int64).reshape(-1, 2 * len(PARTS))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Pair:
        image, mask, info = self._read(index)
        text = self._checked_info(index, info)["text"]
        try:
            pixels = decode_png(image, cv2.IMREAD_COLOR)[:, :, ::-1]
            inside = decode_png(mask, cv2.IMREAD_GRAYSCALE) > 127
        except ValueError as error:
            raise self._damaged(index, error) from error
        if pixels.shape[:2] != inside.shape:
            raise self._damaged(index, ValueError("crop and mask differ in size"))
        return Pair(np.ascontiguousarray(pixels), inside, text, self.keys[index])

    def info(self, index: int) -> dict[str, Any]:
        """Return what is stored with a pair: "text", "image", "image_id", "caption", "box", "score", "seen".

        "image" is relative to the folder that image names started from in mining.
        """
        return self._checked_info(index, self._read(index, first=2)[0])

    def _checked_info(self, index: int, info: bytes) -> dict[str, Any]:
        try:
            found = json.loads(info)
            if not isinstance(found["text"], str) or not isinstance(found.get("image", ""), str | None):
                raise ValueError("its text is not text")
            if not isinstance(found.get("score"), int | float | None):
                raise ValueError("its score is not a number")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._damaged(index, error) from error
        return found

    def texts(self) -> list[str]:
        """Return the texts of all pairs; reads each pair's JSON, not its images."""
        return [self.info(index)["text"] for index in range(len(self))]

    def find_images(self, root: ImageRoot) -> list[Path]:
        """Return the whole image of each pair, by the name that mining has recorded.

        Raises:
            OvsegError: one is not there, or none was recorded.
        """
        found: dict[str, Path] = {}
        paths = []
        for index, key in enumerate(self.keys):
            name, crop = self.info(index).get("image"), f"pair {key} of {self.shard_of(index)}"
            if not name:
                raise OvsegError(f"{crop} does not name the image that it was cut from: mine the pairs again")
            if name not in found:
                found[name] = root.recorded(name, crop)
            paths.append(found[name])
        return paths

    def shard_of(self, index: int) -> Path:
        """Return the shard of a pair."""
        return self.shards[bisect.bisect_right(self._starts, index) - 1]

    def _read(self, index: int, first: int = 0) -> list[bytes]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        spans = self._spans[index].reshape(-1, 2)[first:].tolist()
        path = self.shard_of(index)
        try:
            with path.open("rb", buffering=0) as file:
                # the parts of a pair are adjacent: one read
                start, stop = min(a for a, _ in spans), max(a + size for a, size in spans)
                file.seek(start)
                data = file.read(stop - start)
        except OSError as error:
            raise OvsegError(f"cannot read {path} ({error.strerror}): check that it is still there") from error
        if len(data) < stop - start:
            raise self._damaged(index, ValueError("it has become shorter"))
        return [data[a - start : a - start + size] for a, size in spans]

    def _damaged(self, index: int, error: Exception) -> OvsegError:
        return _damaged(self.shard_of(index), f"pair {self.keys[index]}: {error}")


def find_shards(path: Path) -> list[Path]:
    """Return a shard, or the shards of a finished folder in order.

    Raises:
        OvsegError: missing, not complete, or without any shard.
    """
    if not path.is_dir():
        if not path.is_file():
            raise OvsegError(f"there is no shard {path}: give a folder or .tar files of mine_mask_text_pairs.py")
        return [path]
    shards = sorted(path.glob(SHARDS))
    if not (path / SUMMARY).is_file():
        what = "its mining did not end" if shards else "it holds no pairs-*.tar"
        raise OvsegError(
            f"the folder {path} has no {SUMMARY}, so {what}: run tools/mine_mask_text_pairs.py with it as --output "
            "(it resumes where it stopped), or name single shards"
        )
    return shards


def _index(shard: Path) -> tuple[list[str], list[list[int]]]:
    """Return the keys of a shard and, for each, offset and size of its ``PARTS``."""
    try:
        samples = index_tar(shard)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise _damaged(shard, error) from error
    except OSError as error:
        raise OvsegError(f"cannot read {shard} ({error.strerror or error}): check its permissions") from error
    for key, parts in samples.items():
        if missing := [part for part in PARTS if part not in parts]:
            raise _damaged(shard, f"{key} has no {missing[0]}")
    return list(samples), [[n for part in PARTS for n in parts[part]] for parts in samples.values()]


def _damaged(shard: Path, what: object) -> OvsegError:
    return OvsegError(
        f"the shard {shard} is truncated or damaged ({what}): copy it again, or delete it and the {SUMMARY} of its "
        "folder and run tools/mine_mask_text_pairs.py again, which makes only what is missing"
    )


def iterate_infos(shard: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON of each pair of one shard, with its "key" added."""
    dataset = PairDataset([shard])
    for index, key in enumerate(dataset.keys):
        yield {**dataset.info(index), "key": key}
