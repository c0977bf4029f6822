"""Captioned images: COCO Captions, Localized Narratives, and tables (CSV, TSV)."""

from __future__ import annotations

import csv
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ovseg.errors import OvsegError, reason_of
from ovseg.io.files import is_file
from ovseg.io.inputs import IMAGE_SUFFIXES, find_inputs, is_video

IMAGE_COLUMNS = ("filepath", "file_name", "filename", "file", "image", "image_path", "path", "image_id")
CAPTION_COLUMNS = ("title", "caption", "captions", "text", "sentence")
ALLOWED_BAD = 0.01  # share of entries that may be unusable before the user is asked

_Entry = tuple[str, str, str, str]  # where it stands, image file, image id, caption


@dataclass(frozen=True)
class CaptionedImage:
    """One image file with its captions.

    Attributes:
        path: the image file; it was there when the captions were read.
        image_id: the data set's name for it.
        captions: stripped, in the order of the file; none where the source has no captions.
    """

    path: Path
    image_id: str
    captions: tuple[str, ...]


@dataclass
class CaptionedImages:
    """The images of a source in its order, and what could not be used.

    Attributes:
        images: each file once.
        entries: how many captions the source holds, usable or not.
        bad: "where: what is wrong" for each that is not.
    """

    images: list[CaptionedImage] = field(default_factory=list)
    entries: int = 0
    bad: list[str] = field(default_factory=list)


def read_captions(
    source: str | Path,
    image_root: str | Path | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    delimiter: str | None = None,
    need_images: bool = True,
) -> CaptionedImages:
    """Read captions; the suffix determines the format.

    * ``.json``: COCO Captions; * ``.jsonl``: Localized Narratives; * ``.csv``, ``.tsv``, ``.txt``: a table with a
      header, a line for each caption (tab separated ones know no quoting).

    Args:
        source: the file.
        image_root: folder that relative image names start from; default: the file's own folder.
        image_column, caption_column: names of a table's columns; by default the usual ones are looked for.
        delimiter: between a table's columns; default: a tab; for ``.csv`` a comma, unless its header has only tabs.
        need_images: leave out captions whose image file is not there; otherwise the paths are only what they should be.

    Raises:
        OvsegError: the file is missing, cannot be read, is not of its format as a whole, or holds no usable caption.
            Single bad lines, missing images and empty captions are counted and left out.
    """
    source = Path(source)
    root = Path(image_root) if image_root else source.parent
    for path, what in ((source, is_file(source)), (root, root.is_dir())):
        if not what:
            raise OvsegError(f"there is no {'captions file' if path is source else 'image folder'} {path}")
    result = CaptionedImages()
    suffix = source.suffix.lower()
    try:
        if suffix == ".json":
            entries = _coco(source, result)
        elif suffix == ".jsonl":
            entries = _narratives(source, root if need_images else None, result)
        elif suffix in (".csv", ".tsv", ".txt"):
            entries = _table(source, image_column, caption_column, delimiter, result)
        else:
            raise OvsegError(f"captions can be read from .json, .jsonl, .csv and .tsv files, not from {source}")
        _gather(root, entries, result, need_images)
    except OSError as error:
        raise OvsegError(f"cannot read {source} ({error.strerror}): check its permissions") from error
    if not result.images:
        detail = f": {result.bad[0]}" if result.bad else ""
        raise OvsegError(f"no caption of {source} can be used{detail}; check --image-root (now {root}) and the columns")
    return result


def images_of(arguments: Sequence[str], root: str | Path | None = None) -> CaptionedImages:
    """Return image files without captions; the stem of a file is its ``image_id``.

    Args:
        arguments: folders (without their subfolders), files, and patterns with ``*`` and ``**``.
        root: folder that relative ones start from; default: the working folder.

    Raises:
        OvsegError: there are none. Those that are missing are counted and left out.
    """
    places = [str(argument if root is None else Path(root) / argument) for argument in arguments]
    files, missing = find_inputs(places)
    files = [file for file in files if not is_video(file)]
    bad = [f"{argument}: {reason}" for argument, reason in missing]
    if not files:
        raise OvsegError(f"there is no image to work on: {bad[0] if bad else f'{places[0]} holds none'}")
    return CaptionedImages([CaptionedImage(file, file.stem, ()) for file in files], len(files) + len(bad), bad)


def check_bad(bad: int, entries: int, what: str, listed_in: Path, allow: bool) -> None:
    """Refuse a source of which more than ``ALLOWED_BAD`` cannot be used, unless the user allows it."""
    if bad > ALLOWED_BAD * entries and not allow:
        raise OvsegError(
            f"{bad} of {entries} {what} ({bad / entries:.1%}) cannot be used; they are listed in {listed_in}: correct "
            "them, or add --allow-bad to leave them out"
        )


def _gather(root: Path, entries: Iterator[_Entry], result: CaptionedImages, need_images: bool) -> None:
    """Group captions by image file; note the entries without caption or image."""
    captions: dict[str, list[str]] = defaultdict(list)
    ids: dict[str, str] = {}
    exists: dict[str, bool] = {}
    for where, file, image_id, caption in entries:
        caption = " ".join(caption.split())
        if not caption:
            result.bad.append(f"{where}: the caption is empty")
            continue
        if any("\ud800" <= letter <= "\udfff" for letter in caption + file):
            result.bad.append(f"{where}: not UTF-8 text")
            continue
        if file not in exists:
            exists[file] = not need_images or is_file(root / file)
        if not exists[file]:
            result.bad.append(f"{where}: there is no image {str(root / file)[:300]}")
            continue
        captions[file].append(caption)
        ids.setdefault(file, image_id)
    result.images = [CaptionedImage(root / file, ids[file], tuple(texts)) for file, texts in captions.items()]


def _coco(source: Path, result: CaptionedImages) -> Iterator[_Entry]:
    try:
        content = json.loads(source.read_bytes())
        files = {image["id"]: image["file_name"] for image in content["images"]}
        annotations = list(content["annotations"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise OvsegError(
            f"{source} is not COCO's captions JSON, an object with images and annotations ({reason_of(error)})"
        ) from error
    for number, annotation in enumerate(annotations):
        where = f"annotation {number} of {source.name}"
        result.entries += 1
        try:
            image_id, caption = annotation["image_id"], annotation["caption"]
            file = files[image_id]
            yield where, _text(file), str(image_id), _text(caption)
        except (KeyError, TypeError, ValueError) as error:
            result.bad.append(f"{where}: {reason_of(error)}")


def _narratives(source: Path, root: Path | None, result: CaptionedImages) -> Iterator[_Entry]:
    find = _ImageFinder(root) if root else lambda image_id, dataset_id: image_id
    with source.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"line {number} of {source.name}"
            result.entries += 1
            try:
                narrative = json.loads(line)
                image_id, caption = str(narrative["image_id"]), _text(narrative["caption"])
                yield where, find(image_id, str(narrative.get("dataset_id", ""))), image_id, caption
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                result.bad.append(f"{where}: {reason_of(error)}")


class _ImageFinder:
    """Finds the file of an image id below a folder: the stem itself, or padded as in COCO or ADE20K."""

    def __init__(self, root: Path):
        self._files: dict[str, list[str]] = defaultdict(list)
        for folder, _, names in os.walk(root, followlinks=True):
            for name in sorted(names):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() in IMAGE_SUFFIXES:
                    self._files[stem].append(os.path.relpath(os.path.join(folder, name), root))

    def __call__(self, image_id: str, dataset_id: str) -> str:
        """Return the path below the root; ValueError for no or several files that match equally well."""
        stems = [image_id, os.path.splitext(image_id)[0]]
        if image_id.isdecimal():
            stems += [image_id.zfill(12), f"ADE_train_{image_id.zfill(8)}", f"ADE_val_{image_id.zfill(8)}"]
        found = [file for stem in dict.fromkeys(stems) for file in self._files.get(stem, ())]
        if len(found) > 1:  # train2017/000000000009.jpg of mscoco_train2017
            found = [file for file in found if any(part in dataset_id for part in Path(file).parent.parts)] or found
            shallowest = min(file.count(os.sep) for file in found)
            found = [file for file in found if file.count(os.sep) == shallowest]
        if len(found) != 1:
            raise ValueError(f"{len(found) or 'no'} image files for image_id {image_id!r}")
        return found[0]


def _table(
    source: Path, image_column: str | None, caption_column: str | None, delimiter: str | None, result: CaptionedImages
) -> Iterator[_Entry]:
    with source.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        first = file.readline()
        file.seek(0)
        if delimiter is None:
            comma = source.suffix.lower() == ".csv" and ("," in first or "\t" not in first)
            delimiter = "," if comma else "\t"
        if len(delimiter) != 1:
            raise OvsegError(f"the delimiter {delimiter!r} must be a single character")
        quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
        rows = csv.reader(file, delimiter=delimiter, quoting=quoting)
        try:
            header = [name.strip() for name in next(rows, [])]
        except csv.Error as error:
            raise OvsegError(f"{source} is not a table of text: its first line is damaged ({error})") from error
        image = _column(source, header, image_column, IMAGE_COLUMNS, "--image-column")
        caption = _column(source, header, caption_column, CAPTION_COLUMNS, "--caption-column")
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                result.entries += 1
                result.bad.append(f"line {rows.line_num} of {source.name}: {error}")
                continue
            if not row:
                continue
            result.entries += 1
            where = f"line {rows.line_num} of {source.name}"
            if len(row) != len(header):
                result.bad.append(f"{where}: {len(row)} columns instead of {len(header)}")
                continue
            name = row[image].strip()
            yield where, name, Path(name).stem, row[caption]


def _column(source: Path, header: list[str], name: str | None, usual: tuple[str, ...], option: str) -> int:
    for candidate in (name,) if name else usual:
        if candidate in header:
            return header.index(candidate)
    shown = ", ".join(map(repr, header))[:200] or "nothing"
    raise OvsegError(
        f"{source} has no column {name or ' or '.join(usual[:3])}: its first line holds {shown}; name one with "
        f"{option} (a list without a header, as Conceptual Captions', needs one, and local files for web addresses)"
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text")
    return value
