"""A contact sheet of toy scenes, their labels and captions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import supervision as sv
from matplotlib.figure import Figure

from ovseg.io.files import atomic_path
from ovseg.toy.classes import CLASS_NAMES
from ovseg.toy.scene import Scene, make_scene


def overlay(scene: Scene) -> np.ndarray:
    """Return the scene under its label map, one colour for each class: (H, W, 3) uint8 RGB."""
    present = np.unique(scene.labels)
    masks = np.stack([scene.labels == label for label in present])
    segments = sv.Detections(xyxy=sv.mask_to_xyxy(masks), mask=masks, class_id=np.arange(len(present)))
    bgr = np.ascontiguousarray(scene.image[:, :, ::-1])
    return sv.MaskAnnotator(opacity=0.7).annotate(bgr, segments)[:, :, ::-1]


def draw_sheet(seeds: Sequence[int], columns: int, path: Path) -> None:
    """Write an image with one row of scenes above one row of their labels, with the first caption below."""
    rows = -(-len(seeds) // columns)
    figure = Figure(figsize=(2.4 * columns, 6.0 * rows), layout="constrained")
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for index, scene in enumerate(map(make_scene, seeds)):
        row, column = divmod(index, columns)
        above, below = axes[2 * row, column], axes[2 * row + 1, column]
        above.imshow(scene.image)
        above.set_title(f"seed {scene.seed}", fontsize=8)
        below.imshow(overlay(scene))
        words = ", ".join(CLASS_NAMES[label] for label in np.unique(scene.labels))
        below.set_title("\n".join(textwrap.wrap(words, 38)), fontsize=6)
        below.text(
            0.5, -0.03, "\n".join(textwrap.wrap(scene.captions[1], 38)), fontsize=6, ha="center", va="top",
            transform=below.transAxes,
        )  # fmt: skip
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
