"""Captions of a user's images: the file that ``captions`` of a description names, in any format of caption files."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ovseg.data.caption_files import CaptionedImages, read_captions
from ovseg.data.caption_sets import join_captions
from ovseg.data.custom.description import Description
from ovseg.data.custom.pairing import find, split_names
from ovseg.errors import OvsegError

logger = logging.getLogger(__name__)

_MARK = "//"


def captioned_images(own: Description, name: str) -> list[dict[str, Any]]:
    """Return dataset dicts of the images that have captions, without labels.

    Args:
        own: a description with ``images`` and ``captions``.
        name: of the data set, for messages.

    Raises:
        OvsegError: no images, an unusable caption file, or captions of other images.
    """
    images = find(own, "images")
    if own.names is not None:
        images = {key: path for key, path in images.items() if key in set(split_names(own))}
    records = [{"file_name": str(path), "image_id": key} for key, path in sorted(images.items())]
    return [record for record in with_captions(own, name, records) if record["captions"]]


def with_captions(own: Description, name: str, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return dataset dicts with ``captions``; see :func:`ovseg.data.caption_sets.join_captions`.

    Images are found by the longest end of their path that the caption file names, or by their name without suffix, with
    COCO's zeros in front or without: ``train/9.jpg``, ``9.jpg``, ``9``.
    """
    with own.errors_of("captions"):
        found = read_captions(own.captions, own.root, need_images=False)
    if found.bad:
        message = "%s: %d of %d captions cannot be used and are left out, such as %s"
        logger.warning(message, own.captions, len(found.bad), found.entries, found.bad[0])
    by_end = _by_end(record["file_name"] for record in records)
    images = [replace(image, path=_match(image.path, by_end) or image.path) for image in found.images]
    found = CaptionedImages(images, found.entries, found.bad)
    return join_captions(name, records, found, str(own.captions))


def _by_end(paths: Iterable[str]) -> dict[str, set[str]]:
    """Return image files by each end of their path, and by their stem without zeros in front."""
    ends: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        parts = Path(path).parts
        for start in range(len(parts)):
            ends["/".join(parts[start:])].add(path)
        ends[_stem(path)].add(path)
    return ends


def _match(path: Path, by_end: dict[str, set[str]]) -> Path | None:
    """Return the one image file that is meant, by the longest end; None for none.

    Raises:
        OvsegError: several files are meant equally well.
    """
    ends = ["/".join(path.parts[start:]) for start in range(len(path.parts))]
    for end in (*ends, _stem(path.name)):
        if found := by_end.get(end):
            if len(found) > 1:
                first, second, *_ = sorted(found)
                meant = f"captions of {end.removeprefix(_MARK)!r} may be of {first} or of {second}"
                raise OvsegError(f"{meant}: write more of the path")
            return Path(*found)
    return None


def _stem(path: str) -> str:
    """Return a name without folder, suffix and zeros in front, behind a mark that no path starts with."""
    name = Path(path).name
    stem = name.rsplit(".", 1)[0]
    return f"{_MARK}{stem.lstrip('0') or stem}"
