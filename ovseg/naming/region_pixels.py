"""``RegionPixels``: OpenSeg without its masks, each pixel named by its own embedding (arXiv 2112.12143, Table 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from ovseg.clip.adapter import ClipAdapter
from ovseg.naming.pixel_classes import enlarged
from ovseg.naming.region_words import RegionWords, best_text
from ovseg.naming.text_space import PixelMap, TextSpace
from ovseg.proposals.region_queries import RegionQueries
from ovseg.proposals.views import Part, Views
from ovseg.vocabulary import Vocabulary


class RegionPixels(TextSpace, Part):
    """Scorer of pixels: cosines of the embeddings that :class:`RegionWords` sums in masks.

    It trains, and has its weights in checkpoints, as the model with masks. The score of a word at a place is the
    maximum over its texts.

    Args:
        proposer: not used in evaluation.
        namer: gives the embeddings of pixels.
    """

    scores_are_independent: ClassVar[bool] = True
    learns_from: ClassVar[str] = "captions"

    def __init__(self, proposer: RegionQueries, namer: RegionWords):
        super().__init__()
        self.proposer, self.namer = proposer, namer
        self.size_divisibility, self.largest_side = proposer.size_divisibility, proposer.largest_side

    def forward(self, views: Views, words: Sequence[Vocabulary]) -> list[Tensor]:
        """Return the cosines of each image, float32 (K, H, W)."""
        scores = []
        for embedded, image, vocabulary in zip(self.namer.pixels(views), views.images, words, strict=True):
            cosines = best_text(self.namer.cosines(embedded.movedim(0, -1), vocabulary), vocabulary)  # (h, w, K)
            scores.append(enlarged(cosines.movedim(-1, 0), views.canvas, image.shape[1:]))
        return scores

    @property
    def clip_adapter(self) -> ClipAdapter:
        return self.namer.clip_adapter

    def pixel_map(self, views: Views, index: int) -> PixelMap:
        return self.namer.pixel_map(views, index)

    def losses(self, views: Views) -> dict[str, Tensor]:
        """Compute the losses of the model with masks."""
        return self.namer.caption_losses(views, self.proposer) | self.proposer.losses(views)
