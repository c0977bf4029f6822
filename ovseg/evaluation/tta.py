"""Test-time augmentation and sliding windows: scores averaged over views of an image (specification, section 10.2).

Both wrap a model and have the inputs and outputs of a meta-architecture, so they can be combined.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import DatasetMapperTTA
from detectron2.modeling.postprocessing import sem_seg_postprocess
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.data.requested_words import requested_words
from ovseg.errors import OvsegError
from ovseg.io.images import resize_transform
from ovseg.naming.windows import Place, average, windows


def augmented_model(cfg: CfgNode, model: nn.Module, largest_sum: int | None = None) -> nn.Module:
    """Return ``model`` with the sliding window and the test-time augmentation of ``cfg.TEST``, or unchanged.

    ``cfg.TEST.MULTI_SCALE`` is another way to do both, the one of LSeg: see :class:`MultiScale`.
    ``largest_sum`` limits the memory of the sliding window, see :class:`SlidingWindow`.
    """
    multi = cfg.TEST.MULTI_SCALE
    if multi.ENABLED:
        if cfg.TEST.SLIDING_WINDOW or cfg.TEST.AUG.ENABLED:
            raise OvsegError(
                "TEST.MULTI_SCALE.ENABLED has windows and mirror images of its own: set TEST.SLIDING_WINDOW and "
                "TEST.AUG.ENABLED to False"
            )
        return MultiScale(model, multi.BASE_SIZE, multi.CROP_SIZE, multi.SCALES, multi.FLIP)
    if cfg.TEST.SLIDING_WINDOW:
        model = SlidingWindow(model, cfg.TEST.SLIDING_TILE_SIZE, cfg.TEST.SLIDING_OVERLAP, largest_sum)
    if cfg.TEST.AUG.ENABLED:
        model = TestTimeAugmentation(model, DatasetMapperTTA(cfg), cfg.INPUT.ANTIALIAS_TEST)
    return model


def has_many_views(cfg: CfgNode) -> bool:
    """Return whether scores are averages over views of an image: see :func:`augmented_model`."""
    return cfg.TEST.AUG.ENABLED or cfg.TEST.SLIDING_WINDOW or cfg.TEST.MULTI_SCALE.ENABLED


class _ManyViews(nn.Module):
    """Base class of models with averaged scores; proposals are those of the whole image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Return the results of the requests, as the wrapped model in evaluation mode.

        Args:
            batched_inputs: dicts with ``image`` (3, H, W), the words, and optional ``height``, ``width``, ``outputs``.

        Returns:
            For each input ``sem_seg`` float32 (K, height, width); ``label_map`` int64 and ``score_map`` float32
            (height, width); and ``proposals`` bool (Q, height, width). All K x height x width scores are in memory.
        """
        return [self._answer(sample) for sample in batched_inputs]

    def average_scores(self, sample: dict) -> Tensor:
        """Return scores float32 (K, height, width) of one input that has ``height`` and ``width``."""
        raise NotImplementedError

    def _answer(self, sample: dict) -> dict:
        size = sample["image"].shape[-2:]
        sample = {**sample, "height": sample.get("height", size[0]), "width": sample.get("width", size[1])}
        asked = sample.get("outputs", ("sem_seg",))
        answer: dict[str, Tensor] = {}
        if "proposals" in asked:
            plain = self.model.model if isinstance(self.model, _ManyViews) else self.model
            answer["proposals"] = plain([{**sample, "outputs": ("proposals",)}])[0]["proposals"]
        if "sem_seg" in asked or "label_map" in asked:
            scores = self.average_scores(sample)
            if "sem_seg" in asked:
                answer["sem_seg"] = scores
            if "label_map" in asked:
                answer["score_map"], answer["label_map"] = scores.max(dim=0)
        return answer

    def _scores_of_view(self, sample: dict, image: Tensor, height: int, width: int) -> Tensor:
        """Return scores (K, height, width) of the wrapped model for a view with the words of the sample."""
        view = {**sample, "image": image, "height": height, "width": width, "outputs": ("sem_seg",)}
        return self.model([view])[0]["sem_seg"]


class TestTimeAugmentation(_ManyViews):
    """Test-time augmentation: mean of the scores over resized and mirrored views, one forward pass each.

    Args:
        model: a meta-architecture, or a :class:`SlidingWindow`.
        mapper: Detectron2's ``DatasetMapperTTA``, for its sizes: one view per size, and its mirror image.
        antialias: see :func:`ovseg.io.images.resize_transform`.
    """

    __test__ = False  # not a test case of pytest, despite its name

    def __init__(self, model: nn.Module, mapper: DatasetMapperTTA, antialias: bool = True) -> None:
        super().__init__(model)
        self.mapper, self.antialias = mapper, antialias

    def average_scores(self, sample: dict) -> Tensor:
        """Return the mean scores of one input; views are added to a running sum."""
        height, width = sample["height"], sample["width"]
        pixels = sample["image"].cpu().permute(1, 2, 0).numpy()
        mirrored = (False, True) if self.mapper.flip else (False,)
        total: Tensor | None = None
        for size in self.mapper.min_sizes:
            resize = resize_transform(*pixels.shape[:2], size, self.mapper.max_size, self.antialias)
            view = resize.apply_image(pixels)
            image = torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1)))
            for mirror in mirrored:
                scores = self._scores_of_view(sample, image.flip(-1) if mirror else image, height, width)
                scores = scores.flip(-1) if mirror else scores
                total = scores.clone() if total is None else total.add_(scores)
                del scores  # before the next view is computed
        return total.div_(len(self.mapper.min_sizes) * len(mirrored))


class SlidingWindow(_ManyViews):
    """Sliding window: scores of overlapping square tiles, averaged and resized to the output size.

    Args:
        model: a meta-architecture.
        tile_size: side of a tile in pixels of the model's input; a smaller image is one tile.
        overlap: share of a tile, in [0, 1), that the next tile overlaps; the stride is
            ``ceil(tile_size * (1 - overlap))``, and the last tile of a row or column is shifted inside.
        largest_sum: largest number of summed scores, K for each pixel of the model's input; above it, they are summed
            at a smaller size. None for no limit.

    Raises:
        OvsegError: ``tile_size`` is not positive, or ``overlap`` out of range.
    """

    def __init__(self, model: nn.Module, tile_size: int, overlap: float, largest_sum: int | None = None) -> None:
        super().__init__(model)
        if tile_size <= 0:
            raise OvsegError(
                f"TEST.SLIDING_TILE_SIZE is {tile_size}: give the side of a tile in pixels (the original's "
                "table of sizes for values <= 0 is not supported)"
            )
        if not 0 <= overlap < 1:
            raise OvsegError(f"TEST.SLIDING_OVERLAP is {overlap}: use a share of the tile from 0 to below 1")
        self.tile_size = tile_size
        self.stride = math.ceil(tile_size * (1 - overlap))
        self.largest_sum = largest_sum

    def average_scores(self, sample: dict) -> Tensor:
        """Return the averaged scores of one input."""
        image = sample["image"]
        scale = self._scale(sample)
        height, width = (max(1, round(side * scale)) for side in image.shape[-2:])
        tile, stride = (self.tile_size, self.tile_size), (self.stride, self.stride)
        places = windows(tuple(image.shape[1:]), tile, stride)
        parts = (self._part(sample, place, scale, (height, width)) for place in places)
        total = average(parts, (height, width))
        return sem_seg_postprocess(total, (height, width), sample["height"], sample["width"])

    def _part(self, sample: dict, place: Place, scale: float, size: tuple[int, int]) -> tuple[Place, Tensor]:
        """Return the place of a tile in scores of ``size``, and its scores."""
        smaller = tuple(_scaled(span, scale, length) for span, length in zip(place, size, strict=True))
        height, width = (span.stop - span.start for span in smaller)
        return smaller, self._scores_of_view(sample, sample["image"][(slice(None), *place)], height, width)

    def _scale(self, sample: dict) -> float:
        """Return the factor on the sides of the image at which scores are summed."""
        if self.largest_sum is None:
            return 1.0
        classes = len(requested_words(sample)) + 1  # 1: the model may add "others"
        return min(1.0, (self.largest_sum / (classes * sample["image"][0].numel())) ** 0.5)


class MultiScale(_ManyViews):
    """Multi-scale evaluation of LSeg: mean of the scores over scales, square windows and mirror images.

    For each scale, the longer side of the image becomes ``ceil(base_size * scale)`` pixels. An image that does not
    exceed the crop is padded to it at right and bottom with black; another one is divided into windows of the crop
    with a stride of two thirds, of which the last ones are padded. Images and scores are resized bilinearly, with
    aligned corners. The original adds all of these scores; the mean has the same order.

    Args:
        model: a meta-architecture.
        base_size: pixels of the longer side at scale 1.
        crop_size: side of a window in pixels.
        scales: factors on ``base_size``.
        flip: add mirror images.
    """

    def __init__(self, model: nn.Module, base_size: int, crop_size: int, scales: Sequence[float], flip: bool) -> None:
        super().__init__(model)
        self.base_size, self.crop_size, self.scales, self.flip = base_size, crop_size, tuple(scales), flip

    def average_scores(self, sample: dict) -> Tensor:
        """Return the mean scores of one input."""
        total: Tensor | None = None
        for scale in self.scales:
            image = _resize_aligned(sample["image"].float(), self._size(sample["image"].shape[1:], scale))
            scores = _resize_aligned(self._scores_of_scale(sample, image), (sample["height"], sample["width"]))
            total = scores if total is None else total + scores
        return total / (len(self.scales) * (2 if self.flip else 1))

    def _size(self, shape: Sequence[int], scale: float) -> tuple[int, int]:
        longer = math.ceil(self.base_size * scale)
        height, width = (max(1, int(side * longer / max(shape) + 0.5)) for side in shape)
        return height, width

    def _scores_of_scale(self, sample: dict, image: Tensor) -> Tensor:
        """Return the scores (K, H, W) of a resized image (3, H, W)."""
        height, width = image.shape[1:]
        if max(height, width) <= self.crop_size:
            return self._scores_of_window(sample, image)
        stride = max(1, int(self.crop_size * 2 / 3))
        if min(height, width) < self.crop_size:
            image = self._pad(image)
        total: Tensor | None = None
        count = image.new_zeros(image.shape[1:])
        for top in self._starts(image.shape[1], stride):
            for left in self._starts(image.shape[2], stride):
                place = slice(None), slice(top, top + self.crop_size), slice(left, left + self.crop_size)
                scores = self._scores_of_window(sample, image[place])
                total = scores.new_zeros(len(scores), *image.shape[1:]) if total is None else total
                total[place] += scores
                count[place[1:]] += 1
        return total[:, :height, :width] / count[:height, :width].to(total.device)

    def _starts(self, length: int, stride: int) -> range:
        windows = math.ceil(max(length - self.crop_size, 0) / stride) + 1
        return range(0, windows * stride, stride)

    def _scores_of_window(self, sample: dict, window: Tensor) -> Tensor:
        """Return the scores (K, h, w) of a window, plus those of its mirror image."""
        padded = self._pad(window)
        scores = self._scores_of_view(sample, padded, *padded.shape[1:])
        if self.flip:
            scores = scores + self._scores_of_view(sample, padded.flip(-1), *padded.shape[1:]).flip(-1)
        return scores[:, : window.shape[1], : window.shape[2]]

    def _pad(self, image: Tensor) -> Tensor:
        bottom, right = (max(self.crop_size - side, 0) for side in image.shape[1:])
        return F.pad(image, (0, right, 0, bottom))


def _resize_aligned(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (n, H, W) bilinearly to (n, height, width) with aligned corners."""
    return F.interpolate(maps[None], tuple(size), mode="bilinear", align_corners=True)[0]


def _scaled(span: slice, scale: float, length: int) -> slice:
    """Return a span scaled by ``scale``, in a row or column of ``length`` pixels; at least one pixel."""
    start = min(round(span.start * scale), length - 1)
    return slice(start, min(max(round(span.stop * scale), start + 1), length))
