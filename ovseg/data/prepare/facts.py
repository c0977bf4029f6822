"""Files of complete data sets, for preparation and checks: a line for each folder in ``facts.json``.

Counts and checksums are those of the released file lists (see ``datasets/README.md`` for the sources). A checksum is
that of :func:`ovseg.data.file_list.file_list_checksum`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

# usual places of the list of the augmented training set, which is not in the released archives
VOC_TRAIN_AUG_LISTS = ("SegmentationAug/train_aug.txt", "Segmentation/train_aug.txt", "Segmentation/trainaug.txt")
CONTEXT_LISTS = {
    "val": ("pascalcontext_val.txt", "ImageSets/SegmentationContext/val.txt"),
    "train": ("ImageSets/SegmentationContext/train.txt",),
}


@dataclass(frozen=True)
class Labels:
    """Content of the label files of a folder.

    Attributes:
        classes: values are 0 .. classes - 1.
        void: one more value; 65535 means 16 bit.
        images: folder of the images; each label file must have one, of its size. None: not checked.
        image_suffix: rest of the images' names.
        all_occur: the complete folder holds every class.
        may_lack: where every pixel is ignored there is no file.
    """

    classes: int
    void: int | None = 255
    images: str | None = None
    image_suffix: str = ".jpg"
    all_occur: bool = False
    may_lack: bool = False


@dataclass(frozen=True)
class Folder:
    """One folder of a data set, below the root.

    Attributes:
        path: with ``/``.
        counts: numbers of files that the complete folder may have; empty: any.
        suffix: rest of the names.
        checksum: of the stems, when there are ``counts[0]`` of them.
        names: where the stems are listed: a pattern such as ``ADE_val_{:08d}``, counted from 1, or list files, of which
            the first that is there counts; by default those of the labels' images.
        labels: what they hold; None: not label files.
        made: by a script of ``datasets/``; the others are as released.
        short_side: largest length of the images' shorter side, in pixels.
        recursive: files lie in folders below, too.
    """

    path: str
    counts: tuple[int, ...] = ()
    suffix: str = ".jpg"
    checksum: str | None = None
    names: tuple[str, ...] = ()
    labels: Labels | None = None
    made: bool = False
    short_side: int | None = None
    recursive: bool = False


def _read_table() -> tuple[dict[str, str], dict[str, tuple[Folder, ...]]]:
    content = json.loads(resources.files(__package__).joinpath("facts.json").read_text(encoding="utf-8"))
    checksums = content["checksums"]

    def folder(counts: Sequence[int] = (), checksum: str = "", names: Sequence[str] = (), **row: Any) -> Folder:
        labels = Labels(**row.pop("labels")) if "labels" in row else None
        return Folder(counts=tuple(counts), checksum=checksums.get(checksum), names=tuple(names), labels=labels, **row)

    return checksums, {key: tuple(folder(**row) for row in rows) for key, rows in content["folders"].items()}


# checksums by name; folders by the names of the scripts, prepare_<key>.py
CHECKSUMS, FOLDERS = _read_table()


def expected_files(path: str, found: int) -> int:
    """Return the number of files of a folder of :data:`FOLDERS` when complete.

    Of several possible numbers it is ``found``, if that is one of them. KeyError for a folder without such a number.
    """
    counts = {folder.path: folder.counts for folders in FOLDERS.values() for folder in folders if folder.counts}
    return found if found in counts[path] else counts[path][0]
