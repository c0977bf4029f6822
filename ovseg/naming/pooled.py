"""Namers that pool a dense map of the whole image in each mask: ``PooledMap`` and ``TrainedRegions``.

The image goes through CLIP's image tower once, however many masks there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from ovseg.clip.adapter import KEYS as CLIP_KEYS
from ovseg.clip.adapter import ClipAdapter
from ovseg.clip.dense import LAST, covered, resize_whole
from ovseg.clip.dense_towers import dense_tower
from ovseg.clip.dense_vit import VALUE
from ovseg.errors import OvsegError, argument_names
from ovseg.naming.crops import rows_with_pixel
from ovseg.naming.region_model import FAMILIAR, LAYERS, OTHERS, OTHERS_LOGIT, SIZE, RegionModel, describe, load_regions
from ovseg.naming.scores import NAMERS, Scores, best_synonym
from ovseg.naming.text_space import PixelMap, TextSpace
from ovseg.proposals.views import Masks, Part, Views
from ovseg.vocabulary import Vocabulary

MASKS_AT_A_TIME = 16  # bounds the memory, and reuses it
KEYS = {**CLIP_KEYS, "mode": "MODEL.DENSE.MODE", "attending": "MODEL.DENSE.BLOCKS"}


@NAMERS.register()
class PooledMap(TextSpace, Part):
    """Namer by the features of CLIP's image tower, averaged in each mask and projected as those of an image.

    A place of the map counts by the share of it that the mask covers, so that masks smaller than a place have features.

    Args:
        clip_adapter: CLIP, whose image tower has dense maps: see :mod:`ovseg.clip.dense_towers`.
        size: longer side of the image in the tower, pixels.
        mask_threshold: probability above which a pixel belongs to a mask. Masks without such a pixel get no scores.
        layers: inner layers whose maps are computed as well.
        mode: way to compute the map, see :mod:`ovseg.clip.dense_towers`.
        attending: see :class:`ovseg.clip.dense_towers.DenseTower`.

    Raises:
        OvsegError: the image tower has no dense maps, or not this mode.
    """

    explains: ClassVar[str] = "clip"

    def __init__(
        self,
        clip_adapter: ClipAdapter,
        *,
        size: int = 640,
        mask_threshold: float = 0.5,
        layers: Sequence[str] = (),
        mode: str = VALUE,
        attending: int = 1,
    ):
        super().__init__()
        visual, name = clip_adapter.clip_model.visual, clip_adapter.source.name
        self.tower = dense_tower(visual, name, mode, layers, attending=attending)
        if self.tower.channels_last:
            visual.to(memory_format=torch.channels_last)
        self.clip_adapter = clip_adapter
        self.size, self.mask_threshold, self.layers = size, mask_threshold, tuple(layers)

    @classmethod
    def from_config(cls, cfg: CfgNode, clip_adapter: ClipAdapter) -> PooledMap:
        with argument_names(KEYS):
            return cls(
                clip_adapter,
                size=cfg.MODEL.NAMER.MAP_SIZE,
                mask_threshold=cfg.MODEL.CLIP_ADAPTER.MASK_THR,
                mode=cfg.MODEL.DENSE.MODE,
                attending=cfg.MODEL.DENSE.BLOCKS,
            )

    @torch.no_grad()
    def forward(self, views: Views, masks: Sequence[Masks], words: Sequence[Vocabulary | None]) -> list[Scores | None]:
        """Return the scores of each image, see :mod:`ovseg.naming.scores`."""
        scores: list[Scores | None] = []
        kept = iter(self._kept(masks[index] for index, vocabulary in enumerate(words) if vocabulary is not None))
        for index, (found, vocabulary) in enumerate(zip(masks, words, strict=True)):
            if vocabulary is None:
                scores.append(None)
                continue
            seen, rows = next(kept)
            text = self.clip_adapter.text_matrix(vocabulary.texts, vocabulary.templates)
            logits = [text.new_zeros(0, len(text))]
            for few in self._binary(found, rows):
                logits.append(self.logits(self.maps(views, index), few, text))
            by_text = self.without_words(torch.cat(logits), vocabulary.texts)
            scores.append(Scores(best_synonym(by_text, vocabulary)[:, :-1].softmax(-1), seen))
        return scores

    def _kept(self, masks: Iterable[Masks]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Return the masks of images that have a pixel, see :func:`ovseg.naming.crops.rows_with_pixel`."""
        return zip(*rows_with_pixel([found.probabilities for found in masks], self.mask_threshold), strict=True)

    def _binary(self, masks: Masks, rows: Tensor | None) -> Iterator[Tensor]:
        """Yield the binary masks of an image, bool (v, H, W), a few at a time; of some rows, or of all."""
        count = len(masks.probabilities if rows is None else rows)
        for start in range(0, count, MASKS_AT_A_TIME):
            few = slice(start, start + MASKS_AT_A_TIME)
            yield masks.probabilities[few if rows is None else rows[few]] > self.mask_threshold

    def maps(self, views: Views, index: int) -> dict[str, Tensor]:
        """Return the maps (C, h, w), float32, of an image by layer; computed once for all namers of equal settings."""
        clip = self.clip_adapter
        key = ("dense maps", id(clip), index, self.size, self.layers, self.tower.mode, self.tower.attending)

        def compute() -> dict[str, Tensor]:
            stride = self.tower.stride
            pixels = resize_whole(views.images[index], self.size, clip.pixel_mean, clip.pixel_std, stride)
            return {layer: features[0] for layer, features in self.run_map(pixels).items()}

        return views.once(key, compute)

    def run_map(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return the maps (1, C, h, w), float32, by layer, of an image of :func:`ovseg.clip.dense.resize_whole`."""
        with self.clip_adapter.autocast(pixels.device.type):
            maps = self.tower.maps(pixels, self.layers)
        return {layer: features.float() for layer, features in maps.items()}

    def logits(self, maps: dict[str, Tensor], masks: Tensor, text: Tensor) -> Tensor:
        """Return the logits of texts.

        Args:
            maps: of the image.
            masks: bool (V, H, W), each with a pixel.
            text: (S + 1, D) of :meth:`ovseg.clip.adapter.ClipAdapter.text_matrix`.

        Returns:
            float32 (V, S + 1); the last column is of no use.
        """
        features = self.tower.regions(maps, covered(masks, maps[LAST].shape[1:])).float()
        return self.clip_adapter.similarity(features, text)

    @torch.no_grad()
    def pixel_map(self, views: Views, index: int) -> PixelMap:
        with self.clip_adapter.autocast(views.images[index].device.type):
            places = self.tower.places(self.maps(views, index)[LAST])
        return PixelMap(places.float(), tuple(views.images[index].shape[1:]))

    @torch.no_grad()
    def region_embeddings(self, views: Views, masks: Masks, index: int) -> tuple[Tensor, Tensor | None]:
        maps, ((seen, rows),) = self.maps(views, index), self._kept([masks])
        pieces = self._binary(masks, rows)
        found = [self.tower.regions(maps, covered(few, maps[LAST].shape[1:])).float() for few in pieces]
        return torch.cat([maps[LAST].new_zeros(0, self.clip_adapter.embed_dim), *found]), seen

    def without_words(self, logits: Tensor, texts: Sequence[str]) -> Tensor:
        """Return the logits (V, S + 1) with those of texts that mean "none of the words", if the namer knows any."""
        return logits


@NAMERS.register()
class TrainedRegions(PooledMap):
    """Namer by a function of regions and texts that labelled photographs have taught.

    Args:
        clip_adapter: the CLIP of the training, normally "photo".
        regions: the function.
        words: the names of the training, each with its synonyms.
        mask_threshold: see :class:`PooledMap`.

    Raises:
        OvsegError: ``regions`` was trained with another CLIP.
    """

    def __init__(
        self,
        clip_adapter: ClipAdapter,
        regions: RegionModel,
        words: Sequence[Sequence[str]] = (),
        mask_threshold: float = 0.5,
    ):
        super().__init__(clip_adapter, size=SIZE, mask_threshold=mask_threshold, layers=LAYERS)
        widths = self.tower.width, clip_adapter.embed_dim
        if widths != (expected := (regions.classifier.shape[1], regions.texts.shape[1])):
            raise OvsegError(
                f"the region model is for a CLIP with {expected[0]} and {expected[1]} dimensions, but "
                f"{clip_adapter.source.name} has {widths[0]} and {widths[1]}: set MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME "
                "to photo, or train a region model with tools/train_photo_model.py"
            )
        self.words = tuple(map(tuple, words))
        # a list, which nn.Module does not register: the file is complete, no part of the model's state
        self._regions = [regions]

    @classmethod
    def from_config(cls, cfg: CfgNode, clip_adapter: ClipAdapter) -> TrainedRegions:
        with argument_names(KEYS):
            return cls(clip_adapter, *load_regions(cfg.MODEL.NAMER.REGIONS), cfg.MODEL.CLIP_ADAPTER.MASK_THR)

    def why_no_embeddings(self) -> str:
        return "TrainedRegions names regions by a trained function of them and the words; use PooledMap"

    @property
    def regions(self) -> RegionModel:
        """The function, on the device of CLIP."""
        if (device := self.clip_adapter.pixel_mean.device) != self._regions[0].centre.device:
            self._regions[0].to(device)
        return self._regions[0]

    def logits(self, maps: dict[str, Tensor], masks: Tensor, text: Tensor) -> Tensor:
        """Return logits as :meth:`PooledMap.logits` does."""
        return F.pad(self.regions(*describe(maps, masks), text[:-1]), (0, 1))

    def without_words(self, logits: Tensor, texts: Sequence[str]) -> Tensor:
        """Return the logits with a constant for :data:`ovseg.naming.region_model.OTHERS`."""
        for column, text in enumerate(texts):
            if text in OTHERS:
                logits[:, column] = OTHERS_LOGIT
        return logits

    def unfamiliar(self, vocabulary: Vocabulary) -> list[str]:
        """Return the names none of whose texts is near one of the training."""
        text = self.clip_adapter.text_matrix(vocabulary.texts, vocabulary.templates)[:-1]
        near = self.regions.familiarity(text) >= FAMILIAR
        familiar = {name for name, known in zip(vocabulary.classes, near.tolist(), strict=True) if known}
        unknown = [index for index in range(len(vocabulary)) if index not in familiar]
        return [vocabulary.names[index] for index in unknown if OTHERS.isdisjoint(vocabulary.synonyms[index])]
