"""Embeddings of the pixels and masks of an image in the space of text embeddings, of systems that have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ovseg.errors import OvsegError
from ovseg.meta_arch.word_model import WordModel
from ovseg.naming.text_space import PixelMap, TextSpace

SYSTEMS = "OpenSeg, LSeg, LSegPlus, DenseCLIP, or ProposeAndName with the namer PooledMap"


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of one image.

    Attributes:
        pixels: of its pixels.
        image: height and width of the image in the model, which may have scaled it down.
        masks: (V, H, W) probabilities at that size; None for systems without masks.
        regions: float32 (V, D), of the masks, not normalised; None for systems without masks.
    """

    pixels: PixelMap
    image: tuple[int, int]
    masks: Tensor | None = None
    regions: Tensor | None = None


def text_space_of(model: nn.Module) -> TextSpace:
    """Return the part of a model that embeds images in the space of words.

    Raises:
        OvsegError: it has none, or its settings do more with scores than to compare embeddings.
    """
    parts = [part for part in getattr(model, "parts", ()) if isinstance(part, TextSpace)]
    if not parts:
        kinds = [type(part).__name__ for part in getattr(model, "parts", ())] or [type(model).__name__]
        raise OvsegError(
            f"this model ({', '.join(kinds)}) has no embeddings of pixels in the space of words: use {SYSTEMS}"
        )
    if why := parts[0].why_no_embeddings():
        raise OvsegError(f"this model has no embeddings of pixels in the space of words: {why}")
    return parts[0]


def embeddings_of(model: WordModel, request: Mapping[str, Any], with_masks: bool = True) -> Embeddings:
    """Return the embeddings of the image of a request, in evaluation mode.

    Args:
        model: see :data:`SYSTEMS`.
        request: has ``image``; see :class:`WordModel`.
        with_masks: compute those of masks, too, if the model proposes masks.

    Raises:
        OvsegError: as :func:`text_space_of`.
    """
    part, views = text_space_of(model), model.views([request])
    pixels, image = part.pixel_map(views, 0), tuple(views.images[0].shape[1:])
    if not with_masks or part is model.parts[0]:  # a scorer, without a proposer
        return Embeddings(pixels, image)
    found = model.proposer(views)[0]
    regions, seen = part.region_embeddings(views, found, 0)
    masks = found.probabilities if seen is None else found.probabilities[seen]
    return Embeddings(pixels, image, masks, regions)
