"""A stand-in for a segmenter, of no weights, for tests of what is around it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from PIL import Image

from ovseg.result.segmentation import Segmentation

WORDS = ("sky", "cat & <dog>", "пёс")


class Bands:
    """Finds the words by the brightness of blocks of pixels; black ones are unlabelled.

    Args:
        seconds: that a call takes.
    """

    def __init__(self, seconds: float = 0.0):
        self.seconds = seconds
        self.calls = 0

    def prepare(self, vocabulary):
        return vocabulary

    def __call__(self, image, vocabulary, **options):
        return self.batch([image], vocabulary, **options)[0]

    def batch(self, images, vocabulary, **options):
        self.calls += 1
        time.sleep(self.seconds)
        found = []
        for image in images:
            grey = image[:, :, 0].astype(int)
            labels = np.clip(grey // 64 - 1, 0, len(vocabulary) - 1)
            scores = np.where(grey < 64, 0, grey / 255)
            found.append(Segmentation.from_maps(labels, scores, vocabulary.foreground, image))
        return found


def save_images(folder: Path, count: int = 3, size: tuple[int, int] = (36, 48)) -> list[Path]:
    """Save images of random blocks of 3 x 3 pixels, with the four brightnesses that :class:`Bands` separates."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        generator = np.random.default_rng(number)
        blocks = generator.choice([0, 100, 160, 220], (size[0] // 3, size[1] // 3), p=[0.1, 0.5, 0.2, 0.2])
        grey = np.kron(blocks, np.ones((3, 3), int)).astype(np.uint8)
        paths.append(folder / f"{number:03d}.png")
        Image.fromarray(np.stack([grey] * 3, axis=-1)).save(paths[-1])
    return paths
