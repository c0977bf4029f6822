"""Batches of images, captions and words for the toy world's CLIP."""

from __future__ import annotations

import re

import numpy as np
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor
from torch.nn import functional as F

from ovseg.toy.classes import CLASS_NAMES, COLOURS, SHAPES, STUFF
from ovseg.toy.sentences import names_sides
from ovseg.vocabulary.templates import get_templates

_WORD = re.compile(rf"\b(?:(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})|{'|'.join(STUFF)})\b")


def normalise(images: Tensor) -> Tensor:
    """Normalise (B, 3, H, W) in 0..255 to float32 with CLIP's mean and standard deviation."""
    mean = torch.tensor(OPENAI_DATASET_MEAN).view(3, 1, 1)
    std = torch.tensor(OPENAI_DATASET_STD).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def augment(images: Tensor, side: int, mirror: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Crop lightly, and mirror where the caption allows: (B, 3, S, S) to (B, 3, side, side)."""
    count = len(images)
    scale = rng.uniform(0.84, 1.0, (count, 1))
    flip = np.where(mirror & (rng.random(count) < 0.5), -1.0, 1.0)[:, None]
    shift, zero = rng.uniform(-1, 1, (count, 2, 1)) * (1 - scale[:, None]), np.zeros_like(scale)
    linear = np.stack([np.hstack([scale * flip, zero]), np.hstack([zero, scale])], axis=1)
    theta = torch.from_numpy(np.concatenate([linear, shift], axis=2)).float()
    grid = F.affine_grid(theta, [count, 3, side, side], align_corners=False)
    gain = torch.from_numpy(rng.uniform(0.9, 1.1, (count, 1, 1, 1))).float()
    cropped = F.grid_sample(images.float() * gain, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return normalise(cropped.clamp(0, 255))


class PairSampler:
    """Batches of images with captions and words; a batch depends on nothing but the seed and the step."""

    def __init__(self, images: Tensor, captions: list[list[str]], tokenizer: SimpleTokenizer, side: int) -> None:
        self.images, self.captions, self.side = images, captions, side
        self.texts = torch.stack([tokenizer(row) for row in captions])  # (N, C, L)
        templates = get_templates("vild")
        self.prompts = torch.stack(
            [tokenizer([t.format(word) for t in templates]) for word in CLASS_NAMES]
        )  # (K, T, L)
        named = [set(_WORD.findall(row[0])) for row in captions]  # the first caption names all that is there
        self.named = torch.tensor([[word in words for word in CLASS_NAMES] for words in named]).float()
        self.named /= self.named.sum(dim=1, keepdim=True)

    @property
    def encoded(self) -> bool:
        return self.texts.is_floating_point()

    @torch.no_grad()
    def encode_texts(self, model: CLIP) -> None:
        """Return features in place of tokens from now on, of a text tower that does not change any more."""
        self.texts, self.prompts = (
            torch.cat([model.encode_text(part, normalize=True) for part in tokens.flatten(0, 1).split(512)]).unflatten(
                0, tokens.shape[:2]
            )
            for tokens in (self.texts, self.prompts)
        )

    def batch(self, seed: int, step: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return a batch.

        Returns:
            images (B, 3, side, side) float32, one caption of each (B, L) int64, two prompts for every word (2, K, L)
            int64 (features float32 of D instead of tokens after :meth:`encode_texts`), and the share of each word
            among an image's words (B, K) float32.
        """
        per_epoch = len(self.images) // size
        order = np.random.default_rng([seed, step // per_epoch]).permutation(len(self.images))
        rows = order[step % per_epoch * size :][:size]
        rng = np.random.default_rng([seed, 1, step])
        which = rng.integers(0, self.texts.shape[1], size)
        mirror = np.array([not names_sides(self.captions[row][k]) for row, k in zip(rows, which, strict=True)])
        words, templates = self.prompts.shape[:2]
        prompts = self.prompts[torch.arange(words), rng.integers(0, templates, (2, words))]
        return augment(self.images[rows], self.side, mirror, rng), self.texts[rows, which], prompts, self.named[rows]
