"""Records of labelled images: lines of JSON that are appended as images are done, so that any end of a run keeps them.

A line holds an image's regions, or the reason for which it failed. Each process of a run appends to a file of its own,
``records-0.jsonl``, ``records-1.jsonl``, ... in the output folder. Files are read line by line, and only an index of
them is kept in memory.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ovseg.errors import OvsegError
from ovseg.io.files import explained_writing
from ovseg.result.regions import LabelledImage, Region, score_of
from ovseg.result.segmentation import Segmentation

PATTERN = "records-{}.jsonl"


@dataclass(frozen=True)
class Entry:
    """What the index knows of an image's record.

    Attributes:
        file, offset: where the record is.
        stamp: size in bytes and time of modification (ns) of the image when it was read.
        reason: for which it failed; None for a labelled image.
        size: height and width in pixels; (0, 0) if it failed.
        areas: pixels of each word that was found, by its index.
        regions: number of regions.
        score: mean score over the pixels of all regions.
    """

    file: Path
    offset: int
    stamp: tuple[int, int]
    reason: str | None = None
    size: tuple[int, int] = (0, 0)
    areas: Mapping[int, int] | None = None
    regions: int = 0
    score: float = 0.0


def record_file(output: Path, process: int) -> Path:
    """Return the file of a process."""
    return output / PATTERN.format(process)


def stamp_of(path: Path) -> tuple[int, int]:
    """Return size in bytes and time of modification (ns) of an image; (0, 0) if there is no such file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return 0, 0
    return found.st_size, found.st_mtime_ns


def key_of(path: Path) -> str:
    """Return the name of an image in records: its absolute path, without ``..``."""
    return os.path.abspath(path)


def record_of(image: Path, stamp: tuple[int, int], result: Segmentation) -> str:
    """Return the line of a labelled image, with its :func:`stamp_of` from before it was read."""
    regions = result.regions().regions
    areas: dict[int, int] = {}
    for region in regions:
        areas[region.label] = areas.get(region.label, 0) + region.area
    entry = {
        "image": key_of(image),
        "stamp": stamp,
        "size": result.label_map.shape,
        "areas": areas,
        "score": score_of(regions) if regions else 0.0,
        "regions": [region.to_json() for region in regions],
    }
    return _line(entry)


def failed_record(image: Path, stamp: tuple[int, int], reason: str) -> str:
    """Return the line of an image that failed, with its :func:`stamp_of` from before it was read."""
    return _line({"image": key_of(image), "stamp": stamp, "reason": reason})


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, separators=(",", ":")) + "\n"  # ASCII: no line of it ends within a letter


class RecordWriter:
    """Appends records to a file.

    Args:
        path: the file; an unfinished last line, of a process that was killed, is removed.
    """

    def __init__(self, path: Path):
        self.path = path
        with explained_writing(path):
            if path.exists():
                _remove_unfinished_line(path)
            self._file: TextIO = path.open("a", encoding="ascii")

    def append(self, line: str) -> None:
        """Append a record; it survives the end of the process, however it ends.

        Raises:
            CannotWrite: the disk is full.
        """
        with explained_writing(self.path):
            self._file.write(line)
            self._file.flush()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        with explained_writing(self.path):
            self._file.close()


def _remove_unfinished_line(path: Path) -> None:
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            if (found := file.read(end - start).rfind(b"\n")) >= 0:
                file.truncate(start + found + 1)
                return
            end = start
        file.truncate(0)


def read_index(output: Path, images: Iterable[Path], words: int) -> dict[str, Entry]:
    """Return the entries of images by :func:`key_of`, those that were made from the images as they are now.

    Of several entries of an image, one that is labelled wins. Lines that are damaged or unfinished, and those of images
    that have changed since, are left out: these images are labelled again.

    Args:
        output: folder of the records.
        images: entries of other images are left out.
        words: K, the number of words.
    """
    stamps = {key_of(image): stamp_of(image) for image in images}
    index: dict[str, Entry] = {}
    for path in sorted(output.glob(PATTERN.format("*"))):
        with path.open("rb") as file:
            offset = 0
            for line in file:
                found = _entry(line, path, offset, words)
                offset += len(line)
                if found is None or stamps.get(found[0]) != found[1].stamp:
                    continue
                if found[1].reason is None or found[0] not in index:
                    index[found[0]] = found[1]
    return index


def _entry(line: bytes, path: Path, offset: int, words: int) -> tuple[str, Entry] | None:
    if not line.endswith(b"\n"):  # the next writer removes it
        return None
    try:
        content = json.loads(line)
        image, stamp = content["image"], tuple(content["stamp"])
        if not isinstance(image, str) or len(stamp) != 2 or not all(map(_is_count, stamp)):
            return None
        if (reason := content.get("reason")) is not None:
            return image, Entry(path, offset, stamp, str(reason))
        size, areas = tuple(content["size"]), {int(label): area for label, area in content["areas"].items()}
        regions, score = content["regions"], content["score"]
        if not (len(size) == 2 and all(_is_count(side) and side > 0 for side in size) and _is_score(score)):
            return None
        if not all(0 <= label < words and _is_count(area) for label, area in areas.items()):
            return None
        if not all(_is_region(region, size, words) for region in regions):
            return None
        return image, Entry(path, offset, stamp, None, size, areas, len(regions), score)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_score(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_region(region: Mapping[str, Any], size: tuple[int, int], words: int) -> bool:
    """Return whether values have the types of :meth:`Region.to_json`, and the box is in the image."""
    left, top, width, height = region["box"]
    inside = all(map(_is_count, region["box"])) and left + width <= size[1] and top + height <= size[0]
    known = _is_count(region["label"]) and region["label"] < words and isinstance(region["counts"], str)
    return inside and width > 0 and height > 0 and known and _is_score(region["score"])


def read_records(entries: Mapping[str, Entry], names: tuple[str, ...]) -> Iterator[LabelledImage]:
    """Yield the images of entries, in their order.

    Args:
        entries: by the name of the image in label files; those of failed images are left out.
        names: K words.

    Raises:
        OvsegError: a record is damaged.
    """
    files: dict[Path, Any] = {}
    try:
        for name, entry in entries.items():
            if entry.reason is not None:
                continue
            file = files.get(entry.file) or files.setdefault(entry.file, entry.file.open("rb"))
            file.seek(entry.offset)
            try:
                regions = tuple(map(Region.from_json, json.loads(file.readline())["regions"]))
            except (ValueError, KeyError, TypeError) as error:
                raise OvsegError(f"{entry.file} is damaged at {name}: delete it and run again") from error
            yield LabelledImage(name, entry.size, names, regions)
    finally:
        for file in files.values():
            file.close()
