"""Mining of one captioned image's mask-text pairs (OVSeg, arXiv 2210.04150, section 3.2; specification 12.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovseg.adaptation.mask_sources import Masks, MaskSource, shrink
from ovseg.clip.adapter import unit
from ovseg.data.caption_files import CaptionedImage
from ovseg.io.images import read_image
from ovseg.naming import MaskedCrops
from ovseg.naming.crops import mask_boxes
from ovseg.proposals.views import Views
from ovseg.vocabulary.nouns import NounExtractor, names_one_of


@dataclass(frozen=True)
class FoundPair:
    """A pair before it is written.

    Attributes:
        image: uint8 (h, w, 3) RGB crop of the mask's box.
        mask: bool (h, w).
        info: what the shard stores with it.
    """

    image: np.ndarray
    mask: np.ndarray
    info: dict[str, Any]


@dataclass(frozen=True)
class Miner:
    """Finds the pairs of images, one by one; the result depends on the image alone.

    Args:
        masks: where masks come from.
        extractor: finds the nouns of captions; None: the masks' own names are the texts.
        clip: assigns nouns to masks; may be None if ``extractor`` is.
        all_captions: nouns of all captions; else of the first.
        min_score: a noun whose best mask has a smaller cosine is left out; None for no limit, as in the paper.
        min_area: masks with a smaller share of the image are left out.
        max_size: larger images are shrunk first, longest side in pixels.
        seen: lower-case words of the seen classes, or None.
        image_root: pairs name their image relative to it; images outside of it by their name alone.
    """

    masks: MaskSource
    extractor: NounExtractor | None
    clip: MaskedCrops | None
    all_captions: bool = False
    min_score: float | None = None
    min_area: float = 0.0005
    max_size: int = 1024
    seen: frozenset[str] | None = None
    image_root: Path | None = None

    @torch.inference_mode()
    def __call__(self, item: CaptionedImage) -> list[FoundPair]:
        """Return the pairs of one image, in the order of their nouns.

        Raises:
            OvsegError: the image or its masks cannot be read.
        """
        original = read_image(item.path)
        pixels = shrink(original, self.max_size)
        nouns = self._nouns(item)
        if self.extractor is not None and not nouns:
            return []
        masks = self._large_enough(self.masks(item, pixels), pixels)
        if not masks.names:
            return []
        if self.extractor is None:
            chosen = [(name, "", index, None) for index, name in enumerate(masks.names) if name is not None]
        else:
            chosen = self._assign(nouns, pixels, masks.values)
        scale = np.array(original.shape[1::-1]) / pixels.shape[1::-1]
        return [
            self._cut(item, pixels, masks.values[index], scale, text, caption, score)
            for text, caption, index, score in chosen
        ]

    def _nouns(self, item: CaptionedImage) -> dict[str, str]:
        """Return the nouns and, for each, the first caption that has it.

        One noun has one best mask, so that several captions with it would give the same pair again.
        """
        found: dict[str, str] = {}
        if self.extractor is not None:
            for caption in item.captions if self.all_captions else item.captions[:1]:
                for noun in self.extractor.nouns(caption):
                    found.setdefault(noun, caption)
        return found

    def _large_enough(self, masks: Masks, pixels: np.ndarray) -> Masks:
        areas = (masks.values > self.masks.threshold).flatten(1).sum(1)
        keep = areas >= max(1, self.min_area * pixels.shape[0] * pixels.shape[1])
        names = tuple(name for name, kept in zip(masks.names, keep.tolist(), strict=True) if kept)
        return Masks(masks.values[keep], names)

    def _assign(self, nouns: dict[str, str], pixels: np.ndarray, masks: Tensor) -> list[tuple[str, str, int, float]]:
        """Return (noun, caption, index of its best mask, cosine) of each noun that is good enough."""
        clip = self.clip.clip_adapter
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        views = Views([{"image": image}], [image.to(clip.pixel_mean.device)])
        features = unit(self.clip.features(views, [(0, masks.to(clip.pixel_mean.device))])[0])  # (N, D)
        # one by one: in a batch of others the last bits could differ, and with them what resumed runs find
        text = torch.cat([clip.text([noun]) for noun in nouns])  # (K, D)
        scores, best = (text @ features.T).max(dim=1)
        chosen = zip(nouns.items(), best.tolist(), scores.tolist(), strict=True)
        return [
            (noun, caption, index, score)
            for (noun, caption), index, score in chosen
            if self.min_score is None or score >= self.min_score
        ]

    def _cut(
        self,
        item: CaptionedImage,
        pixels: np.ndarray,
        mask: Tensor,
        scale: np.ndarray,
        text: str,
        caption: str,
        score: float | None,
    ) -> FoundPair:
        inside = mask > self.masks.threshold
        x0, y0, x1, y1 = mask_boxes(inside[None])[0].int().tolist()
        box = np.rint(np.array([x0, y0, x1, y1]) * np.tile(scale, 2)).astype(int).tolist()
        info = {
            "text": text,
            "image": self._name(item.path),
            "image_id": item.image_id,
            "caption": caption,
            "box": box,
            "score": None if score is None else round(score, 4),
            "seen": None if self.seen is None else names_one_of(text, self.seen),
        }
        return FoundPair(pixels[y0:y1, x0:x1], inside[y0:y1, x0:x1].cpu().numpy(), info)

    def _name(self, path: Path) -> str:
        below = self.image_root is not None and path.is_relative_to(self.image_root)
        return path.relative_to(self.image_root).as_posix() if below else path.name


Mine = Callable[[CaptionedImage], list[FoundPair]]
