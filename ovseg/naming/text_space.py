"""``TextSpace``: parts that embed pixels and regions of an image in the space of the text embeddings of words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ovseg.proposals.views import Masks, Views
from ovseg.vocabulary import Vocabulary


@torch.no_grad()
def bound_temperature(log_scale: nn.Parameter, tau_min: float) -> None:
    """Bound log(1 / tau) in training; a clamp of its exponential would leave it without a gradient beyond the bound."""
    log_scale.clamp_(max=-math.log(tau_min))


@dataclass(frozen=True)
class PixelMap:
    """Embeddings of the places of an image.

    Attributes:
        places: (D, h, w), not normalised.
        extent: height and width in pixels that the map covers; the image lies at its top left.
        unit: the model compares words with the unit vectors of places, by cosine; False for dot products.
        aligned: the outermost places lie at the outermost pixels, and not half a place inside the borders.
    """

    places: Tensor
    extent: tuple[int, int]
    unit: bool = True
    aligned: bool = False

    def axes(self, image: Sequence[int], size: Sequence[int]) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return for both axes the place of the first pixel of the result, and the step to the next one, in places.

        Args:
            image: height and width of the image in the map.
            size: of the result, to which the image is resized.
        """
        found = []
        for axis in range(2):
            pixels, extent = image[axis] / size[axis], self.extent[axis]
            if self.aligned:
                scale = (self.places.shape[1 + axis] - 1) / max(extent - 1, 1)
                found.append(((pixels / 2 - 0.5) * scale, pixels * scale))
            else:
                step = pixels * self.places.shape[1 + axis] / extent
                found.append((step / 2 - 0.5, step))
        return found[0], found[1]


class TextSpace:
    """Mixin of namers and scorers whose scores are comparisons of embeddings of the image with those of words.

    The text of most is :attr:`clip_adapter`'s.
    """

    def word_embeddings(self, vocabulary: Vocabulary) -> Tensor:
        """Return the embeddings of the S texts of a vocabulary, float32 (S, D): unit vectors, or rows of a table."""
        return self.clip_adapter.text_matrix(vocabulary.texts, vocabulary.templates)[:-1].float()

    def why_no_embeddings(self) -> str:
        """Return why scores are no comparisons of embeddings with these settings, and what to do; "" if they are."""
        return ""

    def pixel_map(self, views: Views, index: int) -> PixelMap:
        """Return the embeddings of the pixels of an image, whose best words are those of the model for a pixel."""
        raise NotImplementedError

    def region_embeddings(self, views: Views, masks: Masks, index: int) -> tuple[Tensor, Tensor | None]:
        """Return the embeddings of masks, float32 (V, D), not normalised, and which masks have one, bool (N,).

        None for all of them.
        """
        raise NotImplementedError
