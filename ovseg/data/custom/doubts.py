"""What cannot be seen in one value, but in all of them: masks that fit their description and mean something else."""

from __future__ import annotations

import numpy as np

from ovseg.data.custom.classes import Classes
from ovseg.data.custom.source import Source
from ovseg.data.custom.values import UNLISTED

_LOOKED_AT = 16  # masks that are opened before the first use of a data set; tools/check_dataset.py opens all


def count_pixels(indices: np.ndarray, num_classes: int) -> np.ndarray:
    """(2 + K,) int64: pixels that are unlisted, ignored, of class 0, ..., of class K - 1."""
    return np.bincount(indices.ravel() - UNLISTED, minlength=num_classes - UNLISTED)


def ignored_class(classes: Classes, pixels: np.ndarray, ignored: int) -> str:
    """A sentence where the value that is ignored looks like a class of its own; empty otherwise.

    Masks of 0 and 255 are the usual case: 255 is ignored, so the object that everybody sees is never learned.

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
    """What a few masks, evenly spread, show to be strange: no class at all, or :func:`ignored_class` of only one."""
    pairs, classes = source.pairing.pairs, source.classes
    if source.own.kind != "masks":
        return ""
    counts = np.zeros(2 + len(classes), np.int64)
    for pair in pairs[:: -(-len(pairs) // _LOOKED_AT)]:
        labels = source.read(pair)
        counts += count_pixels(labels.indices, len(classes))
        counts[1] -= sum(labels.left_out.values())
    if not counts[2:].any():
        return f"no pixel of the masks that were looked at has a class: does {source.own.file} fit their values?"
    return ignored_class(classes, counts[2:], int(counts[1])) if np.count_nonzero(counts[2:]) == 1 else ""
