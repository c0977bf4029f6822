"""Contact sheets: images next to their labels, with a legend, to see whether both agree."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import supervision as sv
from PIL import Image, ImageDraw

from ovseg.io.files import atomic_path
from ovseg.io.images import label_areas, save_image
from ovseg.result.drawing import draw_legend, draw_regions, resize_labelled, shorten_text, text_font

_WIDTH = 1840  # of the sheet in pixels; cells, an image next to its labels, fill its rows
_HEIGHT = 230  # of every drawing, unless it is so wide that a cell would not fit
_GAP, _LINE, _TITLE, _TEXT = 16, 24, 56, 17


@dataclass(frozen=True, eq=False)
class Cell:
    """An image and its labels side by side.

    Attributes:
        title: written below.
        drawing: of both.
        shares: (K,) share of each name in the image.
    """

    title: str
    drawing: Image.Image
    shares: np.ndarray


def choose_images(present: Mapping[int, Collection[int]], count: int, first: int | None = None) -> list[int]:
    """Choose images that show as many labels as possible, then evenly spread ones.

    Args:
        present: labels of each image, by its index.
        count: how many, at most.
        first: label of which an image comes first, if there is one.

    Returns:
        Indices of images, ascending.
    """
    left = {index: set(labels) for index, labels in sorted(present.items())}
    chosen: list[int] = []
    shown: set[int] = set()
    while left and len(chosen) < count:
        best = max(left, key=lambda index: (first in left[index] - shown, len(left[index] - shown)))
        if not left[best] - shown:
            break
        shown |= left.pop(best)
        chosen.append(best)
    rest = list(left)
    return sorted(chosen + [rest[position] for position in evenly(len(rest), count - len(chosen))])


def evenly(total: int, limit: int | None) -> list[int]:
    """Return at most ``limit`` of the numbers 0 .. total - 1, evenly spread, ascending."""
    count = total if limit is None else min(limit, total)
    return [position * total // count for position in range(count)]


def draw_cell(
    title: str, image: np.ndarray, label_map: np.ndarray, names: Sequence[str], colors: Mapping[int, sv.Color]
) -> Cell:
    """Return the cell of an image (H,W,3) uint8 RGB and its labels (H,W), indices of ``names``, negative for none."""
    shares = label_areas(label_map, len(names)) / label_map.size
    height, width = label_map.shape
    scale = min(_HEIGHT / height, ((_WIDTH - 2 * _GAP) // 2 - 1) / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image, label_map = resize_labelled(image, label_map, size)
    both = Image.new("RGB", (2 * size[0] + 2, size[1]), "white")
    both.paste(Image.fromarray(image), (0, 0))
    both.paste(Image.fromarray(draw_regions(image, label_map, names, colors)), (size[0] + 2, 0))
    return Cell(title, both, shares)


def write_sheet(
    cells: Iterable[Cell], names: Sequence[str], colors: Mapping[int, sv.Color], title: str, path: Path
) -> None:
    """Write a sheet of cells with their titles, and a legend of all names on it.

    Args:
        names: K names.
        colors: of each name.
        path: of any format that Pillow writes, by its suffix.

    Raises:
        OvsegError: the file cannot be written.
    """
    cells = list(cells)
    areas = np.mean([cell.shares for cell in cells], axis=0)
    order = [(int(k), float(areas[k])) for k in np.argsort(-areas, kind="stable") if areas[k] > 0]
    unlabelled = 1 - sum(share for _, share in order)
    legend = draw_legend(_WIDTH, [*order, *([(-1, unlabelled)] if unlabelled > 1e-9 else [])], names, _TEXT, colors)
    places, bottom = _flow([cell.drawing.size for cell in cells])
    sheet = Image.new("RGB", (_WIDTH, bottom + legend.shape[0]), "white")
    _write(sheet, title, (_GAP, _TITLE // 2), 24, _WIDTH - 2 * _GAP)
    for cell, (left, top) in zip(cells, places, strict=True):
        sheet.paste(cell.drawing, (left, top))
        _write(sheet, cell.title, (left, top + cell.drawing.height + _LINE // 2), 14, cell.drawing.width)
    sheet.paste(Image.fromarray(legend), (0, bottom))
    with atomic_path(path) as temporary:
        save_image(sheet, temporary)


def _flow(sizes: Sequence[tuple[int, int]]) -> tuple[list[tuple[int, int]], int]:
    """Return (left, top) of each (width, height), placed in rows like text, and the bottom of the last row."""
    places, left, top = [], _GAP, _TITLE
    for width, _ in sizes:
        if left > _GAP and left + width + _GAP > _WIDTH:
            left, top = _GAP, top + _HEIGHT + _LINE + _GAP
        places.append((left, top))
        left += width + _GAP
    return places, top + _HEIGHT + _LINE + _GAP


def _write(sheet: Image.Image, text: str, place: tuple[int, int], size: int, width: int) -> None:
    """Write a line that begins at (x, middle y), shortened to ``width`` pixels."""
    font = text_font(text, size)
    ImageDraw.Draw(sheet).text(place, shorten_text(text, font, width), font=font, fill="#222222", anchor="lm")
