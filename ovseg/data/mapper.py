"""Mappers from dataset dicts to inputs of the model, with their augmentations (specification, section 9.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from detectron2.structures import Instances
from fvcore.transforms.transform import PadTransform

from ovseg.data.protocol import configured_protocol, seen_words
from ovseg.errors import OvsegError
from ovseg.io.images import keep_a_pixel, read_image, read_labels, resize_transform
from ovseg.vocabulary import Vocabulary

IMAGE_PAD_VALUE = 128


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's resize, except that a very long image keeps at least one pixel of its short side."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return keep_a_pixel(super().get_transform(image))


class TestResize(T.Augmentation):
    """Resize for evaluation; see :func:`ovseg.io.images.resize_transform`."""

    __test__ = False  # not a test case of pytest, despite its name

    def __init__(self, min_size: int, max_size: int, antialias: bool = True):
        super().__init__()
        self.sizes, self.antialias = (min_size, max_size), antialias

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return resize_transform(*image.shape[:2], *self.sizes, self.antialias)


class _CropSize(T.RandomCrop):
    """Detectron2's crop, except that a relative size of a narrow image is at least one pixel."""

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


class SemSegTrainMapper:
    """The mapper ``mask_former_semantic``: augments an image with its labels, one boolean mask for each class.

    Random draws come from NumPy's and Python's global generators; seed these for repeatable samples.

    Args:
        dataset_name: the training data set, whose words the sample is to be named with.
        augmentations: applied in order; the last one pads.
        image_format: "RGB" or "BGR".
        ignore_label: value of pixels without a class.
        num_classes: labels are 0 .. num_classes - 1.
    """

    @configurable
    def __init__(
        self,
        *,
        dataset_name: str,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        ignore_label: int,
        num_classes: int,
    ):
        self.dataset_name = dataset_name
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.ignore_label = ignore_label
        self.num_classes = num_classes

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        dataset_name, ignore_label = training_set(cfg)
        return {
            "dataset_name": dataset_name,
            "augmentations": build_train_augmentations(cfg, ignore_label),
            "image_format": cfg.INPUT.FORMAT,
            "ignore_label": ignore_label,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict with ``file_name`` and ``sem_seg_file_name``; it is not changed.

        Returns:
            the dict with ``image`` (3,H,W) uint8, ``instances`` of size (H,W) with ``gt_classes`` int64 (n,) ascending
            and ``gt_masks`` bool (n,H,W), and ``meta``. An image without labels has n = 0.

        Raises:
            OvsegError: an unreadable file, labels of another size than the image, a label beyond the classes.
        """
        sample = dict(dataset_dict)
        file_name, label_file = sample["file_name"], sample.pop("sem_seg_file_name")
        image = read_as(file_name, self.image_format)
        # labels are resized as doubles, for which Detectron2 takes another "nearest" than for bytes
        labels = read_labels(label_file).astype(np.float64)
        if labels.shape != image.shape[:2]:
            raise OvsegError(
                f"label file {label_file} has {_size(labels)} pixels but its image {file_name} {_size(image)}: "
                "both must be of one size"
            )
        augmented = T.AugInput(image, sem_seg=labels)
        self.augmentations(augmented)

        labels = augmented.sem_seg.astype(np.int64)
        present = np.unique(labels)
        present = present[present != self.ignore_label]
        if len(present) and (present[-1] >= self.num_classes or present[0] < 0):
            raise OvsegError(
                f"label file {label_file} holds the value {present[-1]}, but labels must be below "
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES = {self.num_classes} or the ignore label {self.ignore_label}"
            )
        instances = Instances(labels.shape)
        instances.gt_classes = torch.from_numpy(present)
        instances.gt_masks = torch.from_numpy(labels == present[:, None, None])
        return {
            **sample,
            "image": to_tensor(augmented.image),
            "instances": instances,
            "meta": {"dataset_name": self.dataset_name},
        }


class SemSegTestMapper:
    """Resizes an image for evaluation: shortest edge to ``MIN_SIZE_TEST``, no padding.

    Args:
        dataset_name: the data set that the images belong to.
        vocabulary: the words to segment into.
        outputs: what the model returns, see the meta-architecture.
        resize: applied to the image.
        image_format: "RGB" or "BGR".
        seen: which of the words are words of the training, if that is known.
    """

    @configurable
    def __init__(
        self,
        *,
        dataset_name: str,
        vocabulary: Vocabulary,
        outputs: Sequence[str],
        resize: T.Augmentation,
        image_format: str,
        seen: Sequence[bool] | None = None,
    ):
        self.dataset_name = dataset_name
        self.vocabulary = vocabulary
        self.outputs = tuple(outputs)
        self.resize = resize
        self.image_format = image_format
        self.known = {} if seen is None else {"seen": seen}

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset_name: str, outputs: Sequence[str]) -> dict[str, Any]:
        protocol = configured_protocol(cfg, dataset_name)
        return {
            "dataset_name": dataset_name,
            "vocabulary": protocol.vocabulary,
            "seen": seen_words(protocol),
            "outputs": outputs,
            "resize": TestResize(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.ANTIALIAS_TEST),
            "image_format": cfg.INPUT.FORMAT,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict with ``file_name``; it is not changed.

        Returns:
            the dict with ``image`` (3,h,w) uint8, the file's own ``height`` and ``width``, ``class_names``
            (a :class:`Vocabulary`), ``meta`` and ``outputs``; and ``seen``, if the data set's metadata has it.

        Raises:
            OvsegError: the image cannot be read.
        """
        image = read_as(dataset_dict["file_name"], self.image_format)
        augmented = T.AugInput(image)
        self.resize(augmented)
        return {
            **dataset_dict,
            "image": to_tensor(augmented.image),
            "height": image.shape[0],
            "width": image.shape[1],
            "class_names": self.vocabulary,
            "meta": {"dataset_name": self.dataset_name},
            "outputs": self.outputs,
            **self.known,
        }


def training_set(cfg: CfgNode) -> tuple[str, int]:
    """Return the name of the data set whose words ``DATASETS.TRAIN`` is trained with, and its ignore label.

    Raises:
        OvsegError: several training sets that differ in words or ignore label, or another number of words than
            ``MODEL.SEM_SEG_HEAD.NUM_CLASSES``.
    """
    if not cfg.DATASETS.TRAIN:
        raise OvsegError("DATASETS.TRAIN is empty: name the data sets to train on")
    first, *others = cfg.DATASETS.TRAIN
    vocabulary = _vocabulary(cfg, first)
    for other in others:
        if _vocabulary(cfg, other) != vocabulary:
            raise OvsegError(
                f"DATASETS.TRAIN: {first} and {other} differ in classes or ignore label and cannot be trained together"
            )
    words, ignore_label = vocabulary
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if words is not None and len(words) != num_classes:
        raise OvsegError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}, but the training data set {first} has {len(words)} "
            f"classes: add MODEL.SEM_SEG_HEAD.NUM_CLASSES {len(words)}"
        )
    return first, ignore_label


def _vocabulary(cfg: CfgNode, name: str) -> tuple[list[str] | None, int]:
    metadata = MetadataCatalog.get(name)
    return metadata.get("stuff_classes"), metadata.get("ignore_label", cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)


def read_as(file_name: str, image_format: str) -> np.ndarray:
    """Return an image file, (H,W,3) uint8, in the channel order of ``INPUT.FORMAT``.

    Raises:
        OvsegError: another order than RGB and BGR, or the image cannot be read.
    """
    if image_format not in ("RGB", "BGR"):
        raise OvsegError(f"INPUT.FORMAT is {image_format!r}; choose RGB or BGR")
    image = read_image(file_name)
    return image if image_format == "RGB" else image[:, :, ::-1]


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """Return an image (H,W,3) as a contiguous (3,H,W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))  # (H,W,3) -> (3,H,W)


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
