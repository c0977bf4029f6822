"""The runs of a label map down its columns: boxes, run lengths and connected parts of all words in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

Window = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True, eq=False)
class LabelRuns:
    """The runs of equal labels, in the order of their labels; runs go on from the foot of a column to the next column.

    Attributes:
        size: height and width of the label map.
        labels: int32 (R,), ascending.
        starts: int64 (R,), the first pixel of each run, counted down the columns; ascending for each label.
        ends: int64 (R,), the first pixel after each run.
    """

    size: tuple[int, int]
    labels: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, label_map: np.ndarray) -> LabelRuns:
        """Return the runs of a label map (H,W) of integers, or of a mask (H,W) of bool, whose labels are 0 and 1."""
        labels, starts, ends = _runs(label_map)
        order = np.argsort(labels, kind="stable")
        return cls((label_map.shape[0], label_map.shape[1]), labels[order], starts[order], ends[order])

    @cached_property
    def found(self) -> tuple[int, ...]:
        """The labels from 0 that have pixels, ascending."""
        return tuple(np.unique(self.labels[self.labels >= 0]).tolist())

    def window(self, label: int, margin: int = 0) -> Window:
        """Return the box around the pixels of a label that was found, with a margin inside of the image."""
        height, width = self.size
        starts, ends = self._of(label)
        left, right = starts[0] // height, (ends[-1] - 1) // height
        first, last = starts % height, (ends - 1) % height
        whole = (starts // height != (ends - 1) // height).any()  # a run from one column to the next
        top, bottom = (0, height - 1) if whole else (first.min(), last.max())
        return (
            slice(max(0, int(top) - margin), min(height, int(bottom) + 1 + margin)),
            slice(max(0, int(left) - margin), min(width, int(right) + 1 + margin)),
        )

    def encode(self, label: int, size: tuple[int, int] | None = None, top: int = 0, left: int = 0) -> dict[str, Any]:
        """Return COCO's run lengths of the mask of a label: ``size`` [H,W], and ``counts`` as compressed str.

        Args:
            size: height and width of the image of which this map is a part; None for the map itself.
            top, left: y and x of the map's first pixel in that image.
        """
        starts, ends = self._of(label)
        height, width = size or self.size
        if size is not None and (height, left) != (self.size[0], 0):
            starts, ends = _moved(starts, ends, self.size[0], height, top, left)
        counts = np.empty(2 * len(starts) + 1, np.int64)
        counts[0::2] = np.append(starts, height * width) - np.append(0, ends)
        counts[1::2] = ends - starts
        used = len(counts) - (counts[-1] == 0)
        rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts[:used]}, height, width)
        return {"size": [height, width], "counts": rle["counts"].decode("ascii")}

    def _of(self, label: int) -> tuple[np.ndarray, np.ndarray]:
        first, last = np.searchsorted(self.labels, [label, label + 1])
        return self.starts[first:last], self.ends[first:last]


@dataclass(frozen=True, eq=False)
class Part:
    """A part of the pixels of a label that is connected by the sides of pixels.

    Attributes:
        label: the label.
        area: number of pixels.
        left, top: x and y of the mask's first pixel in the image.
        mask: (h,w) bool, the part in the box around it.
    """

    label: int
    area: int
    left: int
    top: int
    mask: np.ndarray


def parts_of(label_map: np.ndarray) -> list[Part]:
    """Return the connected parts of each label from 0, in the order of labels, then of their first pixels by rows."""
    from scipy.sparse import coo_array  # imports slowly
    from scipy.sparse.csgraph import connected_components

    height, width = label_map.shape
    labels, starts, ends = _runs(label_map, split=True)
    # a run touches the runs of the next column from that opposite its first pixel to that opposite its last one
    touched = np.searchsorted(starts, np.stack([starts, ends - 1]) + height, side="right") - 1
    count = np.where(starts < height * (width - 1), touched[1] - touched[0] + 1, 0)
    run = np.repeat(np.arange(len(starts)), count)
    opposite = touched[0][run] + np.arange(len(run)) - np.repeat(np.cumsum(count) - count, count)
    same = labels[run] == labels[opposite]
    edges = np.ones(np.count_nonzero(same), np.int8), (run[same], opposite[same])
    _, part = connected_components(coo_array(edges, shape=(len(starts), len(starts))), directed=False)
    parts = cv2.transpose(np.repeat(part.astype(np.int32), ends - starts).reshape(width, height))
    order = np.argsort(part, kind="stable")
    first = np.flatnonzero(np.diff(part[order], prepend=-1))
    top, left = starts[order] % height, starts[order] // height
    tops, bottoms = np.minimum.reduceat(top, first), np.maximum.reduceat((ends[order] - 1) % height, first) + 1
    lefts, rights = np.minimum.reduceat(left, first), np.maximum.reduceat(left, first) + 1
    areas, of_parts = np.add.reduceat(ends[order] - starts[order], first), labels[order][first]
    places = np.minimum.reduceat(top * width + left, first)
    return [
        Part(
            int(of_parts[n]),
            int(areas[n]),
            int(lefts[n]),
            int(tops[n]),
            parts[tops[n] : bottoms[n], lefts[n] : rights[n]] == n,
        )
        for n in np.lexsort([places, of_parts]).tolist()
        if of_parts[n] >= 0
    ]


def _runs(label_map: np.ndarray, split: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels, first pixels and ends of the runs down the columns; with ``split`` none is in two columns."""
    values = cv2.transpose(label_map.astype(np.int32, copy=False)).ravel()
    changes = values[1:] != values[:-1]
    if split:
        changes[len(label_map) - 1 :: len(label_map)] = True
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
    return values[starts], starts, np.append(starts[1:], values.size)


def _moved(
    starts: np.ndarray, ends: np.ndarray, height: int, full: int, top: int, left: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the runs of a part with columns of ``height`` pixels in an image with columns of ``full`` pixels."""
    columns = (ends - 1) // height - starts // height + 1  # a run in several columns becomes several, if not full
    if full > height:
        run = np.repeat(np.arange(len(starts)), columns)
        column = starts[run] // height + np.arange(len(run)) - np.repeat(np.cumsum(columns) - columns, columns)
        starts, ends = np.maximum(starts[run], column * height), np.minimum(ends[run], (column + 1) * height)
    else:
        column = starts // height
    shift = (column + left) * full + top - column * height
    return starts + shift, ends + shift
