"""The ground of a toy scene: two to four textured regions with soft seams."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ovseg.toy.classes import STUFF
from ovseg.toy.textures import SIZE, smooth_noise, texture

OVERSAMPLING = 2  # scenes are drawn at twice their size and averaged down


@dataclass(frozen=True)
class Ground:
    """The ground without any thing on it.

    Attributes:
        image: (2H, 2W, 3) float32 RGB in [0, 1].
        regions: (H, W) int64, index into ``kinds``.
        kinds: the names of the regions, all different.
    """

    image: np.ndarray
    regions: np.ndarray
    kinds: tuple[str, ...]


def _turned_texture(rng: np.random.Generator, kind: str, height: int, width: int) -> np.ndarray:
    scale = rng.uniform(0.85, 1.25)
    angle = rng.uniform(0, 360) if kind in ("sand", "water", "ice", "lava", "stone", "grass") else rng.uniform(-35, 35)
    centre = rng.uniform(0.35, 0.65, 2) * SIZE
    matrix = cv2.getRotationMatrix2D(tuple(centre), angle, scale)
    matrix[:, 2] += (width / 2, height / 2) - centre
    turned = cv2.warpAffine(
        texture(kind), matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    turned *= (rng.normal(1, [0.03, 0.02, 0.03]) * rng.uniform(0.9, 1.08)).astype(np.float32)
    return turned


def make_ground(rng: np.random.Generator, height: int, width: int) -> Ground:
    """Draw a ground whose regions each cover at least an eighth of it.

    Args:
        rng: where all randomness comes from.
        height: H in pixels.
        width: W in pixels.
    """
    shape = (height * OVERSAMPLING, width * OVERSAMPLING)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    while True:
        count = int(rng.choice([2, 3, 4], p=[0.45, 0.4, 0.15]))
        bend = rng.uniform(6, 26)
        warped_x = x + bend * smooth_noise(rng, shape, 110, 2)
        warped_y = y + bend * smooth_noise(rng, shape, 110, 2)
        centres = rng.uniform(0.1, 0.9, (count, 2)) * (shape[1], shape[0])
        distances = np.stack([(warped_x - cx) ** 2 + (warped_y - cy) ** 2 for cx, cy in centres])
        fine = distances.argmin(axis=0)
        if np.bincount(fine.ravel(), minlength=count).min() >= fine.size / 8:
            break
    kinds = tuple(str(kind) for kind in rng.choice(STUFF, count, replace=False))
    image = np.empty((*shape, 3), np.float32)
    shares = np.empty((count, height, width), np.float32)
    inside = np.full(shape, 255, np.uint8)
    for index, kind in enumerate(kinds):
        mask = fine == index
        cv2.copyTo(_turned_texture(rng, kind, *shape), mask.view(np.uint8), image)
        shares[index] = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    inside[:, 1:][fine[:, 1:] != fine[:, :-1]] = 0
    inside[1:][fine[1:] != fine[:-1]] = 0
    to_seam = cv2.distanceTransform(inside, cv2.DIST_L2, 3)
    image *= (1 - 0.45 * np.exp(-to_seam / 5))[..., None]
    return Ground(image, shares.argmax(axis=0), kinds)
