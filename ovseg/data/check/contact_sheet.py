"""Contact sheet of a data set: images next to their labels, to see whether both agree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ovseg.data.check.dataset import Report, Subject
from ovseg.data.custom.names import folder_name
from ovseg.data.custom.values import UNLISTED
from ovseg.errors import OvsegError
from ovseg.io.images import read_image
from ovseg.result.drawing import colors_of
from ovseg.result.sheet import choose_images, draw_cell, write_sheet

_NOT_LISTED = "(not in the list of classes)"


def choose_pairs(report: Report, count: int) -> list[int]:
    """Choose pairs: one with values outside the list, then as many classes as possible, then evenly spread ones.

    Args:
        report: of the data set.
        count: how many, at most.

    Returns:
        Indices of pairs, ascending; only such whose files can be read and have one size.
    """
    present = {index: found.tolist() for index, found in report.present.items()}
    return choose_images(present, count, first=len(report.class_names))


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
    cells = []
    for pair in (subject.pairing.pairs[index] for index in chosen):
        image, indices = read_image(pair.image), subject.read(pair).indices
        label_map = np.where(indices == UNLISTED, len(names) - 1, indices)
        cells.append(draw_cell(pair.image.name, image, label_map, names, colors))
    title = (
        f"{folder_name(report.name)}: {len(cells)} of {report.num_pairs:,} images, {len(report.class_names)} classes"
    )
    title += f"; {len(report.wrong):,} problems" if report.wrong else ""
    write_sheet(cells, names, colors, title, path)
