"""``KeptMasks``: the masks and scores of one image, rendered again without the networks that made them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ovseg.result.explanation import MaskScores
from ovseg.result.of_model import explained_memory, segmentation_of
from ovseg.result.segmentation import Segmentation


@dataclass(frozen=True, eq=False)
class KeptMasks:
    """The masks of one image with their scores, as :meth:`ovseg.segmenter.Segmenter.adjustable` returns them.

    A call renders them, in a fraction of the time of a segmentation. With one word and a granularity, "others"
    competes with it; without a granularity, only if it does in the model's own rendering.

    Attributes:
        masks: float32 or float16 (Q, H', W') probabilities, or uint8 (Q, bytes), see :meth:`compact`.
        shape: H' and W', those of the model's input.
        order: int64 (V,), the masks that :meth:`ovseg.result.segmentation.Segmentation.explain` lists, in its order.
        threshold: probability above which a pixel belongs to a mask.
        mask_scores: the scores of the V masks by each classifier.
        render: masks (Q, H', W') float32, granularity, lowest score -> segmentation.
    """

    masks: Tensor
    shape: tuple[int, int]
    order: Tensor
    threshold: float
    mask_scores: MaskScores
    render: Callable[[Tensor, float | None, float | None], Segmentation]

    @classmethod
    def of(
        cls,
        masks: Tensor,
        threshold: float,
        mask_scores: MaskScores,
        render: Callable[[Tensor, float | None, float | None], Segmentation],
    ) -> KeptMasks:
        """Return the masks (Q, H', W') of a model with the scores of those that have a pixel above the threshold."""
        seen = (masks.flatten(1).amax(1) > threshold).nonzero()[:, 0].cpu()
        largest_first = np.argsort(-mask_scores.fractions, kind="stable")  # as Explanation.of
        height, width = masks.shape[1:]
        return cls(masks, (height, width), seen[largest_first], threshold, mask_scores, render)

    def __call__(self, granularity: float | None = None, min_score: float | None = None) -> Segmentation:
        """Render the masks; the result has :attr:`mask_scores`.

        Args:
            granularity: number from 0 (coarse) to 1 (precise); None for the model's own rendering.
            min_score: pixels with a lower score are unlabelled; None for the segmenter's own limit.

        Raises:
            OvsegError: an argument is not valid, or the memory is not sufficient.
        """
        result = self.render(self._probabilities(slice(None)), granularity, min_score)
        return replace(result, mask_scores=self.mask_scores)

    @property
    def nbytes(self) -> int:
        """Memory of the masks, bytes."""
        return self.masks.numel() * self.masks.element_size()

    def compact(self) -> KeptMasks:
        """Return the masks in less memory on the CPU: a bit per pixel of masks of 0 and 1, float16 of others.

        With a granularity, renderings are equal. The model's own of float16 masks may differ where the scores of two
        words differ by less than 0.1 %.
        """
        masks = self.masks.cpu().numpy()
        if ((masks == 0) | (masks == 1)).all():
            return replace(self, masks=torch.from_numpy(np.packbits(masks.reshape(len(masks), -1) > 0, axis=1)))
        half, above = masks.astype(np.float16), masks > self.threshold
        moved = (half.astype(np.float32) > self.threshold) != above  # rounding must not change which pixels belong
        half[moved] = np.nextafter(half[moved], np.where(above[moved], np.float16(np.inf), np.float16(-np.inf)))
        return replace(self, masks=torch.from_numpy(half))

    def at(self, row: float, column: float, region: np.ndarray) -> tuple[int, ...]:
        """Return the masks at a point, as indices of :meth:`Segmentation.explain`, those most like a region first.

        Args:
            row, column: of a pixel of the image, as parts of its height and width, 0 to 1.
            region: (H, W) bool, of the size of the image; the masks are ordered by their IoU with it. Where none
                covers the point, those that share a pixel with the region are returned.
        """
        y, x = (min(int(place * side), side - 1) for place, side in zip((row, column), self.shape, strict=True))
        small = cv2.resize(region.astype(np.uint8), self.shape[::-1], interpolation=cv2.INTER_AREA) > 0
        covering, touching = [], []
        for rank, index in enumerate(self.order.tolist()):
            mask = (self._probabilities(slice(index, index + 1))[0] > self.threshold).cpu().numpy()
            both = np.count_nonzero(mask & small)
            entry = (-both / max(1, np.count_nonzero(mask | small)), rank)
            if mask[y, x]:
                covering.append(entry)
            elif both:
                touching.append(entry)
        return tuple(rank for _, rank in sorted(covering or touching))

    def _probabilities(self, which: slice) -> Tensor:
        """Return some of the masks as float32 (n, H', W')."""
        masks = self.masks[which]
        if masks.dtype == torch.uint8:
            height, width = self.shape
            bits = np.unpackbits(masks.numpy(), axis=1, count=height * width)
            masks = torch.from_numpy(bits).reshape(-1, height, width)
        return masks.float()


def keep_masks(model: Any, request: Mapping[str, Any], pixels: np.ndarray, min_score: float | None) -> KeptMasks:
    """Find and score the masks of one image by the networks of a model, and return them with their rendering.

    Where "others" competes with a single word only with a granularity, the networks run twice: the scores of the
    model's own rendering are those of the word alone.

    Args:
        model: has ``render_scored``, see :class:`ovseg.meta_arch.propose_and_name.ProposeAndName`.
        request: its input for the image, with ``class_names``, ``height``, ``width`` and ``file_name``.
        pixels: (H, W, 3) uint8 RGB, the image.
        min_score: limit of renderings that give none; see :meth:`Segmentation.from_maps`.

    Raises:
        OvsegError: the memory is not sufficient.
    """
    vocabulary, source, size = request["class_names"], request["file_name"], (request["height"], request["width"])
    with explained_memory(source or "the image"):
        competing = {"outputs": ("scored_masks", "explanations"), "granularity": 1.0}
        result = model([request | competing])[0]
        scores, masks, *of_words = result["scored_masks"]
        own_scores, of_own_words = scores, of_words
        if len(model.words_of(request)) < len(of_words[0]):
            own_scores, _, *of_own_words = model([request | {"outputs": ("scored_masks",)}])[0]["scored_masks"]

    @torch.inference_mode()
    def render(masks: Tensor, granularity: float | None, lowest: float | None) -> Segmentation:
        checked = model.granularity_of({} if granularity is None else {"granularity": granularity})
        rated, words = (own_scores, of_own_words) if checked is None else (scores, of_words)
        with explained_memory(source or "the image"):
            maps = model.render_scored(rated, masks.to(model.device), *words, size, ("label_map",), checked)
            return segmentation_of(maps, vocabulary, pixels, source, min_score=min_score if lowest is None else lowest)

    return KeptMasks.of(
        masks, model.mask_threshold, MaskScores.from_model(result["explanations"], vocabulary.names), render
    )
