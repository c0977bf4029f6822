"""What training images go through before the model sees them (specification, section 9.1)."""

from __future__ import annotations

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from fvcore.transforms.transform import PadTransform

from ovseg.errors import OvsegError
from ovseg.io.images import keep_a_pixel

IMAGE_PAD_VALUE = 128


class ResizeShortestEdge(T.ResizeShortestEdge):
    """As Detectron2's, but a very long image keeps at least one pixel of its short side."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return keep_a_pixel(super().get_transform(image))


class _CropSize(T.RandomCrop):
    """As Detectron2's, but a relative size of a narrow image is at least one pixel."""

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        height, width = super().get_crop_size(image_size)
        return max(1, height), max(1, width)


class PadToMultiple(T.Augmentation):
    """Pad at the right and the bottom to the next multiple of ``divisor``.

    The published mapper pads to exactly ``divisor`` and would cut what is larger, which can only happen with cropping
    disabled; a larger image grows to the next multiple here. Up to ``divisor`` both are the same.

    Args:
        divisor: pixels.
        label_value: written into the labels' padding; the image gets 128.
    """

    def __init__(self, divisor: int, label_value: int):
        super().__init__()
        self.divisor = divisor
        self.label_value = label_value

    def get_transform(self, image: np.ndarray) -> PadTransform:
        height, width = image.shape[:2]
        return PadTransform(
            0,
            0,
            -width % self.divisor,
            -height % self.divisor,
            orig_w=width,
            orig_h=height,
            pad_value=IMAGE_PAD_VALUE,
            seg_pad_value=self.label_value,
        )


def build_train_augmentations(cfg: CfgNode, ignore_label: int) -> list[T.Augmentation | T.Transform]:
    """Return resize, crop, colours, flip and padding, in the published order.

    Keys below ``cfg.INPUT``: ``MIN_SIZE_TRAIN``, ``MAX_SIZE_TRAIN``, ``MIN_SIZE_TRAIN_SAMPLING``, ``CROP.*``,
    ``COLOR_AUG_SSD``, ``RANDOM_FLIP``, ``SIZE_DIVISIBILITY``. Draws come from NumPy's and Python's global generators.

    Raises:
        OvsegError: a value that cannot work.
    """
    source = cfg.INPUT
    if source.RANDOM_FLIP not in ("horizontal", "vertical", "none"):
        raise OvsegError(f"INPUT.RANDOM_FLIP is {source.RANDOM_FLIP!r}; choose one of horizontal, vertical, none")
    augmentations: list[T.Augmentation | T.Transform] = [
        ResizeShortestEdge(source.MIN_SIZE_TRAIN, source.MAX_SIZE_TRAIN, source.MIN_SIZE_TRAIN_SAMPLING)
    ]
    if source.CROP.ENABLED:
        crop = T.RandomCrop_CategoryAreaConstraint(
            source.CROP.TYPE, source.CROP.SIZE, source.CROP.SINGLE_CATEGORY_MAX_AREA, ignore_label
        )
        crop.crop_aug = _CropSize(source.CROP.TYPE, source.CROP.SIZE)
        augmentations.append(crop)
    if source.COLOR_AUG_SSD:
        augmentations.append(ColorAugSSDTransform(img_format=source.FORMAT))
    if source.RANDOM_FLIP != "none":
        vertical = source.RANDOM_FLIP == "vertical"
        augmentations.append(T.RandomFlip(horizontal=not vertical, vertical=vertical))
    if source.SIZE_DIVISIBILITY > 0:
        augmentations.append(PadToMultiple(source.SIZE_DIVISIBILITY, ignore_label))
    return augmentations
