#!/usr/bin/env python3
"""Draw the figures of the systems, docs/images/systems/*.svg, from the descriptions in docs/images/systems/figures.txt.

python tools/draw_systems.py            # write the figures
python tools/draw_systems.py --check    # exit with status 1 if a figure is out of date

A figure is a section of the file, ``[name] title``. Its boxes are lines ``name column,row kind text``, where ``/`` in a
text breaks the line; its arrows are lines that begin with ``->`` and list ``a>b`` (a curve from side to side, or a
straight line in a column), ``a|b`` (first along the column of a) and ``a-b`` (first along the row of a).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from ovseg.cli.generated import write_or_check
from ovseg.errors import OvsegError, user_errors

FOLDER = Path(__file__).parents[1] / "docs" / "images" / "systems"
KINDS = {  # kind of a box: fill, border, meaning in the legend
    "input": ("#ffffff", "#444444", "input, output"),
    "data": ("#f4f4f4", "#999999", "data"),
    "trained": ("#dbeafe", "#2563a8", "trained network"),
    "adapted": ("#fde8cf", "#c2700f", "adapted CLIP"),
    "frozen": ("#e5e7eb", "#5b6470", "frozen network"),
    "rule": ("#dcf3e3", "#23794a", "computation"),
    "loss": ("#fde2e2", "#b03030", "loss, in training"),
}
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 124, 44, 26, 24, 14  # of boxes and the gaps between them, pixels
FONT, LINE = 12, 14  # size of letters, height of a line, pixels


class Box(NamedTuple):
    """A box of a figure; ``x`` and ``y`` are pixels of its centre."""

    column: float
    row: float
    kind: str
    lines: list[str]

    @property
    def x(self) -> float:
        return MARGIN + self.column * (WIDTH + GAP_X) + WIDTH / 2

    @property
    def y(self) -> float:
        return MARGIN + self.row * (HEIGHT + GAP_Y) + HEIGHT / 2


class Figure(NamedTuple):
    """A figure: its title, boxes by name, and arrows (from, kind, to)."""

    title: str
    boxes: dict[str, Box]
    arrows: list[tuple[str, str, str]]


def read_figures(text: str) -> dict[str, Figure]:
    """Return the figures of a description by name.

    Raises:
        OvsegError: a line is not a title, box or list of arrows, or an arrow names no box.
    """
    figures: dict[str, Figure] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if title := re.fullmatch(r"\[(\w+)\] (.+)", line):
            figures[title[1]] = figure = Figure(title[2], {}, [])
        elif line.startswith("->"):
            figure.arrows.extend(match.groups() for match in re.finditer(r"(\w+)([>|-])(\w+)", line[2:]))
        elif box := re.fullmatch(rf"(\w+) +([\d.]+),([\d.]+) +({'|'.join(KINDS)}) +(.+)", line):
            figure.boxes[box[1]] = Box(float(box[2]), float(box[3]), box[4], box[5].split("/"))
        else:
            raise OvsegError(f"line {number} of the figures, {line!r}, is not a title, a box or a list of arrows")
    for name, figure in figures.items():
        if unknown := {end for a, _, b in figure.arrows for end in (a, b)} - figure.boxes.keys():
            raise OvsegError(f"an arrow of the figure {name} names {min(unknown)!r}, which is no box of it")
    return figures


def draw(figure: Figure) -> str:
    """Return a figure as SVG; it has a white ground, and letters of the reader's sans-serif font."""
    boxes = figure.boxes.values()
    width = MARGIN + max(box.x for box in boxes) + WIDTH / 2
    legend_y = max(box.y for box in boxes) + HEIGHT / 2 + 22
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {legend_y + 18:g}" width="{width:g}" '
        f'font-family="Helvetica, Arial, DejaVu Sans, sans-serif" font-size="{FONT}" role="img">',
        f"<title>{escape(figure.title)}</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>',
        '<rect width="100%" height="100%" rx="6" fill="#fff"/>',
    ]
    for a, kind, b in figure.arrows:
        path = _path(figure.boxes[a], kind, figure.boxes[b])
        parts.append(f'<path d="{path}" fill="none" stroke="#555" stroke-width="1.3" marker-end="url(#tip)"/>')
    parts += [_box(box) for box in boxes]
    kinds = [kind for kind in KINDS if kind != "input" and any(box.kind == kind for box in boxes)]
    for place, kind in enumerate(kinds):
        fill, border, meaning = KINDS[kind]
        x = MARGIN + place * 136
        parts.append(f'<rect x="{x}" y="{legend_y - 9:g}" width="14" height="11" fill="{fill}" stroke="{border}"/>')
        parts.append(f'<text x="{x + 20}" y="{legend_y:g}" fill="#555" font-size="11">{meaning}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _box(box: Box) -> str:
    fill, border, _ = KINDS[box.kind]
    dash = ' stroke-dasharray="4 3"' if box.kind == "loss" else ""
    corner = 2 if box.kind == "data" else 8
    first = box.y - (len(box.lines) - 1) * LINE / 2 + FONT * 0.35
    texts = "".join(
        f'<text x="{box.x:g}" y="{first + i * LINE:g}" text-anchor="middle" fill="#111">{escape(line.strip())}</text>'
        for i, line in enumerate(box.lines)
    )
    place = f'x="{box.x - WIDTH / 2:g}" y="{box.y - HEIGHT / 2:g}" width="{WIDTH}" height="{HEIGHT}" rx="{corner}"'
    return f'<rect {place} fill="{fill}" stroke="{border}"{dash}/>{texts}'


def _path(a: Box, kind: str, b: Box) -> str:
    """Return the path of an arrow, from the border of a box to that of another one."""
    right, down = (1 if b.x >= a.x else -1), (1 if b.y >= a.y else -1)
    if kind == "|":
        return f"M{a.x:g} {a.y + down * HEIGHT / 2:g}V{b.y:g}H{b.x - right * (WIDTH / 2 + 1):g}"
    if kind == "-":
        return f"M{a.x + right * WIDTH / 2:g} {a.y:g}H{b.x:g}V{b.y - down * (HEIGHT / 2 + 1):g}"
    if a.column == b.column:
        return f"M{a.x:g} {a.y + down * HEIGHT / 2:g}V{b.y - down * (HEIGHT / 2 + 1):g}"
    start, end = a.x + right * WIDTH / 2, b.x - right * (WIDTH / 2 + 1)
    bend = (start + end) / 2
    return f"M{start:g} {a.y:g}C{bend:g} {a.y:g} {bend:g} {b.y:g} {end:g} {b.y:g}"


def figures() -> dict[Path, str]:
    """Return the SVG text of each figure, by its file."""
    described = read_figures((FOLDER / "figures.txt").read_text(encoding="utf-8"))
    return {FOLDER / f"{name}.svg": draw(figure) for name, figure in described.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Write the figures, or check them; exits with status 1 if one is out of date."""
    write_or_check(__doc__, "tools/draw_systems.py", "figure", figures, argv)


if __name__ == "__main__":
    with user_errors():
        main()
