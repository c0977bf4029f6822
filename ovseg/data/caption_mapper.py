"""Mapper of captioned images for OpenSeg: class-agnostic masks, and the words of one caption (arXiv 2112.12143)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.projects.point_rend import ColorAugSSDTransform
from detectron2.structures import Instances

from ovseg.data.caption_words import configured_words
from ovseg.data.mapper import read_as, to_tensor
from ovseg.data.record_masks import Grid, record_masks
from ovseg.grounding.words import drop_words

JITTER = (0.8, 1.2)  # of the canvas's side
# words that are wrong for a mirrored image
SIDES = {"horizontal": frozenset({"left", "right"}), "vertical": frozenset({"top", "bottom", "upper", "lower"})}

Words = Callable[[str], Sequence[str]]


class CaptionMapper:
    """Mapper that scales, cuts and mirrors an image with its masks, and draws the words of one of its captions.

    A number f is drawn from [0.8, 1.2]. The image is scaled, its aspect kept, to the largest size that fits a square of
    round(canvas x f) pixels; what exceeds the canvas is cut at an offset drawn for each axis. The model pads the rest,
    at the bottom and the right. Half of the images are mirrored, except if a word would become wrong ("left").

    Of the words of the drawn caption, ``max_words`` are drawn if there are more, then each is kept with ``keep_prob``.

    All draws come from NumPy's global generator, which the loader seeds for each sample.

    Args:
        canvas: pixels of its side.
        words: returns the words of a caption; None leaves captions unread.
        keep_prob: see :func:`ovseg.grounding.words.drop_words`.
        max_words: of a caption.
        flip: "horizontal", "vertical" or "none".
        colors: also draw brightness, contrast, saturation and hue.
        image_format: "RGB" or "BGR".
        ignore_label: value of label maps without a mask.
    """

    @configurable
    def __init__(
        self,
        *,
        canvas: int,
        words: Words | None,
        keep_prob: float = 0.75,
        max_words: int = 32,
        flip: str = "horizontal",
        colors: bool = False,
        image_format: str = "RGB",
        ignore_label: int = 255,
    ):
        self.canvas = canvas
        self.words = words
        self.keep_prob = keep_prob
        self.max_words = max_words
        self.flip = flip
        self.colors = ColorAugSSDTransform(img_format=image_format) if colors else None
        self.image_format = image_format
        self.ignore_label = ignore_label

    @classmethod
    def from_config(cls, cfg: CfgNode, records: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """Return the arguments; ``records`` are those of the training, of whose captions a word file must be."""
        reads_captions = cfg.MODEL.OPENSEG.GROUNDING_LOSS_WEIGHT > 0
        return {
            "canvas": cfg.MODEL.OPENSEG.CANVAS,
            "words": configured_words(cfg, lambda: captions_of(records)) if reads_captions else None,
            "keep_prob": cfg.INPUT.CAPTION.KEEP_PROB,
            "max_words": cfg.INPUT.CAPTION.MAX_WORDS,
            "flip": cfg.INPUT.RANDOM_FLIP,
            "colors": cfg.INPUT.COLOR_AUG_SSD,
            "image_format": cfg.INPUT.FORMAT,
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Map one dataset dict with ``file_name``; it is not changed.

        Args:
            record: ``captions``, a list of str, which may be empty or missing; masks as in
                :func:`ovseg.data.record_masks.record_masks`.

        Returns:
            ``file_name``, ``image_id``; ``image`` (3, h, w) uint8, h and w up to the canvas; ``instances`` with
            ``gt_masks`` bool (M, h, w), without masks that were cut away; ``caption``, the drawn one, "" without any;
            and ``caption_words``, a list of str, empty for a caption without usable words.

        Raises:
            OvsegError: an unreadable file, or masks of another size than the image.
        """
        image = read_as(record["file_name"], self.image_format)
        captions = record.get("captions", ()) if self.words else ()
        caption = captions[np.random.randint(len(captions))] if captions else ""
        words = self._draw_words(caption)
        grid = self._draw_grid(*image.shape[:2], words)
        image = grid.take_image(image)
        masks = record_masks(record, grid, self.ignore_label)
        return {
            **{key: record[key] for key in ("file_name", "image_id") if key in record},
            "image": to_tensor(image if self.colors is None else self.colors.apply_image(image)),
            "instances": Instances(grid.size, gt_masks=torch.from_numpy(masks)),
            "caption": caption,
            "caption_words": list(words),
        }

    def _draw_words(self, caption: str) -> tuple[str, ...]:
        if not caption:
            return ()
        words = tuple(self.words(caption))
        rng = np.random.default_rng(np.random.randint(2**31))
        if len(words) > self.max_words:
            words = tuple(words[index] for index in sorted(rng.choice(len(words), self.max_words, replace=False)))
        return drop_words(words, self.keep_prob, rng)

    def _draw_grid(self, height: int, width: int, words: Sequence[str]) -> Grid:
        side = round(self.canvas * np.random.uniform(*JITTER))
        resized = [max(1, round(length * side / max(height, width))) for length in (height, width)]
        rows, columns = (
            np.arange(kept) + np.random.randint(length - kept + 1)
            for length, kept in ((length, min(length, self.canvas)) for length in resized)
        )
        if self.flip != "none" and np.random.random() < 0.5:
            spoken = {part for word in words for part in word.lower().split()}
            if not spoken & SIDES[self.flip]:
                rows, columns = (rows[::-1], columns) if self.flip == "vertical" else (rows, columns[::-1])
        return Grid(height, width, tuple(resized), rows, columns)


def captions_of(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield all captions of dataset dicts."""
    for record in records:
        yield from record.get("captions", ())
