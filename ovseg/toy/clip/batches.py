"""Batches of images, captions and words that the toy world's CLIP learns from.

As on the web, an image shows a whole scene, what is around a thing (nothing masked), or a patch of ground; its captions
name what it shows, or its things alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from functools import partial

import cv2
import numpy as np
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from ovseg.io.cpus import usable_cpus
from ovseg.io.files import atomic_path
from ovseg.toy.cache import scenes_folder
from ovseg.toy.classes import CLASS_NAMES, COLOURS, SHAPES, STUFF
from ovseg.toy.scene import Scene, make_scene, size_word
from ovseg.toy.sentences import Thing, describe, names_sides
from ovseg.vocabulary.templates import get_templates

_SHOWN, _SHOWN_GROUND = 0.8, 0.06  # share of a thing that shows, share of a close-up that a ground takes, to be named
_STORED_SIDE = 112  # images are kept a little larger than the model's input, so that crops stay sharp


@dataclass(frozen=True)
class ViewRecipe:
    """Which images are made of a scene.

    Attributes:
        margin: half the side of a close-up, in radii of the thing, from and to.
        close_ups: windows around single things.
        alone: share of the close-ups whose captions leave out the grounds.
        patches: windows that show no thing.
        captions: written for each image.
    """

    margin: tuple[float, float] = (1.0, 1.0)
    close_ups: int = 0
    alone: float = 0.0
    patches: int = 0
    captions: int = 2


def close_up(
    scene: Scene, index: int, margin: tuple[float, float], rng: np.random.Generator
) -> tuple[np.ndarray, list[Thing], list[str]]:
    """Return a window around one thing, with nothing masked: its pixels, and the things and grounds that it shows."""
    thing, (height, width) = scene.things[index], scene.labels.shape
    half = rng.uniform(*margin) * thing.radius
    x, y = np.array(thing.centre) + rng.uniform(-0.25, 0.25, 2) * thing.radius
    window = (
        slice(int(max(0, y - half)), int(min(height, y + half))),
        slice(int(max(0, x - half)), int(min(width, x + half))),
    )
    labels, instances = scene.labels[window], scene.instances[window]
    things = [
        replace(other, size=size_word(other.radius, labels.shape))
        for k, other in enumerate(scene.things, 1)
        if k == index + 1 or (instances == k).sum() > _SHOWN * other.area
    ]
    return scene.image[window], things, shown_grounds(scene, window)


def patch(scene: Scene, rng: np.random.Generator, tries: int = 10) -> tuple[np.ndarray, list[str]] | None:
    """Return a window with hardly a thing in it: its pixels and its grounds; None if none is found in a few tries."""
    height, width = scene.labels.shape
    for _ in range(tries):
        side = int(rng.uniform(0.2, 0.5) * min(height, width))
        y, x = int(rng.integers(height - side)), int(rng.integers(width - side))
        window = (slice(y, y + side), slice(x, x + side))
        if (scene.instances[window] > 0).mean() < _SHOWN_GROUND:
            return scene.image[window], shown_grounds(scene, window)
    return None


def shown_grounds(scene: Scene, window: tuple[slice, slice]) -> list[str]:
    """Return the grounds that take a good part of a window, largest first."""
    labels = scene.labels[window]
    ground = np.bincount(labels[scene.instances[window] == 0], minlength=len(CLASS_NAMES))
    return [CLASS_NAMES[k] for k in np.argsort(-ground, kind="stable") if ground[k] > _SHOWN_GROUND * labels.size]


def name_alone(rng: np.random.Generator, names: Sequence[str], count: int) -> tuple[str, ...]:
    """Return captions of some names and nothing else."""
    templates = get_templates("vild")
    return tuple(templates[int(rng.integers(len(templates)))].format(" and ".join(names)) for _ in range(count))


def views(seed: int, recipe: ViewRecipe) -> list[tuple[np.ndarray, tuple[str, ...]]]:
    """Return a whole scene, close-ups and patches of it, each with its captions."""
    scene, rng = make_scene(seed, recipe.captions), np.random.default_rng([seed, 2])
    found = [(scene.image, scene.captions)]
    for index in rng.permutation(len(scene.things))[: recipe.close_ups]:
        image, things, stuff = close_up(scene, int(index), recipe.margin, rng)
        if recipe.alone and rng.random() < recipe.alone:
            found.append((image, name_alone(rng, [thing.name for thing in things], recipe.captions)))
        elif stuff:
            found.append((image, describe(rng, things, stuff, recipe.captions)))
    for window in (patch(scene, rng) for _ in range(recipe.patches)):
        if window is not None:
            found.append((window[0], name_alone(rng, window[1], recipe.captions)))
    side = (_STORED_SIDE, _STORED_SIDE)
    return [(cv2.resize(image, side, interpolation=cv2.INTER_AREA), texts) for image, texts in found]


def load_views(first: int, num_scenes: int, recipe: ViewRecipe) -> tuple[Tensor, list[list[str]]]:
    """Return views of the scenes of seeds ``first`` and up, kept in the user's cache.

    Returns:
        images (N, 3, S, S) uint8 and the captions of each.
    """
    name = "_".join(map(str, ("clip", first, num_scenes, *recipe.margin, *astuple(recipe)[1:])))
    path = scenes_folder() / f"{name}.npz"
    if not path.is_file():
        seeds = range(first, first + num_scenes)
        with ThreadPoolExecutor(min(8, usable_cpus())) as pool:
            drawing = pool.map(partial(views, recipe=recipe), seeds)
            drawn = [view for scene in track(drawing, "drawing", total=num_scenes, transient=True) for view in scene]
        images, captions = zip(*drawn, strict=True)
        with atomic_path(path) as temporary:
            np.savez(temporary, images=np.stack(images), captions=np.array(captions))
    with np.load(path) as arrays:
        images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).contiguous()
        return images, arrays["captions"].tolist()


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
