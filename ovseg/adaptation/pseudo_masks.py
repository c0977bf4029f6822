"""Pseudo-masks of a data set: a teacher's confident proposals, as labels of images that have none (OpenSeg, 3.4).

From the options of ``tools/make_pseudo_masks.py`` to ``summary.json``; the rule that selects masks is
:func:`ovseg.proposals.pseudo_labels.pseudo_masks`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from rich.console import Console

from ovseg.adaptation.pseudo_options import PseudoOptions, check_options
from ovseg.adaptation.pseudo_teacher import RULE, FoundMasks, Teacher
from ovseg.adaptation.shard_making import fill_shards
from ovseg.adaptation.shard_work import (
    Kind,
    Work,
    check_images,
    default_shard_size,
    filled,
    fingerprint,
    teacher_settings,
    write_lines,
)
from ovseg.data.caption_files import CaptionedImage, CaptionedImages, check_bad, images_of, read_captions
from ovseg.data.pseudo_masks import SHARD, SUMMARY, ImageMasks, read_shard, shard_text
from ovseg.data.worlds import is_split, split_records
from ovseg.errors import OvsegError
from ovseg.evaluation.report import write_json
from ovseg.io.files import atomic_path, is_file

LIST_SUFFIXES = (".txt", ".lst")  # of files that name an image in each line
CAPTION_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
BAD_IMAGES = "bad_entries.txt"


class MaskFile:
    """A shard of pseudo-masks, as :class:`ovseg.adaptation.shard_work.ShardFile`.

    Args:
        path: of the shard.
        root: folder that names of images start from.
        own_ids: the numbers of images are those of the data set, see :func:`has_own_ids`.
        max_masks: largest number of masks of an image.
    """

    def __init__(self, path: Path, root: Path, own_ids: bool, max_masks: int):
        self.path, self.root, self.own_ids, self.max_masks = path, root, own_ids, max_masks
        self.images: list[ImageMasks] = []
        self.first_id = 1

    def __enter__(self) -> MaskFile:
        return self

    def add(self, index: int, item: CaptionedImage, found: FoundMasks) -> None:
        if not self.images:
            self.first_id = index * self.max_masks + 1
        number = int(item.image_id) if self.own_ids else index + 1
        self.images.append(ImageMasks(number, name_of(item, self.root), found.height, found.width, found.masks))

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if kind is None:
            with atomic_path(self.path) as temporary, open(temporary, "w", encoding="ascii") as file:
                file.write(shard_text(self.images, self.first_id))
                file.flush()
                os.fsync(file.fileno())


def find_images(options: PseudoOptions) -> tuple[CaptionedImages, Path]:
    """Return the images of ``--data``, and the folder that their names start from.

    Raises:
        OvsegError: there are none, a file cannot be read, or several sources of which one is not a plain image.
    """
    root, data = options.image_root, list(options.data)
    source = Path(data[0])
    alone = is_split(data[0]) or (is_file(source) and source.suffix.lower() in (*LIST_SUFFIXES, *CAPTION_SUFFIXES))
    if alone and len(data) > 1:
        raise OvsegError(f"--data {data[0]} is a list or a split, which stands alone: leave out {' '.join(data[1:])}")
    if is_split(data[0]):
        records = split_records(data[0], options.max_images)
        images = [CaptionedImage(Path(record["file_name"]), str(record["image_id"]), ()) for record in records]
        found = CaptionedImages(images, len(images))
    elif alone and source.suffix.lower() in LIST_SUFFIXES and not options.image_column:
        found = images_of(_lines(source), root or source.parent)
        root = root or source.parent
    elif alone:
        found = read_captions(source, root, options.image_column, options.caption_column, options.delimiter)
        root = root or source.parent
    else:
        found = images_of(data)
    found.images = [CaptionedImage(item.path, item.image_id, ()) for item in found.images[: options.max_images]]
    return found, root or Path(os.path.commonpath([item.path.absolute().parent for item in found.images]))


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as error:
        raise OvsegError(f"cannot read {file} ({error.strerror}): check its permissions") from error
    if any("\t" in line for line in lines[:1]):
        raise OvsegError(f"{file} is a table, not a list of images: name its column of images with --image-column")
    return [line.strip() for line in lines if line.strip()]


def name_of(image: CaptionedImage, root: Path) -> str:
    """Return the name of an image in shards: relative to ``root``, or for one outside of it its own."""
    path, top = Path(os.path.abspath(image.path)), os.path.abspath(root)
    return path.relative_to(top).as_posix() if path.is_relative_to(top) else path.name


def names_of(images: Sequence[CaptionedImage], root: Path) -> list[str]:
    """Return the :func:`name_of` each image.

    Raises:
        OvsegError: two images have one name.
    """
    names = [name_of(image, root) for image in images]
    first: dict[str, Path] = {}
    for name, image in zip(names, images, strict=True):
        path = Path(os.path.abspath(image.path))
        if first.setdefault(name, path) != path:
            raise OvsegError(f"{first[name]} and {path} would both be named {name}: give their folder as --image-root")
    return names


def has_own_ids(images: Sequence[CaptionedImage]) -> bool:
    """Return whether images are numbered as in the data set, since all are distinct numbers there; else 1, 2, ..."""
    own = [image.image_id for image in images]
    numbers = all(text.isascii() and text.isdecimal() and len(text) < 19 for text in own)
    return numbers and len(set(map(int, own))) == len(own)


def settings_of(options: PseudoOptions, work: Work, names: Sequence[str], own_ids: bool) -> dict[str, Any]:
    """Return what the masks depend on; weights and configuration by their contents."""
    settings = {name: getattr(options, name) for name in (*RULE, "max_size")}
    settings |= {"shard_size": work.shard_size, "images": len(names)}
    ids = [int(image.image_id) for image in work.images] if own_ids else range(1, len(names) + 1)
    settings["images_sha256"] = fingerprint(zip(names, ids, strict=True))
    return settings | teacher_settings(options.config_file, options.weights, options.opts)


def run(options: PseudoOptions) -> None:
    """Make pseudo-masks in this process, one of those of the run; the main one writes what belongs to all.

    Raises:
        OvsegError: as the command line shows them.
    """
    check_options(options)
    found, root = find_images(options)
    names, own_ids = names_of(found.images, root), has_own_ids(found.images)
    kind = Kind("masks", SHARD, partial(MaskFile, root=root, own_ids=own_ids, max_masks=options.max_masks))
    work = Work(kind, found.images, options.shard_size or default_shard_size(len(names)), options.output)
    if comm.is_main_process() and found.bad:
        write_lines(options.output / BAD_IMAGES, found.bad)
    check_bad(len(found.bad), found.entries, "entries", options.output / BAD_IMAGES, options.allow_bad)

    def make(missing: Sequence[int]) -> None:
        fill_shards(work, partial(Teacher.of, options), missing, options.allow_bad, options.device, options.ray)

    with filled(work, lambda: settings_of(options, work, names, own_ids), make):
        if comm.is_main_process():
            _finish(options, work, root, len(found.bad))


def _finish(options: PseudoOptions, work: Work, root: Path, bad_entries: int) -> None:
    """Write ``bad_images.txt`` and, as the last file, ``summary.json``."""
    bad = check_images(work, options.allow_bad)
    masks = images = with_masks = 0
    scores = 0.0
    for shard in work.shards:
        content = read_shard(shard)
        masks, images = masks + len(content["annotations"]), images + len(content["images"])
        with_masks += len({annotation["image_id"] for annotation in content["annotations"]})
        scores += sum(annotation["score"] for annotation in content["annotations"])
    summary = {
        "data": " ".join(map(str, options.data)),
        "image_root": os.path.abspath(root),  # names are relative to it
        "images": images,
        "images_with_masks": with_masks,
        "masks": masks,
        "masks_per_image": round(masks / max(images, 1), 2),
        "mean_confidence": round(scores / masks, 4) if masks else None,
        "bad": len(bad) + bad_entries,
        "shards": len(work.shards),
    }
    write_json(work.output / SUMMARY, summary)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(
        f"{work.output}: {masks} masks of {with_masks} of {images} images ({summary['masks_per_image']} an image, mean "
        f"confidence {scores / max(masks, 1):.3f}); {summary['bad']} unusable images left out"
    )
