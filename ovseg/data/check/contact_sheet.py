"""Contact sheet: images next to their labels, to see whether both agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import supervision as sv
from PIL import Image, ImageDraw

from ovseg.data.check.dataset import Report, Subject, evenly
from ovseg.data.custom.names import folder_name
from ovseg.data.custom.pairing import Pair
from ovseg.data.custom.values import UNLISTED
from ovseg.errors import OvsegError
from ovseg.io.files import atomic_path
from ovseg.io.images import label_areas, read_image, save_image
from ovseg.result.drawing import colors_of, draw_legend, draw_regions, resize_labelled, shorten_text, text_font

_WIDTH = 1840  # of the sheet in pixels; cells, an image next to its labels, fill its rows
_HEIGHT = 230  # of every drawing, unless it is so wide that a cell would not fit
_GAP, _LINE, _TITLE, _TEXT = 16, 24, 56, 17
_NOT_LISTED = "(not in the list of classes)"


def choose_pairs(report: Report, count: int) -> list[int]:
    """Choose pairs: one with values outside the list, then as many classes as possible, then evenly spread ones.

    Args:
        report: of the data set.
        count: how many, at most.

    Returns:
        Indices of pairs, ascending; only such whose files can be read and have one size.
    """
    left = {index: set(present.tolist()) for index, present in sorted(report.present.items())}
    chosen: list[int] = []
    shown: set[int] = set()
    outside = len(report.class_names)
    while left and len(chosen) < count:
        best = max(left, key=lambda index: (outside in left[index] - shown, len(left[index] - shown)))
        if not left[best] - shown:
            break
        shown |= left.pop(best)
        chosen.append(best)
    rest = list(left)
    return sorted(chosen + [rest[position] for position in evenly(len(rest), count - len(chosen))])


def draw_sheet(subject: Subject, report: Report, chosen: Sequence[int], path: Path) -> None:
    """Write the sheet: image and labels side by side with their file's name, and a legend of all classes on it.

    Args:
        chosen: indices of pairs, see :func:`choose_pairs`.
        path: of any format that Pillow writes, by its suffix.

    Raises:
        OvsegError: there is nothing to draw, or the file cannot be written.
    """
    if not chosen:
        raise OvsegError(f"no pair of {subject.name} can be drawn: none has readable files of one size")
    names = [*subject.class_names, _NOT_LISTED]
    colors = colors_of(range(len(names)))
    areas = np.zeros(len(names))
    cells = []
    for index in chosen:
        pair = subject.pairing.pairs[index]
        drawing, shares = _draw_pair(subject, pair, names, colors)
        areas += shares / len(chosen)
        cells.append((pair, drawing))
    order = [(int(k), float(areas[k])) for k in np.argsort(-areas, kind="stable") if areas[k] > 0]
    unlabelled = 1 - sum(share for _, share in order)
    legend = draw_legend(_WIDTH, [*order, *([(-1, unlabelled)] if unlabelled > 1e-9 else [])], names, _TEXT, colors)
    places, bottom = _flow([drawing.size for _, drawing in cells])
    sheet = Image.new("RGB", (_WIDTH, bottom + legend.shape[0]), "white")
    title = (
        f"{folder_name(report.name)}: {len(cells)} of {report.num_pairs:,} images, {len(report.class_names)} classes"
    )
    title += f"; {len(report.wrong):,} problems" if report.wrong else ""
    _write(sheet, title, (_GAP, _TITLE // 2), 24, _WIDTH - 2 * _GAP)
    for (pair, drawing), (left, top) in zip(cells, places, strict=True):
        sheet.paste(drawing, (left, top))
        _write(sheet, pair.image.name, (left, top + drawing.height + _LINE // 2), 14, drawing.width)
    sheet.paste(Image.fromarray(legend), (0, bottom))
    with atomic_path(path) as temporary:
        save_image(sheet, temporary)


def _draw_pair(
    subject: Subject, pair: Pair, names: Sequence[str], colors: Mapping[int, sv.Color]
) -> tuple[Image.Image, np.ndarray]:
    """Return image and labels side by side, and the share of each name in the image."""
    image, indices = read_image(pair.image), subject.read(pair).indices
    label_map = np.where(indices == UNLISTED, len(names) - 1, indices)
    shares = label_areas(label_map, len(names)) / label_map.size
    height, width = label_map.shape
    scale = min(_HEIGHT / height, ((_WIDTH - 2 * _GAP) // 2 - 1) / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image, label_map = resize_labelled(image, label_map, size)
    both = Image.new("RGB", (2 * size[0] + 2, size[1]), "white")
    both.paste(Image.fromarray(image), (0, 0))
    both.paste(Image.fromarray(draw_regions(image, label_map, names, colors)), (size[0] + 2, 0))
    return both, shares


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
