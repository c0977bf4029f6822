"""The results that a server keeps for the visitors of its page."""

from __future__ import annotations

import secrets
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from ovseg.errors import OvsegError
from ovseg.result.edits import Edit, edited
from ovseg.result.kept_masks import KeptMasks
from ovseg.result.segmentation import UNLABELLED, Segmentation
from ovseg.web.limits import MEGABYTE, Limits, Refused

MOST_EDITS = 500  # of a scene


@dataclass(eq=False)
class Scene:
    """An image with its masks and scores, which are rendered again when a visitor asks for it.

    Attributes:
        found: the masks, of a model that has any; else its result.
        name: of the image.
        granularity, min_score: of the present rendering.
        edits: of the visitor.
        shown: the present rendering with all edits, without a map of scores.
        used: time of the last use, seconds.
        lock: held while the scene changes.
    """

    found: KeptMasks | Segmentation
    name: str = ""
    granularity: float | None = None
    min_score: float | None = None
    edits: tuple[Edit, ...] = ()
    shown: Segmentation = field(init=False)
    used: float = field(default_factory=time.monotonic)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        if isinstance(self.found, KeptMasks):
            self.found = self.found.compact()
        self.paint(self.granularity, self.min_score, self.edits)

    @property
    def nbytes(self) -> int:
        """Memory that it takes, bytes."""
        maps = self.shown.image.nbytes + self.shown.label_map.nbytes
        edits = sum(edit.bits.nbytes for edit in self.edits if edit.bits is not None)
        texts = [self.name, *self.shown.names, *(text for edit in self.edits for text in (edit.word, edit.name))]
        names = sum(map(sys.getsizeof, texts))
        if not isinstance(self.found, KeptMasks):
            return maps + edits + names + 2 * self.found.label_map.nbytes
        scores = self.found.mask_scores
        arrays = scores.own, scores.clip, scores.fused, scores.fused, scores.fractions, scores.boxes  # fused: rendered
        return maps + edits + names + self.found.nbytes + sum(array.nbytes for array in arrays)

    def paint(self, granularity: float | None, min_score: float | None, edits: tuple[Edit, ...]) -> Segmentation:
        """Change the rendering, and return it with its map of scores.

        Raises:
            OvsegError: an argument is not valid; the scene is then not changed.
        """
        with self.lock:
            rendered = replace(self._rendered(granularity, min_score), source=self.name)
            result = edited(rendered, edits)
            self.granularity, self.min_score, self.edits = granularity, min_score, edits
            self.shown = replace(result, score_map=None)
            return result

    def _rendered(self, granularity: float | None, min_score: float | None) -> Segmentation:
        if isinstance(self.found, KeptMasks):
            return self.found(granularity, min_score)
        if granularity is not None:
            raise OvsegError("granularity selects masks, and this model has none: leave it out")
        if min_score is None or self.found.score_map is None:
            return self.found
        labels = np.where(self.found.score_map < min_score, np.int32(UNLABELLED), self.found.label_map)
        return replace(self.found, label_map=labels)

    def result(self) -> Segmentation:
        """Return the present rendering with its map of scores."""
        with self.lock:
            return self.paint(self.granularity, self.min_score, self.edits)

    def region(self, row: float, column: float) -> tuple[int, np.ndarray]:
        """Return the label at a point, -1 if unlabelled, and its connected part there, (H, W) bool.

        Args:
            row, column: parts of the height and width, 0 to 1.
        """
        labels = self.shown.label_map
        y, x = (min(int(place * side), side - 1) for place, side in zip((row, column), labels.shape, strict=True))
        label = int(labels[y, x])
        _, parts = cv2.connectedComponents((labels == label).astype(np.uint8), connectivity=4)
        return label, parts == parts[y, x]

    def largest_region(self, label: int) -> tuple[float, float]:
        """Return the place inside the largest part of a label that is farthest from its edges, as for :meth:`region`.

        Raises:
            OvsegError: no pixel has the label.
        """
        of_label = (self.shown.label_map == label).astype(np.uint8)
        count, parts, stats, _ = cv2.connectedComponentsWithStats(of_label, connectivity=4)
        if count < 2:
            raise OvsegError("no pixel has this word now: choose another one")
        largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
        inside = cv2.distanceTransform(np.pad((parts == largest).astype(np.uint8), 1), cv2.DIST_L2, 3)
        y, x = np.unravel_index(int(inside.argmax()), inside.shape)
        height, width = of_label.shape
        return (int(y) - 0.5) / height, (int(x) - 0.5) / width

    def edit(self, row: float, column: float, name: str | None, whole_word: bool) -> None:
        """Give the region at a point, or all regions of its word, another word; None for none.

        Raises:
            OvsegError: the name is not valid, or there are :data:`MOST_EDITS` edits.
        """
        with self.lock:
            if len(self.edits) >= MOST_EDITS:
                raise OvsegError(f"this result has {MOST_EDITS} corrections, the most that are kept: take some back")
            label, region = self.region(row, column)
            word = None if label == UNLABELLED else self.shown.names[label]
            change = Edit.of(word, name, None if whole_word else region)
            self.paint(self.granularity, self.min_score, (*self.edits, change))

    def undo(self, all_edits: bool = False) -> None:
        """Take back the last edit, or all."""
        with self.lock:
            self.paint(self.granularity, self.min_score, () if all_edits else self.edits[:-1])


class Scenes:
    """Scenes by names that cannot be guessed, so that a visitor sees no other's.

    Args:
        limits: how long they are kept, and in how much memory.
        clock: time in seconds.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic):
        self._limits, self._clock = limits, clock
        self._scenes: OrderedDict[str, Scene] = OrderedDict()  # in the order of their last use
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._scenes)

    def add(self, scene: Scene, before: str = "") -> str:
        """Keep a scene, in place of those that were not used for the longest time if necessary; return its name.

        Args:
            before: name of the visitor's scene before, if there is one, which is forgotten first.

        Raises:
            Refused: 413, it alone takes more than the memory.
        """
        if scene.nbytes > self._limits.memory:
            raise Refused(
                413,
                f"the result takes {scene.nbytes / MEGABYTE:.0f} MB, more than this server keeps: give a smaller image",
            )
        name = secrets.token_urlsafe(16)
        with self._lock:
            self._scenes.pop(before, None)
            scene.used = self._clock()
            self._scenes[name] = scene
            self._expire()
        return name

    def get(self, name: str) -> Scene:
        """Return a scene.

        Raises:
            Refused: 404, there is none of this name, or not any longer.
        """
        with self._lock:
            self._expire()
            if (scene := self._scenes.get(name)) is None:
                raise Refused(404, "this result is not kept any longer: segment the image again")
            scene.used = self._clock()
            self._scenes.move_to_end(name)
            return scene

    def drop(self, name: str) -> None:
        """Forget a scene, if there is one of this name."""
        with self._lock:
            self._scenes.pop(name, None)

    def expire(self) -> None:
        """Forget scenes that were not used for long, or for which there is no memory."""
        with self._lock:
            self._expire()

    def _expire(self) -> None:
        oldest = self._clock() - self._limits.idle
        total = sum(scene.nbytes for scene in self._scenes.values())
        while self._scenes:
            first = next(iter(self._scenes.values()))
            if first.used >= oldest and total <= self._limits.memory:
                return
            total -= first.nbytes
            self._scenes.popitem(last=False)
