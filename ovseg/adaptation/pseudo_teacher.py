"""``Teacher``: the pseudo-masks of an image, a model's confident proposals (OpenSeg, arXiv 2112.12143, section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask
import torch

from ovseg.adaptation.pseudo_options import PseudoOptions
from ovseg.data.caption_files import CaptionedImage
from ovseg.errors import OvsegError
from ovseg.io.images import read_image
from ovseg.proposals.pseudo_labels import confident_masks
from ovseg.segmenter import Segmenter

RULE = ("threshold", "min_area", "min_confidence", "max_iou", "max_masks")


@dataclass(frozen=True)
class FoundMasks:
    """Pseudo-masks of one image.

    Attributes:
        height, width: of the image.
        masks: see :class:`ovseg.data.pseudo_masks.ImageMasks`.
    """

    height: int
    width: int
    masks: Sequence[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.masks)


class Teacher:
    """Finds the pseudo-masks of images, one by one; the result depends on the image alone.

    Args:
        segmenter: a system with a proposer.
        max_size: masks of images with a longer side, in pixels, are selected at this size, then enlarged.
        rule: arguments of :func:`ovseg.proposals.pseudo_labels.confident_masks`.

    Raises:
        OvsegError: the system has no proposer.
    """

    def __init__(self, segmenter: Segmenter, max_size: int, rule: Mapping[str, float]):
        if getattr(segmenter.model, "proposer", None) is None:
            raise OvsegError(
                f"{type(segmenter.model).__name__} names pixels and has no masks to label with: choose a teacher with "
                "a proposer, such as OVSeg or OpenSeg"
            )
        self.segmenter, self.max_size, self.rule = segmenter, max_size, dict(rule)

    @classmethod
    def of(cls, options: PseudoOptions, device: str) -> Teacher:
        """Build the teacher of the options."""
        segmenter = Segmenter.from_config(options.config_file, options.weights, options.opts, device)
        return cls(segmenter, options.max_size, {name: getattr(options, name) for name in RULE})

    @torch.inference_mode()
    def __call__(self, item: CaptionedImage) -> FoundMasks:
        """Return the masks of one image, by descending confidence.

        Raises:
            OvsegError: the image cannot be read.
        """
        pixels = read_image(item.path)
        height, width = pixels.shape[:2]
        probabilities = self.segmenter.propose(pixels, largest=self.max_size)
        masks, confidences = confident_masks(torch.logit(probabilities), **self.rule)
        rows = np.arange(height) * masks.shape[1] // height
        columns = np.arange(width) * masks.shape[2] // width
        found = []
        for mask, score in zip(masks.cpu().numpy(), confidences.tolist(), strict=True):
            found.append(encoded(mask[rows[:, None], columns]) | {"score": round(score, 4)})
        return FoundMasks(height, width, found)


def encoded(mask: np.ndarray) -> dict[str, Any]:
    """Return ``segmentation`` (COCO's RLE as text), ``bbox`` and ``area`` of a bool (H, W) mask."""
    rle = pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))
    box = pycocotools.mask.toBbox(rle).astype(int).tolist()
    segmentation = {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}
    return {"segmentation": segmentation, "bbox": box, "area": int(mask.sum())}
