"""The contact sheet of a labelling run."""

from __future__ import annotations

from pathlib import Path

from ovseg.errors import OvsegError
from ovseg.io.images import read_image
from ovseg.labelling.options import Inputs, Target
from ovseg.labelling.records import Entry, read_records
from ovseg.result.drawing import colors_of
from ovseg.result.sheet import choose_images, draw_cell, write_sheet


def draw_review(inputs: Inputs, entries: dict[str, Entry], names: tuple[str, ...], target: Target, path: Path) -> None:
    """Draw some images next to their labels, as they are written: as many words as possible, then evenly spread ones.

    Each title has the mean score of the image's regions. An image that has been removed meanwhile is left out.
    """
    labelled = [(name, entry) for name, entry in entries.items() if entry.reason is None]
    present = {number: tuple(entry.areas or ()) for number, (_, entry) in enumerate(labelled)}
    chosen = dict(labelled[number] for number in choose_images(present, target.sheet_images))
    colors = colors_of(range(len(names)))
    cells = []
    for image in read_records(chosen, names):
        try:
            pixels = read_image(inputs.images[image.name])
        except OvsegError:
            continue
        if pixels.shape[:2] == tuple(image.size):
            title = f"{chosen[image.name].score:.2f}  {image.name}"
            labels = image.kept(target.min_area, target.min_score).label_map()
            cells.append(draw_cell(title, pixels, labels, names, colors))
    if cells:
        failed = sum(entry.reason is not None for entry in entries.values()) + len(inputs.failures)
        title = f"{len(cells)} of {len(labelled):,} labelled images, {len(names)} words; {failed} failed"
        write_sheet(cells, names, colors, f"{title}. Numbers: mean score of the regions", path)
