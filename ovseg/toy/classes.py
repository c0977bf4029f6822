"""The words of the toy world: colours, shapes, grounds, and which of them are base or novel; its splits."""

from __future__ import annotations

# Colours that stay apart under shading, and from the grounds (no orange or brown: those are brick, wood and lava).
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 22, 34),
    "yellow": (250, 206, 16),
    "green": (10, 158, 78),
    "blue": (28, 72, 222),
    "purple": (112, 36, 168),
    "pink": (255, 122, 188),
    "white": (246, 246, 246),
    "black": (26, 26, 30),
}
# The other tone of stripes and dots: the same colour to the eye, so that a pattern never changes the name.
SECOND_TONES: dict[str, tuple[int, int, int]] = {
    "red": (128, 6, 16),
    "yellow": (202, 146, 4),
    "green": (4, 92, 44),
    "blue": (110, 150, 255),
    "purple": (180, 112, 228),
    "pink": (255, 194, 224),
    "white": (176, 180, 190),
    "black": (92, 92, 102),
}

# Outlines that stay apart at any rotation (so no diamond with the square, no hexagon with the circle).
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "moon", "arrow", "flower")

STUFF: tuple[str, ...] = ("grass", "sand", "water", "brick", "stone", "tile", "ice", "lava", "wood", "metal")
NOVEL_STUFF: frozenset[str] = frozenset({"wood", "metal"})

PATTERNS: tuple[str, ...] = ("plain", "striped", "dotted")


def is_novel_pair(colour: str, shape: str) -> bool:
    """Return whether a pair is novel: two of the eight colours of each shape, spread evenly over the colours."""
    return (SHAPES.index(shape) - list(COLOURS).index(colour)) % 4 == 0


_PAIRS = [(colour, shape) for shape in SHAPES for colour in COLOURS]

BASE_CLASSES: tuple[str, ...] = (
    *(name for name in STUFF if name not in NOVEL_STUFF),
    *(f"{colour} {shape}" for colour, shape in _PAIRS if not is_novel_pair(colour, shape)),
)
NOVEL_CLASSES: tuple[str, ...] = (
    *(name for name in STUFF if name in NOVEL_STUFF),
    *(f"{colour} {shape}" for colour, shape in _PAIRS if is_novel_pair(colour, shape)),
)
# Base first, so that an index means the same word in training (base only) and in evaluation (all).
CLASS_NAMES: tuple[str, ...] = BASE_CLASSES + NOVEL_CLASSES
CLASS_INDEX: dict[str, int] = {name: index for index, name in enumerate(CLASS_NAMES)}
IGNORE_LABEL = 255

# (first seed, number of scenes); the seeds of splits never meet, and the shipped CLIP has seen those below 3000.
# Settings are chosen on tune, results reported on val; "captions" has captions only, no labels.
SPLITS: dict[str, tuple[int, int]] = {
    "train": (0, 2000),
    "tune": (500_000, 100),
    "val": (1_000_000, 200),
    "captions": (250_000, 1000),
}
