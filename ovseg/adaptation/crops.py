"""Batches of pairs for fine-tuning: filled, augmented crops, their masks, and the numbers of their texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from ovseg.adaptation.recipe import Recipe
from ovseg.clip.preprocessing import OPENAI, Preprocessing
from ovseg.data.loader import SampleLoader
from ovseg.data.sampler import mix
from ovseg.errors import OvsegError

_SQUARE = torch.empty(1, 2048, 2048, device="meta")  # what a crop is for RandomResizedCrop when ratios are its own


def normalised(image: np.ndarray, preprocessing: Preprocessing = OPENAI) -> np.ndarray:
    """Normalise pixels (h, w, 3) RGB, 0 .. 255, to CLIP's input, float32."""
    mean, std = (255 * np.array(values, np.float32) for values in (preprocessing.mean, preprocessing.std))
    return (image.astype(np.float32) - mean) / std


def filled(
    image: np.ndarray, mask: np.ndarray, fill: Sequence[float], preprocessing: Preprocessing = OPENAI
) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """Put a colour behind the mask and normalise, before any resizing as at inference (specification, section 3).

    Args:
        image: uint8 (h, w, 3) RGB.
        mask: bool (h, w).
        fill: RGB, 0 .. 255.
        preprocessing: of the CLIP.

    Returns:
        float32 (3, h, w) and uint8 (1, h, w).
    """
    colour = normalised(np.array(fill), preprocessing)
    pixels = np.where(mask[..., None], normalised(image, preprocessing), colour)
    crop = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return tv_tensors.Image(crop), tv_tensors.Mask(torch.from_numpy(mask[None].astype(np.uint8)))


def squash(
    crop: Tensor, mask: Tensor, window: Sequence[int], size: int, interpolation: str = "bicubic"
) -> tuple[Tensor, Tensor]:
    """Resize a window (top, left, height, width) to a square as at inference: without antialias; a mask by nearest.

    Returns:
        float32 (3, size, size) and uint8 (1, size, size).
    """
    mode = InterpolationMode(interpolation)
    return tuple(
        transforms.resized_crop(x, *window, [size, size], interpolation=mode, antialias=False).as_subclass(Tensor)
        for x in (crop, mask)  # a tv_tensors.Mask is always resized by nearest neighbour
    )


def unlike_fill(crop: Tensor, fill: Sequence[float], preprocessing: Preprocessing = OPENAI) -> Tensor:
    """Return where a resized crop differs from the fill's colour by half a level: uint8 (1, S, S) of float32 (3, S, S).

    SCAN's scripts find in this way the mask of an augmented crop: it is wider than the mask resized, by what bicubic
    resizing spreads (specification of SCAN, section 12).
    """
    level = 1 / (255 * np.array(preprocessing.std, np.float32))
    colour, level = (torch.from_numpy(x)[:, None, None] for x in (normalised(np.array(fill), preprocessing), level))
    return ((crop - colour).abs() >= level / 2).any(0, keepdim=True).byte()


def random_window(height: int, width: int, recipe: Recipe) -> Sequence[int]:
    """Return top, left, height and width of ``RandomResizedCrop``, from torch's generator."""
    if recipe.ratio_of == "picture":
        image = torch.empty(1, height, width, device="meta")
        return RandomResizedCrop.get_params(image, list(recipe.scale), list(recipe.ratio))
    window = RandomResizedCrop.get_params(_SQUARE, list(recipe.scale), list(recipe.ratio))
    top, left, high, wide = (n * side / _SQUARE.shape[1] for n, side in zip(window, (height, width) * 2, strict=True))
    high, wide = max(1, round(high)), max(1, round(wide))
    return min(round(top), height - high), min(round(left), width - wide), high, wide


class TrainingCrops(Dataset):
    """Augmented crops; each is a function of the seed, the epoch and the pair alone.

    Args:
        pairs: data set of :class:`ovseg.adaptation.pair_shards.Pair`.
        text_ids: int64 (N,), the number of each pair's text.
        size: side of CLIP's input, pixels.
        recipe: augmentation, fill and seed.
        preprocessing: of the CLIP.
    """

    def __init__(
        self, pairs: Dataset, text_ids: Tensor, size: int, recipe: Recipe, preprocessing: Preprocessing = OPENAI
    ):
        self.pairs, self.text_ids, self.size = pairs, text_ids, size
        self.recipe, self.preprocessing = recipe.with_fill(preprocessing), preprocessing

    def __len__(self) -> int:
        return len(self.text_ids)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor] | OvsegError:
        epoch, index = key
        try:
            pair = self.pairs[index]
        except OvsegError as error:
            return error  # torch would make a traceback of it; SampleLoader raises it
        crop, mask = filled(pair.image, pair.mask, self.recipe.fill, self.preprocessing)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(self.recipe.seed, epoch, index))
            window = random_window(*mask.shape[1:], self.recipe)
        crop, mask = squash(crop, mask, window, self.size, self.preprocessing.interpolation)
        if self.recipe.mask_from == "colour":
            mask = unlike_fill(crop, self.recipe.fill, self.preprocessing)
        return crop, mask, self.text_ids[index]


def batch_loader(items: Dataset, batches: Iterable[Sequence[Any]], workers: int, pin_memory: bool) -> SampleLoader:
    """Return a loader of batches of a data set whose items are tuples of tensors, each stacked, or an OvsegError.

    Args:
        items: such as :class:`TrainingCrops`: crops float32 (b, 3, S, S), masks uint8 (b, 1, S, S), numbers of texts
            int64 (b,).
        batches: lists of keys.
        workers: data-loader processes.
        pin_memory: for fast transfers to a GPU.
    """
    return SampleLoader(
        items, batches, workers, stack_parts, pin_memory=pin_memory, prefetch_factor=4 if workers else None
    )


def stack_parts(samples: list[Sequence[Tensor]]) -> list[Tensor]:
    """Return a batch of samples that are tuples of tensors: each part stacked."""
    return [torch.stack(parts) for parts in zip(*samples, strict=True)]
