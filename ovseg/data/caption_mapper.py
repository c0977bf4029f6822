"""Mapper of captioned images for OpenSeg: class-agnostic masks, and the words of one caption (arXiv 2112.12143)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Instances
from fvcore.transforms.transform import CropTransform

from ovseg.data.mapper import _read, _to_tensor
from ovseg.data.worlds import world_words
from ovseg.io.images import read_labels
from ovseg.vocabulary.nouns import get_extractor

JITTER = (0.8, 1.2)


class CanvasJitter(T.Augmentation):
    """Scale an image to fit a square of a random size, and cut at a random place what exceeds the canvas."""

    def __init__(self, canvas: int):
        super().__init__()
        self.canvas = canvas

    def get_transform(self, image: np.ndarray) -> T.TransformList:
        height, width = image.shape[:2]
        side = round(self.canvas * np.random.uniform(*JITTER))
        ratio = side / max(height, width)
        new = max(1, round(height * ratio)), max(1, round(width * ratio))
        kept = [min(length, self.canvas) for length in new]
        top, left = (np.random.randint(length - keep + 1) for length, keep in zip(new, kept, strict=True))
        return T.TransformList(
            [T.ResizeTransform(height, width, *new), CropTransform(left, top, kept[1], kept[0], new[1], new[0])]
        )


class CaptionMapper:
    def __init__(self, cfg: CfgNode):
        self.augmentations = T.AugmentationList([CanvasJitter(cfg.MODEL.OPENSEG.CANVAS), T.RandomFlip()])
        self.image_format = cfg.INPUT.FORMAT
        self.keep = cfg.INPUT.CAPTION.KEEP_PROB
        self.extractor = get_extractor("textblob", "phrase", world_words(cfg.INPUT.CAPTION.WORDS) or ())

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        image = _read(record["file_name"], self.image_format)
        labels = np.full(image.shape[:2], 255.0)
        if "sem_seg_file_name" in record:
            labels = read_labels(record["sem_seg_file_name"]).astype(np.float64)
        augmented = T.AugInput(image, sem_seg=labels)
        self.augmentations(augmented)
        labels = augmented.sem_seg.astype(np.int64)
        present = np.unique(labels)
        present = present[present != 255]
        instances = Instances(labels.shape, gt_masks=torch.from_numpy(labels == present[:, None, None]))
        caption = record["captions"][np.random.randint(len(record["captions"]))]
        words = self.extractor.nouns(caption)
        kept = [word for word in words if np.random.random() < self.keep]
        if words and not kept:
            kept = [words[np.random.randint(len(words))]]
        return {
            "file_name": record["file_name"],
            "image": _to_tensor(augmented.image),
            "instances": instances,
            "caption_words": kept,
        }
