"""Ground of a toy scene: two to four textured regions with soft seams; textures are drawn once per process."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from ovseg.toy.classes import STUFF

SIZE = 640  # side of a texture in pixels; scenes are drawn at twice their size and take a turned part of it


@cache
def texture(kind: str) -> np.ndarray:
    """Return the texture of a ground: (SIZE, SIZE, 3) float32 RGB in [0, 1], the same in every process."""
    image = _PAINTERS[kind](np.random.default_rng(zlib.crc32(kind.encode())))
    image = np.clip(image, 0, 1).astype(np.float32)
    image.flags.writeable = False
    return image


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: float, octaves: int = 1) -> np.ndarray:
    """Return a smooth random field with mean 0 and standard deviation of about 1.

    Args:
        shape: (H, W) in pixels.
        cell: distance in pixels over which the field changes.
        octaves: how many finer copies, each of half the cell and half the strength, are added.

    Returns:
        (H, W) float32.
    """
    height, width = shape
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        step = max(cell / 2**octave, 1.0)
        grid = rng.standard_normal((int(height / step) + 3, int(width / step) + 3), dtype=np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
    return total / math.sqrt(sum(0.25**octave for octave in range(octaves)))


def _noise(rng: np.random.Generator, cell: float, octaves: int = 1) -> np.ndarray:
    return smooth_noise(rng, (SIZE, SIZE), cell, octaves)


def _grid() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    return x, y


def _colour(red: int, green: int, blue: int) -> np.ndarray:
    return np.array([red, green, blue], np.float32) / 255


def _mix(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    share = np.clip(share, 0, 1)[..., None]
    return first * (1 - share) + second * share


def _cells(rng: np.random.Generator, spacing: float, bend: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a cracked plane: (SIZE, SIZE) int32 cell indices and float32 distances in pixels to the rim."""
    count = int(SIZE / spacing) + 2
    corner = np.stack(np.meshgrid(np.arange(count), np.arange(count)), axis=-1).reshape(-1, 2) - 0.5
    points = (corner + rng.uniform(0.12, 0.88, corner.shape)) * spacing
    points = np.clip(points, 0, SIZE - 1).astype(int)
    seeds = np.full((SIZE, SIZE), 255, np.uint8)
    seeds[points[:, 1], points[:, 0]] = 0
    labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)[1]
    x, y = _grid()
    labels = cv2.remap(
        labels.astype(np.float32),
        x + bend * _noise(rng, spacing * 0.7),
        y + bend * _noise(rng, spacing * 0.7),
        cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_REFLECT,
    )
    inside = np.ones((SIZE, SIZE), np.uint8)
    inside[:, 1:] &= labels[:, 1:] == labels[:, :-1]
    inside[1:] &= labels[1:] == labels[:-1]
    return labels.astype(np.int32), cv2.distanceTransform(inside, cv2.DIST_L2, 5)


def _grass(rng: np.random.Generator) -> np.ndarray:
    image = _mix(_colour(72, 96, 30), _colour(104, 128, 44), 0.5 + 0.4 * _noise(rng, 70, 3))
    image = np.ascontiguousarray(image, np.float32)
    for brightness in np.linspace(0.7, 1.5, 10):
        root = rng.uniform(-10, SIZE + 10, (900, 2))
        lean = rng.normal(-np.pi / 2, 0.5, 900)
        length = rng.uniform(10, 26, 900)
        tip = root + length[:, None] * np.stack([np.cos(lean), np.sin(lean)], axis=1)
        colour = brightness * _colour(98, 124 + int(rng.integers(-8, 9)), 38)
        blades = np.round(np.stack([root, tip], axis=1)).astype(np.int32)
        cv2.polylines(image, list(blades), False, colour.tolist(), 2, cv2.LINE_AA)
    return image


def _sand(rng: np.random.Generator) -> np.ndarray:
    _, y = _grid()
    ripples = np.sin(2 * np.pi * (y + 14 * _noise(rng, 130, 2)) / 34)
    tone = 0.55 + 0.2 * ripples + 0.12 * _noise(rng, 60, 2) + 0.1 * _noise(rng, 2)
    return _mix(_colour(196, 164, 112), _colour(240, 218, 172), tone)


def _water(rng: np.random.Generator) -> np.ndarray:
    swell = 0.5 + 0.35 * _noise(rng, 110, 2)
    image = _mix(_colour(22, 100, 122), _colour(52, 150, 164), swell)
    for cell, strength in ((52, 0.75), (34, 0.5)):
        crest = np.exp(-((np.abs(_noise(rng, cell) + 0.25 * _noise(rng, cell / 3)) / 0.13) ** 1.3))
        image = _mix(image, _colour(178, 236, 232), strength * crest)
    return image


def _brick(rng: np.random.Generator) -> np.ndarray:
    x, y = _grid()
    height, width, mortar = 26, 56, 2.6
    x, y = x + 1.2 * _noise(rng, 24), y + 1.2 * _noise(rng, 24)
    row = np.floor(y / height)
    along = x + (row % 2) * width / 2
    column = np.floor(along / width)
    to_rim = np.minimum.reduce([y % height, height - y % height, along % width, width - along % width])
    tones = rng.normal(0.5, 0.28, (64, 64)).astype(np.float32)
    tone = tones[row.astype(int) % 64, column.astype(int) % 64] + 0.14 * _noise(rng, 7, 2)
    clay = _mix(_colour(126, 62, 44), _colour(182, 100, 72), tone)
    clay *= (0.8 + 0.2 * np.clip((to_rim - mortar) / 4, 0, 1))[..., None]
    joint = _colour(206, 198, 186) * (1 + 0.06 * _noise(rng, 3))[..., None]
    return _mix(joint, clay, (to_rim - mortar) / 1.5 + 0.5)


def _stone(rng: np.random.Generator) -> np.ndarray:
    cell, to_rim = _cells(rng, 44, 3)
    dome = np.clip(to_rim / 13, 0, 1)
    tone = rng.normal(0.5, 0.2, cell.max() + 1).astype(np.float32)[cell] + 0.12 * _noise(rng, 9, 2)
    cobble = _mix(_colour(104, 102, 100), _colour(166, 162, 156), tone) * (0.62 + 0.42 * np.sqrt(dome))[..., None]
    return _mix(_colour(48, 46, 42) + np.zeros_like(cobble), cobble, (to_rim - 2.5) / 2)


def _tile(rng: np.random.Generator) -> np.ndarray:
    x, y = _grid()
    side, joint = 40, 1.8
    to_rim = np.minimum.reduce([x % side, side - x % side, y % side, side - y % side])
    odd = ((x // side + y // side) % 2).astype(np.float32)
    image = _mix(_colour(92, 176, 164), _colour(204, 226, 214), odd)
    tones = rng.normal(1, 0.035, (32, 32)).astype(np.float32)[(y // side).astype(int), (x // side).astype(int)]
    gloss = 1 + 0.05 * np.cos((x % side - y % side) / side * np.pi)
    image = image * (tones * gloss * (0.86 + 0.14 * np.clip((to_rim - joint) / 4, 0, 1)))[..., None]
    return _mix(_colour(112, 116, 112) + np.zeros_like(image), image, to_rim - joint + 0.5)


def _ice(rng: np.random.Generator) -> np.ndarray:
    image = _mix(_colour(140, 186, 222), _colour(188, 222, 242), 0.5 + 0.4 * _noise(rng, 80, 3))
    _, to_rim = _cells(rng, 92, 12)
    image = _mix(image, _colour(236, 248, 255), 0.85 * np.exp(-to_rim / 2.2) + 0.18 * np.exp(-to_rim / 14))
    _, fine = _cells(rng, 50, 9)
    return _mix(image, _colour(112, 160, 204), 0.55 * np.exp(-fine / 1.3))


def _lava(rng: np.random.Generator) -> np.ndarray:
    cell, to_rim = _cells(rng, 62, 8)
    tone = rng.normal(0.5, 0.25, cell.max() + 1).astype(np.float32)[cell] + 0.25 * _noise(rng, 10, 3)
    crust = _mix(_colour(62, 28, 24), _colour(106, 56, 44), tone)
    heat = np.exp(-np.maximum(to_rim - 2, 0) / 5.5) * (0.85 + 0.2 * _noise(rng, 60))
    image = _mix(crust, _colour(240, 84, 10), heat * 1.1)
    return _mix(image, _colour(255, 196, 64), (heat - 0.62) * 2)


def _wood(rng: np.random.Generator) -> np.ndarray:
    x, y = _grid()
    plank = 58
    row = (y // plank).astype(int)
    shift = rng.uniform(0, SIZE, 32).astype(np.float32)[row]
    rings = cv2.resize(rng.standard_normal((SIZE // 9, SIZE // 110), dtype=np.float32), (SIZE, SIZE), interpolation=2)
    grain = np.sin((y + 9 * rings + shift) * 0.62)
    tone = rng.normal(0.5, 0.2, 32).astype(np.float32)[row] + 0.2 * grain + 0.15 * rings
    image = _mix(_colour(112, 70, 34), _colour(182, 128, 74), tone)
    butt = np.abs((x + shift) % 300 - 150)
    to_gap = np.minimum.reduce([y % plank, plank - y % plank, butt])
    return image * (0.35 + 0.65 * np.clip((to_gap - 0.8) / 2.5, 0, 1))[..., None]


def _metal(rng: np.random.Generator) -> np.ndarray:
    x, y = _grid()
    step = 36
    u, v = (x % step) - step / 2, (y % step) - step / 2
    turned = ((x // step + y // step) % 2) > 0
    along = np.where(turned, u + v, u - v) / np.sqrt(2)
    across = np.where(turned, u - v, u + v) / np.sqrt(2)
    stud = 1 - np.abs(along / 15) ** 2 - np.abs(across / 5.2) ** 2
    shade = 0.16 * np.clip(-across / 5, -1, 1) * (stud > -0.1)
    brushed = cv2.GaussianBlur(_noise(rng, 1.0), (41, 1), 12)
    tone = 0.42 + 0.5 * np.clip(stud * 2.5, 0, 1) + shade * 1.5 + 0.1 * _noise(rng, 120) + 0.25 * brushed
    return _mix(_colour(104, 112, 126), _colour(206, 212, 222), tone)


_PAINTERS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    painter.__name__[1:]: painter
    for painter in (_grass, _sand, _water, _brick, _stone, _tile, _ice, _lava, _wood, _metal)
}
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
