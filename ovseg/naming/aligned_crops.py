"""``AlignedCrops``: ZegFormer's namer, which cuts the crop of each mask by RoIAlign and classifies it with CLIP.

Ding et al., CVPR 2022, arXiv 2112.07910, section 3.3; specification, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from ovseg.clip.adapter import ClipAdapter, unit
from ovseg.clip.preprocessing import OPENAI
from ovseg.naming.crops import MaskedCrops, mask_boxes
from ovseg.naming.scores import NAMERS, Scores, best_synonym
from ovseg.proposals.network import PixelNormalizer
from ovseg.proposals.views import Masks, Views
from ovseg.vocabulary import Vocabulary


@NAMERS.register()
class AlignedCrops(MaskedCrops):
    """Namer that encodes each mask's part of the padded image with CLIP, at CLIP's own temperature.

    All masks get scores, those without a pixel, too: they are classified by an image of zeros, or, in style "crop", by
    the whole canvas. Scores depend on the padding, hence on the other images of a batch.

    Args:
        clip_adapter: CLIP.
        style: "cropmask", the image with zeros (the mean colour) outside the mask, in the mask's box; "crop", the image
            in the box; "mask", the whole canvas with zeros outside the mask.
        pixel_mean, pixel_std: of CLIP's input, RGB, 0 .. 255.
        templates: prompts of the words; None for those of the adapter.
        no_object: class embeddings of masks (Q, D) -> logits (Q,) of "no object", with which the words compete; None
            to let the words compete with each other only.
        mask_threshold: probability above which a pixel belongs to a mask.
        crops_at_a_time: see :class:`MaskedCrops`.
    """

    def __init__(
        self,
        clip_adapter: ClipAdapter,
        *,
        style: str = "cropmask",
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        templates: Sequence[str] | None = None,
        no_object: Callable[[Tensor], Tensor] | None = None,
        mask_threshold: float = 0.5,
        crops_at_a_time: int = 0,
    ):
        super().__init__(clip_adapter, mask_threshold=mask_threshold, crops_at_a_time=crops_at_a_time)
        self.normalize_crops = PixelNormalizer(pixel_mean, pixel_std)
        self.style, self.templates, self.no_object = style, templates, no_object

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        clip_adapter: ClipAdapter,
        templates: Sequence[str] | None = None,
        no_object: Callable[[Tensor], Tensor] | None = None,
    ) -> AlignedCrops:
        return cls(
            clip_adapter,
            style=cfg.MODEL.CLIP_CLS_STYLE,
            pixel_mean=_of_clip(cfg.MODEL.CLIP_PIXEL_MEAN, OPENAI.mean, clip_adapter.preprocessing.mean),
            pixel_std=_of_clip(cfg.MODEL.CLIP_PIXEL_STD, OPENAI.std, clip_adapter.preprocessing.std),
            templates=templates,
            no_object=no_object,
            crops_at_a_time=cfg.MODEL.CLIP_ADAPTER.REGION_CHUNK_SIZE,
        )

    def forward(self, views: Views, masks: Sequence[Masks], words: Sequence[Vocabulary | None]) -> list[Scores | None]:
        """Return the scores of each image, of all masks; None for images without a vocabulary."""
        asked = [index for index, vocabulary in enumerate(words) if vocabulary is not None]
        shown = [(index, self.canvas_logits(masks[index], views.canvas)) for index in asked]
        scores: list[Scores | None] = [None] * len(words)
        for index, features in zip(asked, self.features(views, shown), strict=True):
            logits = self.logits(features, masks[index].embeddings, words[index])
            scores[index] = Scores(logits.softmax(-1)[:, : len(words[index])])
        return scores

    def logits(self, features: Tensor, embeddings: Tensor | None, vocabulary: Vocabulary) -> Tensor:
        """Return the logits of words, and of "no object" last where the namer knows it.

        Args:
            features: of the masks by CLIP (Q, D).
            embeddings: of the masks by the proposer (Q, D); None if it has none.

        Returns:
            float32 (Q, K + 1), or (Q, K).
        """
        text = self.clip_adapter.text_rows(vocabulary.texts, vocabulary.templates or self.templates).to(features.device)
        self.clip_adapter.check_table(features, text)
        by_text = self.clip_adapter.clip_model.logit_scale.exp() * unit(features) @ text.T  # (Q, S)
        knows = self.no_object is not None and embeddings is not None
        no_object = self.no_object(embeddings) if knows else by_text[:, 0]
        logits = best_synonym(torch.cat((by_text, no_object[:, None]), dim=1), vocabulary)
        return logits if knows else logits[:, :-1]

    def canvas_logits(self, masks: Masks, canvas: tuple[int, int]) -> Tensor:
        """Return logits of masks on the canvas, (Q, h, w) of any size; of masks that no network predicts, +-1."""
        if masks.logits is not None:
            return masks.logits
        signs = torch.where(masks.probabilities > self.mask_threshold, 1.0, -1.0)
        return F.pad(signs, (0, canvas[1] - signs.shape[2], 0, canvas[0] - signs.shape[1]), value=-1.0)

    def inputs(self, views: Views, index: int, logits: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield CLIP's input for masks, a few masks at a time: float32 (v, 3, S, S), normalised.

        Args:
            logits: (Q, h, w) of :meth:`canvas_logits`.
        """
        image = self.normalize_crops(views.images[index])
        image = F.pad(image, (0, views.canvas[1] - image.shape[2], 0, views.canvas[0] - image.shape[1]))
        size = self.clip_adapter.image_size
        for few in logits.split(self.chunk_size) if len(logits) else ():
            few = _resized(few, views.canvas)
            if self.style == "mask":
                small = _resized(few, (size, size)).sigmoid() > self.mask_threshold
                yield (_resized(image, (size, size)) * small[:, None],)
                continue
            binary = few.sigmoid() > self.mask_threshold
            whole = self.style == "crop"
            pixels = image[None] if whole else image * binary[:, None]  # (1 or v, 3, H, W)
            rows = torch.arange(len(few), device=few.device) * (not whole)  # of the pixels
            boxes = torch.cat((rows[:, None], inclusive_boxes(binary)), dim=1)
            yield (roi_align(pixels, boxes, size, spatial_scale=1.0, sampling_ratio=0, aligned=True),)

    def encode(self, crops: Tensor) -> Tensor:
        """Return CLIP's features of crops, float32 (v, D), not normalised."""
        return super().encode(crops, crops)


def inclusive_boxes(masks: Tensor) -> Tensor:
    """Return the first and last column and row of masks; the whole canvas if they enclose no area.

    Args:
        masks: bool (V, H, W).

    Returns:
        float32 (V, 4): x0, y0, x1, y1 in pixels, x1 and y1 inclusive; 0, 0, W, H for a mask without a pixel, or of one
        row or column.
    """
    boxes = mask_boxes(masks)
    boxes[:, 2:] -= 1
    degenerate = ~masks.flatten(1).any(1) | ((boxes[:, 2:] - boxes[:, :2]).prod(1) == 0)
    canvas = boxes.new_tensor((0, 0, masks.shape[2], masks.shape[1]))
    return torch.where(degenerate[:, None], canvas, boxes)


def _of_clip(given: Sequence[float], openai: Sequence[float], own: Sequence[float]) -> Sequence[float]:
    """Return the values of a key, 0 .. 255; for its default, OpenAI's, those of the CLIP, which are 0 .. 1."""
    default = all(
        math.isclose(value, 255 * of_openai, rel_tol=1e-6) for value, of_openai in zip(given, openai, strict=True)
    )
    return [255 * value for value in own] if default else given


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (n, H, W) bilinearly to (n, height, width)."""
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
