"""``Service``: the model of a server, its queue, and what it keeps; independent of HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ovseg.errors import OvsegError
from ovseg.result.segmentation import Segmentation
from ovseg.vocabulary import Vocabulary
from ovseg.web.inputs import check_image, read_image
from ovseg.web.limits import Limits, Refused
from ovseg.web.line import Line
from ovseg.web.scenes import Scene, Scenes

if TYPE_CHECKING:
    from ovseg.segmenter import Segmenter

OWN = "own"  # the proposer of the model itself
PAINTERS = 2  # threads that render again


@dataclass(frozen=True)
class Example:
    """An image of the page.

    Attributes:
        name: of the image.
        words: to look for in it.
        load: returns the image, (H, W, 3) uint8 RGB.
    """

    name: str
    words: tuple[str, ...]
    load: Callable[[], np.ndarray]


@dataclass(frozen=True, eq=False)
class Upload:
    """An image of a request: the content of a file, or an example."""

    name: str
    content: bytes = b""
    example: Example | None = None

    def check(self, limits: Limits) -> None:
        """Check the image by its header; see :func:`ovseg.web.inputs.check_image`."""
        if self.example is None:
            check_image(self.content, self.name, limits)

    def pixels(self) -> np.ndarray:
        """Return the image, (H, W, 3) uint8 RGB."""
        return read_image(self.content, self.name) if self.example is None else self.example.load()


@dataclass(eq=False)
class Service:
    """A loaded model and what belongs to it.

    Images are decoded and segmented by one thread, so that the memory does not depend on the number of visitors.

    Attributes:
        segmenters: by the name of the proposer, that of the model itself (:data:`OWN`) first.
        limits: of requests and memory.
        examples: images of the page.
        words: that the page begins with.
        note: on the model, for the page.
    """

    segmenters: Mapping[str, Segmenter]
    limits: Limits = field(default_factory=Limits)
    examples: Sequence[Example] = ()
    words: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        self.scenes = Scenes(self.limits)
        self.model_line = Line(self.limits.waiting)
        self.paint_line = Line(4 * self.limits.waiting + 32, PAINTERS, "paint")

    @cached_property
    def model_name(self) -> str:
        return self.segmenters[OWN].name or "model"

    def example(self, name: str) -> Example:
        """Return an example by its name.

        Raises:
            Refused: 404, there is none.
        """
        found = next((example for example in self.examples if example.name == name), None)
        if found is None:
            raise Refused(404, f"there is no example {name!r}")
        return found

    def segmenter(self, proposer: str) -> Segmenter:
        """Return the segmenter with a proposer; "" for that of the model itself.

        Raises:
            OvsegError: it is not offered.
        """
        if (found := self.segmenters.get(proposer or OWN)) is None:
            raise OvsegError(f"there is no proposer {proposer!r} here: choose one of {', '.join(self.segmenters)}")
        return found

    def segment(
        self, upload: Upload, vocabulary: Vocabulary, granularity: float | None, min_score: float | None, proposer: str
    ) -> Segmentation:
        """Return the segmentation of an image, of which nothing is kept; in a thread of :attr:`model_line`."""
        segmenter = self.segmenter(proposer)
        result = segmenter(upload.pixels(), vocabulary, granularity=granularity, min_score=min_score)
        return replace(result, source=upload.name)

    def scene(
        self,
        upload: Upload,
        vocabulary: Vocabulary,
        granularity: float | None,
        min_score: float | None,
        proposer: str,
        before: str = "",
    ) -> tuple[str, Scene]:
        """Segment an image and keep its masks in place of the scene before; return the name of the scene, too.

        It is called in a thread of :attr:`model_line`.
        """
        segmenter = self.segmenter(proposer)
        keep = segmenter.adjustable if segmenter.keeps_masks else segmenter
        scene = Scene(keep(upload.pixels(), vocabulary), upload.name, granularity, min_score)
        return self.scenes.add(scene, before), scene
