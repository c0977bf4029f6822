"""Labels of a user's data set in any format: its pairs, and the reading of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ovseg.data.custom.classes import Classes
from ovseg.data.custom.coco import CocoFile, InstanceLabels, PanopticLabels, panoptic_folder
from ovseg.data.custom.description import Description
from ovseg.data.custom.labelme import labelme_labels
from ovseg.data.custom.pairing import Pair, Pairing, find, pair
from ovseg.data.custom.values import UNLISTED, Labels, is_index_file, look_up, one_channel, packed_colors, raw_pixels
from ovseg.errors import OvsegError, reason_of
from ovseg.io.files import is_file


@dataclass(frozen=True)
class Source:
    """A data set that can be read.

    Attributes:
        own: its description.
        classes: its classes.
        pairing: its images and their labels.
        reader: labels of a pair; see :meth:`read`.
    """

    own: Description
    classes: Classes
    pairing: Pairing
    reader: Callable[[Pair], Labels]

    def read(self, pair: Pair) -> Labels:
        """Return the labels of one image.

        Raises:
            OvsegError: the label file is missing, broken or not of its format; names it.
        """
        try:
            return self.reader(pair)
        except (KeyError, TypeError, ValueError) as error:
            raise OvsegError(f"{pair.where}: the labels of {pair.image} are unusable ({reason_of(error)})") from error

    def usable_as_is(self, pair: Pair) -> bool:
        """Return whether the label file holds class indices in one channel already; only its header is read."""
        own = self.own
        converted = own.ids is not None or own.colors is not None or own.first_id or own.unlisted == "ignore"
        return own.kind == "masks" and not converted and is_index_file(pair.labels)


def open_source(own: Description) -> Source:
    """Look at the files that a description means.

    Raises:
        OvsegError: no pair of image and labels, a JSON file that is not COCO's, or classes that do not fit.
    """
    if own.kind == "captions":
        raise own.error(
            "captions", "are all that it has, which only the training of OpenSeg reads: name labels, too, such as masks"
        )
    if own.kind in ("coco_panoptic", "coco_instances"):
        file = CocoFile(own)
        classes = Classes(own, own.classes or file.vocabulary())
        decoder = PanopticLabels if own.kind == "coco_panoptic" else InstanceLabels
        return Source(own, classes, file.pairs(), decoder(file, classes))
    classes = Classes(own, own.classes)
    pairing = pair(own, find(own, "images"), _label_files(own))
    reader = partial(labelme_labels if own.kind == "labelme" else mask_labels, classes)
    return Source(own, classes, pairing, reader)


def input_files(own: Description) -> list[Path]:
    """Return every file that labels and pairs depend on but the description, sorted, without reading any.

    Raises:
        OvsegError: a pattern that finds nothing, or a missing JSON file.
    """
    files = list(find(own, "images").values())
    if own.kind in ("labelme", "masks"):
        files += _label_files(own).values()
    else:
        json_file: Path = getattr(own, own.kind)
        if not is_file(json_file):
            raise own.error(own.kind, f"there is no file {json_file}")
        files.append(json_file)
        if own.kind == "coco_panoptic":
            files += panoptic_folder(own).rglob("*.png")
    return sorted(files)


def advice_unlisted(own: Description) -> str:
    """Return a clause on what to do about values, colours, labels or categories without a class."""
    key = "colors" if own.colors is not None else "ids"
    quoted = "in quotes as it stands there; " if own.kind == "labelme" else ""
    return (
        f"no class of {own.file}: add it to {key} ({quoted}as ignore, if it is to be none), or write unlisted: ignore"
    )


def mask_labels(classes: Classes, pair: Pair) -> Labels:
    """Read a mask file: numbers, or colours where the description has them."""
    if classes.colors is not None:
        colors = packed_colors(pair.labels)
        return look_up(colors, classes.colors, classes.unlisted, show=lambda color: f"colour #{color:06x}")
    raw = one_channel(raw_pixels(pair.labels), pair.labels)
    return look_up(raw, classes.table, classes.unlisted, show=lambda value: f"value {value}")


def _label_files(own: Description) -> dict[str, Path]:
    return find(own, "labelme", {".json"}) if own.kind == "labelme" else find(own, "masks")


_LOOKED_AT = 16  # masks that are opened before the first use of a data set; tools/check_dataset.py opens all


def count_pixels(indices: np.ndarray, num_classes: int) -> np.ndarray:
    """Return (2 + K,) int64: pixels that are unlisted, ignored, of class 0, ..., of class K - 1."""
    return np.bincount(indices.ravel() - UNLISTED, minlength=num_classes - UNLISTED)


def ignored_class(classes: Classes, pixels: np.ndarray, ignored: int) -> str:
    """Return a sentence if the ignored value looks like a class of its own; empty otherwise.

    Masks of 0 and 255 are the usual case: 255 is ignored, so the object is never learned.

    Args:
        pixels: (K,) of each class.
        ignored: pixels that do not count.
    """
    own = classes.own
    listed = own.kind != "masks" or own.ids is not None or own.colors is not None or own.first_id
    several = np.count_nonzero(pixels) > 1
    if listed or not ignored or not pixels.any() or (several and (pixels.all() or own.ignore_label is not None)):
        return ""
    names = classes.vocabulary.names
    present = [name for name, count in zip(names, pixels, strict=True) if count]
    absent = [name for name, count in zip(names, pixels, strict=True) if not count]
    value = classes.ignore_label
    if absent:
        fact = f"{' and '.join(map(repr, absent[:3]))}{', ...' if len(absent) > 3 else ''} never occurs"
        example = f"{{0: {names[0]}, {value}: {absent[0]}}}"
    else:
        fact = f"{present[0]!r} is the value 0"
        example = f"{{0: ignore, {value}: {names[0]}}}"
    return (
        f"{fact}, while {ignored:,} pixels do not count, which have the value {value}: if {value} is a class, say so, "
        f"for example ids: {example}; if it is not, say ignore_label: {value}"
    )


def first_doubt(source: Source) -> str:
    """Return a doubt from a few masks, evenly spread: no class at all, or :func:`ignored_class` of only one."""
    pairs, classes = source.pairing.pairs, source.classes
    if source.own.kind != "masks":
        return ""
    counts = np.zeros(2 + len(classes), np.int64)
    for one in pairs[:: -(-len(pairs) // _LOOKED_AT)]:
        labels = source.read(one)
        counts += count_pixels(labels.indices, len(classes))
        counts[1] -= sum(labels.left_out.values())
    if not counts[2:].any():
        return f"no pixel of the masks that were looked at has a class: does {source.own.file} fit their values?"
    return ignored_class(classes, counts[2:], int(counts[1])) if np.count_nonzero(counts[2:]) == 1 else ""
