"""One toy scene out of one number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from ovseg.toy.classes import CLASS_INDEX
from ovseg.toy.ground import OVERSAMPLING, Ground, make_ground
from ovseg.toy.sentences import Thing, describe
from ovseg.toy.things import Body, footprint, paint, place_things

_SIDES = (128, 144, 160, 176, 192)
_MIN_STUFF_AREA = 600  # visible pixels that every region of ground keeps
_ON_SHARE = 0.75  # a thing lies "on" a ground when this share of it does


@dataclass(frozen=True)
class Scene:
    """An image with everything that is known about it.

    Attributes:
        seed: the number that it was made from.
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) uint8, index into ``classes.CLASS_NAMES`` (base and novel), nothing ignored.
        instances: (H, W) uint16, 0 is ground, ``k`` is ``things[k - 1]``.
        things: bottom first.
        stuff: names of the grounds, the largest first.
        captions: two descriptions in English.
    """

    seed: int
    image: np.ndarray
    labels: np.ndarray
    instances: np.ndarray
    things: tuple[Thing, ...]
    stuff: tuple[str, ...]
    captions: tuple[str, ...]


def make_scene(seed: int, num_captions: int = 2) -> Scene:
    """Draw the scene of a number; the same number gives the same scene, byte for byte.

    Args:
        seed: any integer >= 0.
        num_captions: how many captions to write (the first ones do not depend on it).
    """
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.choice(_SIDES, 2))
    while True:
        ground = make_ground(rng, height, width)
        bodies, instances = place_things(rng, height, width)
        bare = np.bincount(ground.regions[instances == 0], minlength=len(ground.kinds))
        if len(bodies) >= 2 and bare.min() >= _MIN_STUFF_AREA:
            break
    image = _render(rng, ground, bodies)
    things = tuple(
        _thing(body, ground, int((instances == index).sum()), (height, width)) for index, body in enumerate(bodies, 1)
    )
    lookup = np.array([CLASS_INDEX[kind] for kind in ground.kinds], np.uint8)
    labels = lookup[ground.regions]
    for index, thing in enumerate(things, 1):
        labels[instances == index] = CLASS_INDEX[thing.name]
    stuff = tuple(ground.kinds[index] for index in np.argsort(-bare, kind="stable"))
    captions = describe(np.random.default_rng([seed, 1]), things, stuff, num_captions)
    return Scene(seed, image, labels, instances, things, stuff, captions)


def size_word(radius: float, shape: tuple[int, int]) -> str:
    """Return the word for the size of a thing of this radius in an image of (H, W) pixels."""
    share = radius / min(shape)
    return "small" if share < 0.17 else "large" if share > 0.25 else "medium"


def _thing(body: Body, ground: Ground, area: int, shape: tuple[int, int]) -> Thing:
    below = np.bincount(ground.regions[footprint(body, *shape)], minlength=len(ground.kinds))
    on = ground.kinds[int(below.argmax())] if below.max() >= _ON_SHARE * below.sum() else None
    radius = body.radius / OVERSAMPLING
    return Thing(body.colour, body.shape, body.pattern, size_word(radius, shape), body.centre, radius, area, on)


def _render(rng: np.random.Generator, ground: Ground, bodies: list[Body]) -> np.ndarray:
    """Paint the bodies into the ground's image, light everything, and average down: (H, W, 3) uint8."""
    height, width = ground.regions.shape
    azimuth, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 0.75)
    light = (math.cos(azimuth) * slope, math.sin(azimuth) * slope, math.sqrt(1 - slope**2))
    for body in bodies:
        paint(rng, ground.image, body, light)
    image = cv2.resize(ground.image, (width, height), interpolation=cv2.INTER_AREA)
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    falloff = rng.uniform(0.02, 0.12) * (x * light[0] + y * light[1]) / slope - 0.05 * (x**2 + y**2)
    exposure = rng.uniform(0.94, 1.06) * rng.normal(1, 0.015, 3)
    image = image * (1 + falloff.astype(np.float32))[..., None] * exposure.astype(np.float32)
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0.004, 0.016))
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
