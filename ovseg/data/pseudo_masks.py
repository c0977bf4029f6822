"""Pseudo-masks on disk: COCO RLE JSON in shards, found by image and read one image at a time.

``tools/make_pseudo_masks.py`` fills a folder with ``masks-00000.json``, ... and, last, ``summary.json``. Each shard is
a COCO file of its own (``images``, ``annotations``, ``categories``). In addition, all annotations of an image are in
one line, so that an index needs no more than the places of lines: 652,000 images take about 200 MB of memory, not the
gigabytes of their masks.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ovseg.errors import OvsegError
from ovseg.io.run_lengths import decode_mask

SUMMARY = "summary.json"
SHARD = "masks-{:05d}.json"
SHARDS = "masks-*.json"
CATEGORIES = [{"id": 1, "name": "mask"}]
XYWH = 1  # detectron2.structures.BoxMode.XYWH_ABS

_HEAD, _MIDDLE, _END = '{"categories": %s,\n"images": [\n', '\n],\n"annotations": [\n', "\n]}\n"
_OWNER = re.compile(rb'\{"image_id": (\d+), ')

Place = tuple[str, int, int]  # file of a shard; position and length of an image's line in bytes, 0 without masks


@dataclass(frozen=True)
class ImageMasks:
    """The masks of one image before they are written.

    Attributes:
        image_id: number of the image in its COCO files; unique.
        file_name: relative to the folder of all images, with slashes; unique.
        height: of the image.
        width: of the image.
        masks: for each mask ``segmentation`` ({"size": [H, W], "counts": text}), ``bbox`` [x, y, w, h], ``area`` and
            ``score``.
    """

    image_id: int
    file_name: str
    height: int
    width: int
    masks: Sequence[Mapping[str, Any]]


def shard_text(images: Sequence[ImageMasks], first_id: int = 1) -> str:
    """Return the content of a shard, ASCII.

    Args:
        images: in order.
        first_id: of its annotations.
    """
    rows, lines, number = [], [], first_id
    for image in images:
        row = {"id": image.image_id, "file_name": image.file_name, "height": image.height, "width": image.width}
        rows.append(json.dumps(row))
        annotations = []
        for mask in image.masks:
            own = {"image_id": image.image_id, "id": number, "category_id": CATEGORIES[0]["id"], "iscrowd": 0}
            annotations.append(json.dumps(own | dict(mask)))
            number += 1
        if annotations:
            lines.append(", ".join(annotations))
    return _HEAD % json.dumps(CATEGORIES) + ",\n".join(rows) + _MIDDLE + ",\n".join(lines) + _END


class PseudoMasks(Mapping[str, "list[dict[str, Any]]"]):
    """Mapping of file names to the annotations of their masks, read from disk on each access.

    Names are those in the shards, relative to the folder of all images; :meth:`find` takes paths.

    Args:
        folder: filled by a finished run of ``tools/make_pseudo_masks.py``.

    Attributes:
        image_root: the folder that names are relative to, absolute, where it was when the masks were made; None for
            older masks, which do not record it (the command that made them adds it).

    Raises:
        OvsegError: missing, unfinished, or a shard is damaged (the message names it).
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.shards, self.image_root = find_shards(self.folder)
        self._rows: dict[str, int] = {}
        self._depth, sizes, places = 1, [], []
        for number, shard in enumerate(self.shards):
            for name, size, start, length in _index(shard):
                if name in self._rows:
                    raise OvsegError(f"{shard} holds {name} a second time: make its folder again from the start")
                self._rows[name] = len(places)
                self._depth = max(self._depth, name.count("/") + 1)
                sizes.append(size)
                places.append((number, start, length))
        self._sizes = np.array(sizes, np.int32).reshape(-1, 2)
        self._places = np.array(places, np.int64).reshape(-1, 3)

    def find_exact(self, file_name: str | Path) -> str | None:
        """Return the name in the shards of an image file that is where it was when the masks were made, else None."""
        if self.image_root is None:
            return None
        path, folder = os.path.abspath(file_name), os.path.join(self.image_root, "")
        name = path.removeprefix(folder).replace(os.sep, "/")
        return name if path.startswith(folder) and name in self._rows else None

    def find(self, file_name: str | Path) -> str | None:
        """Return the name in the shards of an image file, the longest that its path ends in; None if there is none."""
        parts = PurePosixPath(Path(file_name).as_posix()).parts
        names = ("/".join(parts[-depth:]) for depth in range(min(self._depth, len(parts)), 0, -1))
        return next((name for name in names if name in self._rows), None)

    def place(self, name: str) -> Place:
        """Return where :func:`read_annotations` finds the masks of an image, a small value for a dataset dict."""
        number, start, length = self._places[self._rows[name]].tolist()
        return str(self.shards[number]), start, length

    def size(self, name: str) -> tuple[int, int]:
        """Return height and width of an image."""
        height, width = self._sizes[self._rows[name]].tolist()
        return height, width

    def __getitem__(self, name: str) -> list[dict[str, Any]]:
        return read_annotations(self.place(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def read_pseudo_masks(folder: str | Path) -> PseudoMasks:
    """Return the pseudo-masks of a folder; see :class:`PseudoMasks`."""
    return PseudoMasks(folder)


def read_annotations(place: Place) -> list[dict[str, Any]]:
    """Return the masks of one image as Detectron2's ``annotations``, by descending confidence.

    Args:
        place: from :meth:`PseudoMasks.place`, or ``pseudo_masks`` of a dataset dict.

    Returns:
        for each mask ``segmentation`` (COCO's RLE: ``size`` [H, W] and ``counts``, text), ``bbox``, ``bbox_mode``
        (XYWH), ``area``, ``score`` (confidence), ``category_id`` 0 and ``iscrowd`` 0.

    Raises:
        OvsegError: the shard is gone or damaged.
    """
    file, start, length = place
    if not length:
        return []
    try:
        with open(file, "rb", buffering=0) as shard:
            shard.seek(start)
            line = shard.read(length)
        if len(line) < length:
            raise ValueError("it has become shorter")
        annotations = json.loads(b"[" + line + b"]")
        for annotation in annotations:
            annotation |= {"category_id": 0, "bbox_mode": XYWH}
            if not isinstance(annotation["segmentation"]["counts"], str):
                raise ValueError("its run lengths are not text")
    except OSError as error:
        raise OvsegError(f"cannot read {file} ({error.strerror}): check that it is still there") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(file, error) from error
    return annotations


def read_masks(place: Place, height: int, width: int) -> Iterator[np.ndarray]:
    """Yield the masks of one image one at a time, each bool (H, W), by descending confidence.

    Args:
        place: as for :func:`read_annotations`.
        height: H, of the image.
        width: W, of the image.

    Raises:
        OvsegError: the shard is gone or damaged, or its masks have another size than the image.
    """
    for annotation in read_annotations(place):
        size = annotation["segmentation"].get("size")
        if size != [height, width]:
            raise OvsegError(
                f"a mask in {place[0]} has the size {size} (height, width), but its image [{height}, {width}]: make "
                "the pseudo-masks again from these images"
            )
        try:
            mask = decode_mask(annotation["segmentation"]["counts"], height, width)
        except (ValueError, TypeError) as error:
            raise _damaged(place[0], error) from error
        yield mask


def find_shards(folder: Path) -> tuple[list[Path], Path | None]:
    """Return the shards of a finished folder in order, and its ``image_root`` (see :class:`PseudoMasks`).

    Raises:
        OvsegError: missing, not complete, or without any shard.
    """
    if not folder.is_dir():
        raise OvsegError(f"there is no folder of pseudo-masks {folder}: make it with tools/make_pseudo_masks.py")
    shards = sorted(folder.glob(SHARDS))
    remedy = "run tools/make_pseudo_masks.py with it as --output (it resumes where it stopped)"
    if not (folder / SUMMARY).is_file():
        what = "the run that fills it did not end" if shards else f"it holds no {SHARDS}"
        raise OvsegError(f"the folder {folder} has no {SUMMARY}, so {what}: {remedy}")
    try:
        summary = json.loads((folder / SUMMARY).read_bytes())
        expected, root = summary["shards"], summary.get("image_root")
        image_root = None if root is None else Path(root)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OvsegError(f"{folder / SUMMARY} is damaged: delete it and {remedy}") from error
    if expected != len(shards):
        raise OvsegError(f"{folder} holds {len(shards)} of {expected} shards: {remedy}")
    return shards, image_root


def read_shard(shard: Path) -> dict[str, Any]:
    """Return the content of a shard.

    Raises:
        OvsegError: it is damaged or cannot be read.
    """
    try:
        content = json.loads(shard.read_bytes())
        for part in ("images", "annotations"):
            content[part] = list(content[part])
    except OSError as error:
        raise OvsegError(f"cannot read {shard} ({error.strerror or error}): check its permissions") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(shard, error) from error
    return content


def _index(shard: Path) -> Iterator[tuple[str, tuple[int, int], int, int]]:
    """Yield file name, size, position and length of the line of annotations (0, 0 without masks) of each image."""
    images: dict[int, tuple[str, tuple[int, int]]] = {}
    lines: dict[int, tuple[int, int]] = {}
    try:
        with shard.open("rb") as file:
            position, section = 0, b""
            for line in file:
                content = line.rstrip(b"\n").removesuffix(b",")
                if content.endswith((b'"images": [', b'"annotations": [')) or content in (b"]", b"]}"):
                    section = content
                elif not content:
                    pass  # a section with nothing in it
                elif section.endswith(b'"images": ['):
                    row = json.loads(content)
                    images[row["id"]] = str(row["file_name"]), (int(row["height"]), int(row["width"]))
                elif section.endswith(b'"annotations": ['):
                    owner = _OWNER.match(content)
                    if owner is None or not content.endswith(b"}"):
                        raise ValueError(f"the line at byte {position} is none of ours")
                    lines[int(owner[1])] = position, len(content)
                position += len(line)
        if section != b"]}":
            raise ValueError("it ends too early")
        if strangers := lines.keys() - images.keys():
            raise ValueError(f"it has masks of image {min(strangers)}, which it does not list")
    except OSError as error:
        raise OvsegError(f"cannot read {shard} ({error.strerror or error}): check its permissions") from error
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise _damaged(shard, error) from error
    for image_id, (name, size) in images.items():
        yield name, size, *lines.get(image_id, (0, 0))


def _damaged(shard: str | os.PathLike[str], what: object) -> OvsegError:
    return OvsegError(
        f"the shard {shard} is truncated or damaged ({what}): copy it again, or delete it and the {SUMMARY} of its "
        "folder and run tools/make_pseudo_masks.py again, which makes only what is missing"
    )
