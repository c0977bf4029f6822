"""The regions of a label map: connected parts of words, from which all label formats are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ovseg.errors import OvsegError, argument
from ovseg.io.run_lengths import decode_mask
from ovseg.result.label_runs import LabelRuns, parts_of
from ovseg.result.polygons import Outline, outline_of


@dataclass(frozen=True, eq=False)
class Region:
    """A part of a word's pixels that is connected by the sides of pixels.

    Attributes:
        label: index of the word.
        score: mean of the winning score over its pixels, in the unit of the model.
        left, top: x and y of the mask's first pixel in the image.
        mask: (h,w) bool, the part in the box around it.
    """

    label: int
    score: float
    left: int
    top: int
    mask: np.ndarray

    @cached_property
    def area(self) -> int:
        """Number of pixels."""
        return int(np.count_nonzero(self.mask))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x, y, width and height in pixels."""
        height, width = self.mask.shape
        return self.left, self.top, width, height

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the box."""
        height, width = self.mask.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    def outline(self, tolerance: float = 0.0, smallest_hole: float = 0) -> Outline:
        """Return its polygons in coordinates of the image, see :func:`ovseg.result.polygons.outline_of`."""
        return outline_of(self.mask, tolerance, (self.left, self.top), smallest_hole)

    def full_mask(self, size: tuple[int, int]) -> np.ndarray:
        """Return the mask in an image of (height,width), (H,W) bool."""
        full = np.zeros(size, bool)
        full[self.window] = self.mask
        return full

    def run_lengths(self, size: tuple[int, int]) -> dict[str, Any]:
        """Return COCO's run lengths in an image of (height,width): ``size``, and ``counts`` as compressed str."""
        return LabelRuns.of(self.mask).encode(1, size, self.top, self.left)

    def to_json(self) -> dict[str, Any]:
        """Return the region as a dict for :meth:`from_json`, with the run lengths of its box."""
        score, counts = float(np.float32(self.score)), LabelRuns.of(self.mask).encode(1)["counts"]
        return {"label": self.label, "score": score, "box": self.box, "counts": counts}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Region:
        """Return the region of :meth:`to_json`.

        Raises:
            KeyError, TypeError, ValueError: it is damaged.
        """
        left, top, width, height = entry["box"]
        return cls(entry["label"], entry["score"], left, top, decode_mask(entry["counts"], height, width))


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """The regions of one image, which do not overlap.

    Attributes:
        name: name in label files: the path of the image below its folder, with ``/``; "" for an image without a file.
        size: height and width in pixels, with the EXIF orientation applied.
        names: K words.
        regions: largest first.
        smallest: holes of fewer pixels are filled in polygons, see :meth:`kept`.
    """

    name: str
    size: tuple[int, int]
    names: tuple[str, ...]
    regions: tuple[Region, ...]
    smallest: float = 0

    def kept(self, min_area: float = 0, min_score: float | None = None) -> LabelledImage:
        """Return the image with the regions that are large and certain enough; the pixels of others are unlabelled.

        Args:
            min_area: pixels; a number below 1 is a share of the image.
            min_score: lowest score of a region; None for no limit.

        Raises:
            OvsegError: an argument is not a number of this kind.
        """
        smallest = pixels_of(min_area, self.size)
        limit = -np.inf if min_score is None else checked_number(min_score, "min_score")
        regions = tuple(one for one in self.regions if one.area >= smallest and one.score >= limit)
        return replace(self, regions=regions, smallest=smallest)

    def outline(self, region: Region, tolerance: float) -> Outline:
        """Return the polygons of one of the regions, without holes of fewer pixels than :attr:`smallest`."""
        return region.outline(tolerance, self.smallest)

    def label_map(self) -> np.ndarray:
        """Return the word of each pixel, (H,W) int32, -1 for none."""
        labels = np.full(self.size, -1, np.int32)
        for region in self.regions:
            labels[region.window][region.mask] = region.label
        return labels

    def of_words(self) -> list[tuple[int, tuple[Region, ...]]]:
        """Return the words that have regions, in order, each with its regions."""
        found: dict[int, list[Region]] = {}
        for region in self.regions:
            found.setdefault(region.label, []).append(region)
        return [(label, tuple(found[label])) for label in sorted(found)]


def find_regions(label_map: np.ndarray, score_map: np.ndarray | None, scores: Sequence[float]) -> tuple[Region, ...]:
    """Return the connected parts of each word, largest first.

    Args:
        label_map: (H,W) int32, negative for unlabelled pixels.
        score_map: (H,W) float, the winning score; None where regions have the score of their word.
        scores: (K,) of the words.
    """
    found = []
    for part in parts_of(label_map):
        region = Region(part.label, 0.0, part.left, part.top, part.mask)
        score = scores[part.label] if score_map is None else score_map[region.window][part.mask].mean(dtype=np.float64)
        found.append((-part.area, replace(region, score=float(score))))
    return tuple(region for _, region in sorted(found, key=lambda pair: pair[0]))


def score_of(regions: Iterable[Region]) -> float:
    """Return the mean score over the pixels of some regions."""
    regions = list(regions)
    return float(np.average([one.score for one in regions], weights=[one.area for one in regions]))


def pixels_of(min_area: float, size: tuple[int, int]) -> float:
    """Return a smallest area in pixels for an image of (height,width); a number below 1 is a share of the image."""
    area = checked_number(min_area, "min_area")
    if area < 0:
        raise OvsegError(f"{argument('min_area')} is {area:g}: give pixels, or a share of the image below 1")
    return area * size[0] * size[1] if area < 1 else area


def checked_tolerance(value: Any) -> float:
    """Return the tolerance of polygons as float.

    Raises:
        OvsegError: it is not a number from 0.
    """
    if (tolerance := checked_number(value, "tolerance")) < 0:
        raise OvsegError(f"{argument('tolerance')} is {tolerance:g}: give pixels, 0 for exact polygons")
    return tolerance


def checked_number(value: Any, name: str) -> float:
    """Return a finite number as float.

    Raises:
        OvsegError: it is none; names the argument.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not np.isfinite(value):
        raise OvsegError(f"{argument(name)} is {value!r}: give a number")
    return float(value)
