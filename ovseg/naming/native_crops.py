"""``NativeCrops``: crops that CLIP encodes at their own size (SimBaseline's ``REGION_RESIZED: False``)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ovseg.clip.adapter import ClipAdapter
from ovseg.clip.vit import encode_any_size, is_plain_vit
from ovseg.errors import OvsegError
from ovseg.naming.crops import MaskedCrops
from ovseg.proposals.views import Views


class NativeCrops(MaskedCrops):
    """:class:`MaskedCrops` that are not resized: CLIP's position embedding is resized to the patches of each crop.

    Crops go through CLIP one at a time. A box that is narrower than a patch is widened about its centre to one patch,
    within the image, so that the crop gets more of the background colour, but is not distorted. (The original raises an
    error.) Where the image itself is narrower, background is added at the right and the bottom.

    Args:
        clip_adapter: a CLIP with a plain vision transformer.
        options: those of :class:`MaskedCrops`, without mask prompts.
    """

    def __init__(self, clip_adapter: ClipAdapter, **options: Any):
        super().__init__(clip_adapter, **options)
        if not is_plain_vit(clip_adapter.clip_model.visual):
            raise OvsegError(
                f"MODEL.CLIP_ADAPTER.REGION_RESIZED is False, but CLIP {clip_adapter.source.name} takes images of one "
                "size only: set the key to True, or choose a plain vision transformer such as ViT-B/16"
            )
        if self.mask_prompts:
            raise OvsegError("mask prompts need crops of CLIP's size: set MODEL.CLIP_ADAPTER.REGION_RESIZED to True")

    def features(self, views: Views, masks: Iterable[tuple[int, Tensor]]) -> list[Tensor]:
        """Encode the crops of masks, see :meth:`MaskedCrops.features`."""
        clip = self.clip_adapter
        encoded = []
        for index, probabilities in masks:
            rows = [clip.pixel_mean.new_zeros(0, clip.embed_dim)]
            for crop in self.crops(views, index, probabilities):
                with clip.autocast(crop.device.type):
                    rows.append(encode_any_size(clip.image_tower, crop[None]).float())
            encoded.append(torch.cat(rows))
        return encoded

    def crops(self, views: Views, index: int, probabilities: Tensor) -> Iterable[Tensor]:
        """Yield the normalised crop (3, h, w) of each mask (V, H, W) of an image."""
        clip = self.clip_adapter
        mean, std = clip.pixel_mean[0], clip.pixel_std[0]
        fill = mean if self.mask_fill == "mean" else torch.zeros_like(mean)
        background = (fill - mean) / std
        pixels = (views.images[index].float() - mean) / std - background
        patch_height, patch_width = clip.clip_model.visual.conv1.kernel_size
        patch = torch.tensor((patch_width, patch_height), device=pixels.device)
        for shares, boxes in self.cuts(probabilities):
            for mask, (x0, y0, x1, y1) in zip(shares, widen(boxes, patch, *shares.shape[1:]).tolist(), strict=True):
                crop = pixels[:, y0:y1, x0:x1] * mask[y0:y1, x0:x1]
                missing = (0, max(patch_width - x1 + x0, 0), 0, max(patch_height - y1 + y0, 0))
                yield F.pad(crop, missing) + background


def widen(boxes: Tensor, least: Tensor, height: int, width: int) -> Tensor:
    """Widen boxes about their centres to a least size, within the image as far as that has it.

    Args:
        boxes: int64 (V, 4) x0, y0, x1, y1, exclusive ends, within the image.
        least: int64 (2,), width and height.
        height, width: of the image.

    Returns:
        int64 (V, 4); boxes of at least that size are unchanged.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    limit = torch.tensor((width, height), device=boxes.device)
    sides = (high - low).maximum(least).minimum(limit)
    low = (low - (sides - high + low) // 2).minimum(limit - sides).clamp(min=0)
    return torch.cat((low, low + sides), dim=1)
