"""Automatic mask generation of Segment Anything: one prompt for each point of a grid, and a selection of the answers.

Kirillov et al., "Segment Anything", arXiv 2304.02643, section 4 and appendix B: masks are kept that have a high
predicted IoU and are stable under changes of the threshold; duplicates are removed by non-maximum suppression of boxes,
in each crop and between crops.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from ovseg.io.progress import slow_progress

MASKS_AT_A_TIME = 16  # of the size of the image; bounds the memory
NEAR = 20  # pixels within which a box touches the edge of a crop


class Predictor(Protocol):
    """Function of an image and points, in steps; a pixel with a logit above 0 is in the mask."""

    def encode(self, image: Tensor) -> Any:
        """Return what :meth:`decode` needs of an image, float32 (3, H, W) RGB, 0 .. 255."""

    def decode(self, encoded: Any, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return mask logits (n, M, h, w), of one low resolution for all images, and their predicted IoUs (n, M).

        Args:
            points: float32 (n, 2), x and y in pixels of the image.
        """

    def enlarge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Return logits (m, h, w) of low resolution in the size H, W of the image, (m, H, W)."""


@dataclass(frozen=True)
class Found:
    """Masks that were found in one crop.

    Attributes:
        logits: (n, h, w), of low resolution.
        scores: (n,), predicted IoUs.
        boxes: float32 (n, 4), x0, y0, x1, y1 of the first and last pixels, in the image.
    """

    logits: Tensor
    scores: Tensor
    boxes: Tensor

    def __getitem__(self, index: Tensor) -> Found:
        return Found(self.logits[index], self.scores[index], self.boxes[index])

    @classmethod
    def of(cls, parts: Sequence[Found]) -> Found:
        """Return the masks of all parts, in their order."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("logits", "scores", "boxes")))


@dataclass(frozen=True)
class PointGrid:
    """Generator of masks, whose defaults are the published ones.

    Only logits of low resolution are kept until duplicates are removed, so that memory does not grow with the number
    of points times the size of the image.

    Attributes:
        points_per_side: of the square grid on the image.
        points_at_a_time: prompts that are decoded at a time; bounds memory, and does not change which masks are found.
        iou_threshold: predicted IoU that a mask must exceed; 0 keeps all.
        stability_threshold: least stability, the IoU of the masks at the thresholds ``stability_offset`` and its
            negative; 0 keeps all.
        stability_offset: of logits.
        nms_threshold: IoU of boxes above which the mask with the lower score is removed.
        crop_layers: layer i > 0 adds 2^i x 2^i crops of the image, each with a grid of its own.
        crop_overlap: of the crops of the first layer, as a share of the image's shorter side.
        crop_downscale: layer i has points_per_side / crop_downscale^i points per side.
        min_area: pixels below which holes are filled and separate parts removed; 0 for neither.
    """

    points_per_side: int = 32
    points_at_a_time: int = 64
    iou_threshold: float = 0.88
    stability_threshold: float = 0.95
    stability_offset: float = 1.0
    nms_threshold: float = 0.7
    crop_layers: int = 0
    crop_overlap: float = 512 / 1500
    crop_downscale: int = 1
    min_area: int = 0

    @torch.no_grad()
    def generate(self, predictor: Predictor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Find the masks of an image.

        Args:
            image: float32 (3, H, W) RGB, 0 .. 255.

        Returns:
            bool (Q, H, W), each with a pixel, those of the smallest crops first, and in a crop by descending score; and
            the scores, predicted IoUs, (Q,).
        """
        size = tuple(image.shape[1:])
        crops = list(crop_boxes(*size, self.crop_layers, self.crop_overlap))
        grids = [point_grid(max(1, self.points_per_side // self.crop_downscale**layer)) for layer, _ in crops]
        steps = sum(math.ceil(len(grid) / self.points_at_a_time) for grid in grids)
        with slow_progress("prompts of Segment Anything", steps) as advance:
            found = [
                self._of_crop(predictor, image, box, grid, advance) for (_, box), grid in zip(crops, grids, strict=True)
            ]
        together, counts = Found.of(found), [len(of_crop.scores) for of_crop in found]
        areas = torch.tensor([(x1 - x0) * (y1 - y0) for _, (x0, y0, x1, y1) in crops], device=image.device)
        crop_of = torch.arange(len(crops), device=image.device).repeat_interleave(
            torch.tensor(counts, device=image.device)
        )
        if len(crops) > 1:
            kept = nms(together.boxes, 1 / areas[crop_of].float(), self.nms_threshold)
            together, crop_of = together[kept], crop_of[kept]
        masks = torch.zeros(len(crop_of), *size, dtype=torch.bool, device=image.device)
        for crop, (_, (x0, y0, x1, y1)) in enumerate(crops):
            for rows in (crop_of == crop).nonzero()[:, 0].split(MASKS_AT_A_TIME):
                if len(rows):
                    masks[rows, y0:y1, x0:x1] = predictor.enlarge(together.logits[rows], (y1 - y0, x1 - x0)) > 0
        return self._without_small_parts(masks, together.scores) if self.min_area else (masks, together.scores)

    def _of_crop(
        self, predictor: Predictor, image: Tensor, box: Sequence[int], grid: Tensor, advance: Callable[[], None]
    ) -> Found:
        """Return the masks of one crop, without duplicates, by descending score."""
        x0, y0, x1, y1 = box
        encoded = predictor.encode(image[:, y0:y1, x0:x1])
        parts = []
        for points in (grid * torch.tensor((x1 - x0, y1 - y0))).to(image.device).split(self.points_at_a_time):
            logits, scores = predictor.decode(encoded, points)
            parts.append(self._selected(predictor, logits.flatten(0, 1), scores.flatten(), box, image.shape[1:]))
            advance()
        found = Found.of(parts)
        return found[nms(found.boxes, found.scores, self.nms_threshold)]

    def _selected(
        self, predictor: Predictor, logits: Tensor, scores: Tensor, box: Sequence[int], size: Sequence[int]
    ) -> Found:
        """Return the masks that pass the thresholds and do not touch the edge of the crop."""
        logits, scores = logits.float(), scores.float()
        if self.iou_threshold > 0:
            kept = scores > self.iou_threshold
            logits, scores = logits[kept], scores[kept]
        parts = [Found(logits[:0], scores[:0], logits.new_zeros(0, 4))]
        x0, y0, x1, y1 = box
        for few, of_few in zip(logits.split(MASKS_AT_A_TIME), scores.split(MASKS_AT_A_TIME), strict=True):
            if not len(few):
                continue
            large = predictor.enlarge(few, (y1 - y0, x1 - x0))
            masks = large > 0
            kept = masks.flatten(1).any(1)
            if self.stability_threshold > 0:
                kept &= stability(large, self.stability_offset) >= self.stability_threshold
            boxes = inclusive_boxes(masks[kept]) + torch.tensor((x0, y0, x0, y0), device=masks.device)
            inside = ~touches_crop(boxes, box, (0, 0, size[1], size[0]))
            parts.append(Found(few[kept][inside], of_few[kept][inside], boxes[inside]))
        return Found.of(parts)

    def _without_small_parts(self, masks: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Fill small holes, remove small parts, and again remove duplicates, unchanged masks first."""
        cleaned = [without_small_parts(mask, self.min_area) for mask in masks.cpu().numpy()]
        if not cleaned:
            return masks, scores
        masks = torch.from_numpy(np.stack([mask for mask, _ in cleaned])).to(masks.device)
        unchanged = torch.tensor([not changed for _, changed in cleaned], device=masks.device).float()
        kept = nms(inclusive_boxes(masks), unchanged, self.nms_threshold)
        return masks[kept], scores[kept]


def point_grid(points_per_side: int) -> Tensor:
    """Return the centres of n x n equal cells of the unit square, row by row, float32 (n * n, 2), x and y."""
    centres = (torch.arange(points_per_side) + 0.5) / points_per_side
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack((x, y), dim=-1).flatten(0, 1)


def crop_boxes(height: int, width: int, layers: int, overlap: float) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield the layer and box x0, y0, x1, y1 (ends exclusive) of the image and of its crops, which overlap.

    Args:
        layers: number of layers of crops; layer i has 2^i x 2^i of them.
        overlap: of the crops of layer 1, as a share of the shorter side; that of layer i is overlap x 2 / 2^i.
    """
    yield 0, (0, 0, width, height)
    for layer in range(1, layers + 1):
        n = 2**layer
        shared = int(overlap * min(height, width) * 2 / n)
        across, down = (math.ceil((shared * (n - 1) + side) / n) for side in (width, height))
        for x, y in itertools.product(range(n), repeat=2):
            x0, y0 = x * (across - shared), y * (down - shared)
            yield layer, (x0, y0, min(x0 + across, width), min(y0 + down, height))


def stability(logits: Tensor, offset: float) -> Tensor:
    """Return the IoU of the masks logits > offset and logits > -offset; (m, H, W) -> (m,), NaN without a pixel."""
    inner, outer = ((logits > threshold).flatten(1).sum(1) for threshold in (offset, -offset))
    return inner / outer


def inclusive_boxes(masks: Tensor) -> Tensor:
    """Return x0, y0, x1, y1 of the first and last pixels of masks (m, H, W) that have one each, float32 (m, 4)."""
    ends = []
    for occupied in (masks.any(1).to(torch.uint8), masks.any(2).to(torch.uint8)):  # columns (m, W), rows (m, H)
        ends.append((occupied.argmax(1), occupied.shape[1] - 1 - occupied.flip(1).argmax(1)))
    (x0, x1), (y0, y1) = ends
    return torch.stack((x0, y0, x1, y1), dim=1).float()


def touches_crop(boxes: Tensor, crop: Sequence[int], image: Sequence[int]) -> Tensor:
    """Return which boxes (m, 4) have a side within :data:`NEAR` pixels of the crop's, and not of the image's, (m,)."""
    of_crop, of_image = ((boxes - boxes.new_tensor(box)).abs() <= NEAR for box in (crop, image))
    return (of_crop & ~of_image).any(1)


def without_small_parts(mask: np.ndarray, area: int) -> tuple[np.ndarray, bool]:
    """Fill holes of less than ``area`` pixels, and remove smaller parts; of a mask of small parts the largest stays.

    Args:
        mask: bool (H, W); its parts and holes are 8-connected.

    Returns:
        The mask, and whether it was changed.
    """
    changed = False
    for holes in (True, False):
        parts = (mask ^ holes).astype(np.uint8)
        _, labels, about, _ = cv2.connectedComponentsWithStats(parts, connectivity=8)
        areas = about[1:, cv2.CC_STAT_AREA]
        small = areas < area
        if not small.any():
            continue
        if not holes and small.all():
            small[areas.argmax()] = False
            if not small.any():
                continue
        mask, changed = mask ^ np.concatenate(([False], small))[labels], True
    return mask, changed
