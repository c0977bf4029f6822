"""Things of a toy scene: their outlines, where they lie and how they are lit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from ovseg.toy.classes import COLOURS, PATTERNS, SECOND_TONES, SHAPES
from ovseg.toy.ground import OVERSAMPLING

_FRACTION_BITS = 4  # sub-pixel bits that OpenCV's polygon filling takes


def _arc(radius: float, start: float = 0.0, stop: float = 2 * np.pi, points: int = 72) -> np.ndarray:
    angle = np.linspace(start, stop, points)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _polar(radius: Callable[[np.ndarray], np.ndarray], points: int = 240) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([radius(angle) * np.cos(angle), radius(angle) * np.sin(angle)], axis=1)


def _star() -> np.ndarray:
    angle = np.arange(10) * np.pi / 5 - np.pi / 2
    radius = np.where(np.arange(10) % 2 == 0, 1.1, 0.46)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _heart() -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    x = 16 * np.sin(angle) ** 3
    y = 13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)
    return np.stack([x, -y - 2], axis=1) / 15.5


def _moon() -> np.ndarray:
    outer, inner, shift = 1.0, 0.84, 0.56
    x = (outer**2 - inner**2 + shift**2) / (2 * shift)  # where the two circles cross
    y = np.sqrt(outer**2 - x**2)
    outside = _arc(outer, np.arctan2(y, x), 2 * np.pi - np.arctan2(y, x))
    inside = _arc(inner, 2 * np.pi - np.arctan2(y, x - shift), np.arctan2(y, x - shift)) + np.array([shift, 0])
    return np.concatenate([outside, inside]) + np.array([0.25, 0])


def _cross() -> np.ndarray:
    arm, half = 1.0, 0.34
    quarter = np.array([[half, half], [half, arm], [-half, arm], [-half, half]])
    turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


@cache
def outline(shape: str) -> tuple[np.ndarray, ...]:
    """Return contours of a shape, each (n, 2) float64; a second contour is a hole."""
    builders: dict[str, Callable[[], tuple[np.ndarray, ...]]] = {
        "circle": lambda: (_arc(0.9),),
        "square": lambda: (np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.78,),
        "triangle": lambda: (_arc(1.12, -np.pi / 2, 3 * np.pi / 2, 4)[:3],),
        "star": lambda: (_star(),),
        "ring": lambda: (_arc(0.98), _arc(0.5)),
        "cross": lambda: (_cross(),),
        "heart": lambda: (_heart(),),
        "moon": lambda: (_moon(),),
        "arrow": lambda: (
            np.array([[1.1, 0], [0.1, 0.88], [0.1, 0.34], [-0.95, 0.34], [-0.95, -0.34], [0.1, -0.34], [0.1, -0.88]]),
        ),
        "flower": lambda: (_polar(lambda angle: 0.42 + 0.58 * np.abs(np.cos(2.5 * angle)) ** 0.7),),
    }
    return builders[shape]()


def draw(shape: str, size: int, matrix: np.ndarray) -> np.ndarray:
    """Return the coverage of a shape on a square canvas.

    Args:
        shape: a name of ``classes.SHAPES``.
        size: side of the canvas in pixels.
        matrix: (2, 2) float, from unit coordinates to pixels around the centre of the canvas.

    Returns:
        (size, size) uint8, 255 inside, anti-aliased at the rim.
    """
    canvas = np.zeros((size, size), np.uint8)
    centre = (size - 1) / 2
    contours = [
        np.round((points @ matrix.T + centre) * 2**_FRACTION_BITS).astype(np.int32) for points in outline(shape)
    ]
    return cv2.fillPoly(canvas, contours, 255, lineType=cv2.LINE_AA, shift=_FRACTION_BITS)


MIN_AREA = 150  # visible pixels that every thing of a scene has at least
_MIN_VISIBLE = 0.78  # visible share that every thing keeps under those on top of it
_MIN_INSIDE = 0.88  # share of a thing that lies within the image
_MAX_TILT = 0.2  # radians to either side: tiny networks take many times longer to learn shapes at any turn


@dataclass(frozen=True)
class Body:
    """A thing as it lies in the scene, at the drawing scale (twice the scene's).

    Attributes:
        colour, shape, pattern: its words.
        radius: in drawn pixels.
        matrix: (2, 2) float64, from unit coordinates to drawn pixels.
        corner: (x, y) of the canvas in the drawn image, in pixels.
        coverage: (S, S) uint8 canvas, 255 where the thing is.
    """

    colour: str
    shape: str
    pattern: str
    radius: float
    matrix: np.ndarray
    corner: tuple[int, int]
    coverage: np.ndarray

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) in pixels of the scene."""
        half = self.coverage.shape[0] / 2
        return (self.corner[0] + half) / OVERSAMPLING, (self.corner[1] + half) / OVERSAMPLING


def _overlap(body: Body, shape: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return slices (rows, columns) of the image and of the body's canvas where the two overlap."""
    size = body.coverage.shape[0]
    (x, y), (height, width) = body.corner, shape
    rows, columns = (max(y, 0), min(y + size, height)), (max(x, 0), min(x + size, width))
    return ((slice(*rows), slice(*columns)), (slice(rows[0] - y, rows[1] - y), slice(columns[0] - x, columns[1] - x)))


def footprint(body: Body, height: int, width: int) -> np.ndarray:
    """Return the pixels of the (height, width) scene that are more than half covered by the body: bool."""
    fine = np.zeros((height * OVERSAMPLING, width * OVERSAMPLING), np.uint8)
    there, here = _overlap(body, fine.shape)
    fine[there] = body.coverage[here]
    return cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA) > 127


def _draw_body(rng: np.random.Generator, height: int, width: int, large: bool) -> Body:
    colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
    pattern = str(rng.choice(PATTERNS, p=[0.6, 0.2, 0.2]))
    low, high = (0.25, 0.36) if large else (0.16, 0.26)
    radius = rng.uniform(low, high) * min(height, width) * OVERSAMPLING
    angle, stretch = rng.uniform(-_MAX_TILT, _MAX_TILT), rng.uniform(0.92, 1.08)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.diag([stretch, 1 / stretch]) * radius
    size = 2 * int(np.ceil(radius * 1.75))  # the margin holds the shadow
    x, y = rng.uniform(0.08, 0.92, 2) * (width, height) * OVERSAMPLING
    corner = (round(x - size / 2), round(y - size / 2))
    return Body(colour, shape, pattern, radius, matrix, corner, draw(shape, size, matrix))


def place_things(rng: np.random.Generator, height: int, width: int) -> tuple[list[Body], np.ndarray]:
    """Place two to six things, bottom first, each well visible and each with another name.

    Args:
        rng: where all randomness comes from.
        height: H in pixels.
        width: W in pixels.

    Returns:
        The bodies and the (H, W) uint16 instance map: 0 is ground, ``k`` is the body ``k - 1``.
    """
    close_up = rng.random() < 0.25
    wanted = int(rng.integers(2, 4)) if close_up else int(rng.integers(3, 7))
    bodies: list[Body] = []
    areas: list[int] = []
    owner = np.zeros((height, width), np.uint16)
    for _ in range(60):
        if len(bodies) == wanted:
            break
        body = _draw_body(rng, height, width, close_up)
        if any((body.colour, body.shape) == (other.colour, other.shape) for other in bodies):
            continue
        mask = footprint(body, height, width)
        area = int(body.coverage.sum(dtype=np.int64) / 255 / OVERSAMPLING**2)
        if mask.sum() < max(MIN_AREA, _MIN_INSIDE * area):
            continue
        candidate = np.where(mask, np.uint16(len(bodies) + 1), owner)
        visible = np.bincount(candidate.ravel(), minlength=len(bodies) + 2)[1:-1]
        if any(seen < max(MIN_AREA, _MIN_VISIBLE * full) for seen, full in zip(visible, areas, strict=True)):
            continue
        bodies.append(body)
        areas.append(area)
        owner = candidate
    return bodies, owner


def _albedo(rng: np.random.Generator, body: Body) -> np.ndarray:
    """Return the unlit colour of a body with its pattern: (S, S, 3) or (3,) float32 in [0, 1]."""
    first = np.array(COLOURS[body.colour], np.float32) / 255
    if body.pattern == "plain":
        return first
    second = np.array(SECOND_TONES[body.colour], np.float32) / 255
    size = body.coverage.shape[0]
    pixels = np.arange(size, dtype=np.float32) - (size - 1) / 2
    inverse = np.linalg.inv(body.matrix).astype(np.float32)
    u = inverse[0, 0] * pixels[None, :] + inverse[0, 1] * pixels[:, None]
    v = inverse[1, 0] * pixels[None, :] + inverse[1, 1] * pixels[:, None]
    if body.pattern == "striped":
        wave = np.sin(u * (2 * np.pi / 0.42) + rng.uniform(0, 6.28))
    else:
        row = np.round(v / 0.36)
        across = (u / 0.36 + 0.5 * (row % 2) + 0.5) % 1 - 0.5
        wave = (0.3 - np.hypot(across, v / 0.36 - row)) * 8
    share = np.clip(wave * body.radius / 16 + 0.5, 0, 1)[..., None]
    return first * (1 - share) + second * share


def paint(rng: np.random.Generator, image: np.ndarray, body: Body, light: tuple[float, float, float]) -> None:
    """Draw a body with its bevel, gloss and shadow into an image, in place.

    Args:
        rng: where all randomness comes from.
        image: (2H, 2W, 3) float32 RGB in [0, 1].
        body: what to draw.
        light: unit vector towards the light (x right, y down, z to the viewer).
    """
    there, here = _overlap(body, image.shape[:2])
    size, alpha = body.coverage.shape[0], body.coverage.astype(np.float32) / 255
    height = body.radius * rng.uniform(0.16, 0.3)
    move = np.array([[1, 0, -light[0] / light[2] * height], [0, 1, -light[1] / light[2] * height]])
    shadow = cv2.warpAffine(alpha, move, (size, size))
    shadow = cv2.blur(cv2.blur(shadow, (9, 9)), (9, 9))
    image[there] *= (1 - 0.6 * shadow[here])[..., None]

    bevel = body.radius * rng.uniform(0.12, 0.4)
    depth = cv2.distanceTransform((body.coverage > 127).astype(np.uint8), cv2.DIST_L2, 5)
    rise = np.sqrt(1 - (1 - np.clip(depth / bevel, 0, 1)) ** 2) * bevel * 0.8
    rise = cv2.blur(rise, (5, 5))
    normal_x = -cv2.Sobel(rise, cv2.CV_32F, 1, 0, scale=1 / 8)
    normal_y = -cv2.Sobel(rise, cv2.CV_32F, 0, 1, scale=1 / 8)
    # Python floats keep the fields in float32. The half vector lies between the light and the viewer.
    length = np.sqrt(normal_x**2 + normal_y**2 + 1)
    half_z = math.sqrt((1 + light[2]) / 2)
    half_x, half_y = light[0] / (2 * half_z), light[1] / (2 * half_z)
    diffuse = np.maximum((normal_x * light[0] + normal_y * light[1] + light[2]) / length, 0)
    gloss = cv2.pow(np.maximum((normal_x * half_x + normal_y * half_y + half_z) / length, 0), 40)
    shade = np.minimum(0.36 + diffuse * (0.72 / light[2]), 1.25)
    lit = _albedo(rng, body) * shade[..., None] + (0.42 * gloss)[..., None]
    cover = alpha[here][..., None]
    image[there] = image[there] * (1 - cover) + np.clip(lit[here], 0, 1) * cover
