"""Joining pseudo-masks to the images of a training: each image gets its own, or an error says why it is not clear."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ovseg.data.pseudo_masks import PseudoMasks, read_pseudo_masks
from ovseg.errors import OvsegError

logger = logging.getLogger(__name__)

Found = dict[str, tuple[PseudoMasks, str]]  # by image file: where its masks are, and the name that it has there


def join_pseudo_masks(records: Iterable[dict[str, Any]], folders: Sequence[str | Path]) -> None:
    """Set ``pseudo_masks`` of the dataset dicts whose image has pseudo-masks.

    An image that is where it was when its masks were made is found by its path. Others, of data that was moved or
    copied since, are found by the end of their path: the longest name that it ends in.

    Args:
        records: dataset dicts of images that lack masks; an image may be in several.
        folders: ``DATASETS.PSEUDO_MASKS``.

    Raises:
        OvsegError: a folder has masks of none of the images; the masks of one image would be those of two; or an image
            has masks in two folders.
    """
    images: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        images.setdefault(os.path.abspath(record["file_name"]), []).append(record)
    sources = [read_pseudo_masks(folder) for folder in folders]
    exact = _only([_exact(masks, images) for masks in sources])
    moved = [file for file in images if file not in exact]
    found = exact | _only([_by_end(masks, moved, exact) for masks in sources])
    for masks in sources:
        count = sum(len(images[file]) for file, (owner, _) in found.items() if owner is masks)
        if not count:
            raise OvsegError(_none(masks, next(iter(images), None)))
        total = sum(map(len, images.values()))
        logger.info("%d of %d images without masks have pseudo-masks in %s", count, total, masks.folder)
    for file, (masks, name) in found.items():
        for record in images[file]:
            record["pseudo_masks"] = masks.place(name)


def _exact(masks: PseudoMasks, files: Iterable[str]) -> Found:
    return {file: (masks, name) for file in files if (name := masks.find_exact(file)) is not None}


def _by_end(masks: PseudoMasks, files: Iterable[str], exact: Found) -> Found:
    """Return the files whose path ends in a name of ``masks``, which no other image has.

    If images of the training are where they were when the masks were made, the data was not moved: then masks whose
    image is still there belong to that image alone.
    """
    stayed = any(owner is masks for owner, _ in exact.values())
    found: Found = {}
    first: dict[str, str] = {}
    for file in files:
        if (name := masks.find(file)) is None:
            continue
        if stayed and os.path.exists(original := masks.image_root / name) and not _same(original, file):
            continue
        if not _same(other := first.setdefault(name, file), file):
            raise OvsegError(
                f"the pseudo-masks of {name} in DATASETS.PSEUDO_MASKS {masks.folder} are of one image, but the paths "
                f"of {other} and {file} both end so: run tools/make_pseudo_masks.py again with a folder above both "
                "images as --image-root"
            )
        found[file] = masks, name
    return found


def _only(of_folders: Sequence[Found]) -> Found:
    """Return what was found in all folders.

    Raises:
        OvsegError: an image was found in two.
    """
    all_found: Found = {}
    for found in of_folders:
        if twice := next((file for file in found if file in all_found), None):
            folders = all_found[twice][0].folder, found[twice][0].folder
            raise OvsegError(
                f"two folders of DATASETS.PSEUDO_MASKS, {folders[0]} and {folders[1]}, have masks for the image "
                f"{twice}: name one of them, or, if one has the masks of another image of this name, run "
                "tools/make_pseudo_masks.py again with a folder above both images as --image-root"
            )
        all_found |= found
    return all_found


def _same(first: str | Path, second: str | Path) -> bool:
    return str(first) == str(second) or os.path.realpath(first) == os.path.realpath(second)


def _none(masks: PseudoMasks, example: str | None) -> str:
    folder = f"DATASETS.PSEUDO_MASKS {masks.folder}"
    problem = f"the pseudo-masks of {folder} are of no image of DATASETS.TRAIN that lacks masks"
    if example is None:
        return f"{problem}: all images have masks, so leave it out"
    return (
        f"{problem} (of {example}, for example): name the folder that tools/make_pseudo_masks.py made of these images"
    )
