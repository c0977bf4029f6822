"""``Cell``: one result of the matrix of proposers and namers; their table and their heat map (tools/matrix.py)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ovseg.evaluation.proposal_recall import RECALLS

MIOU, GROUNDING = "mIoU", "Grounding-mIoU"


@dataclass(frozen=True)
class Cell:
    """A pair of a proposer and a namer, or a system, on one data set.

    Attributes:
        proposer, namer: their names; of a system its name and "".
        dataset: registered name.
        scores: percent by name, see :func:`score_names`; empty for a pair that cannot be.
        seconds: of the model for an image, without reading and evaluation.
        clip_images: images that CLIP's image towers encode for an image, crops and whole ones; None if unknown.
        reason: why the pair cannot be.
    """

    proposer: str
    namer: str
    dataset: str
    scores: Mapping[str, float] = field(default_factory=dict)
    seconds: float = math.nan
    clip_images: float | None = None
    reason: str = ""


def score_names(subsets: Mapping[str, Any]) -> list[str]:
    """Return the names of the scores of a cell, for the subsets of a data set's classes."""
    ends = ["", *(f"-{name}" for name in subsets)]
    return [f"{score}{end}" for score in (MIOU, GROUNDING) for end in ends] + [*RECALLS]


def as_markdown(cells: Sequence[Cell], title: str, notes: Sequence[str] = ()) -> str:
    """Return the table of all cells, with the reasons of pairs that cannot be."""
    subsets = {name.partition("-")[2]: None for cell in cells for name in cell.scores if name.startswith(f"{MIOU}-")}
    names = score_names(subsets)
    several = len({cell.dataset for cell in cells}) > 1
    of_all = {MIOU: MIOU, GROUNDING: "Grounding mIoU", **{name: name for name in RECALLS}}
    header = [*(["data"] if several else []), "proposer", "namer"]
    header += [*(of_all.get(name) or name.rpartition("-")[2] for name in names), "s per image", "images through CLIP"]
    rows = [header, ["---"] * (2 + several) + ["---:"] * (len(header) - 2 - several)]
    reasons: dict[str, int] = {}
    for cell in cells:
        row = [*([cell.dataset] if several else []), cell.proposer, cell.namer or "(system)"]
        if cell.reason:
            mark = reasons.setdefault(cell.reason, len(reasons) + 1)
            row += [f"- [{mark}]"] + ["-"] * (len(names) + 1)
        else:
            row += [_number(cell.scores.get(name)) for name in names]
            row += [f"{cell.seconds:.3f}", "-" if cell.clip_images is None else f"{cell.clip_images:.1f}"]
        rows.append(row)
    lines = [f"# {title}", "", *notes, ""] + ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", *(f"[{mark}] {reason}" for reason, mark in reasons.items())]).rstrip() + "\n"


def draw_heat_map(cells: Sequence[Cell], path: str | Path, title: str) -> None:
    """Draw mIoU and Grounding mIoU of all pairs, and both of all systems, to an image file; a row for each data set."""
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    datasets = list(dict.fromkeys(cell.dataset for cell in cells))
    pairs, systems = ([cell for cell in cells if bool(cell.namer) == is_pair] for is_pair in (True, False))
    namers = list(dict.fromkeys(cell.namer for cell in pairs))
    widths = [*([1.5 + len(namers)] * 2 if pairs else []), *([3.5] if systems else [])]
    rows = max(len({cell.proposer for cell in part}) for part in (pairs, systems))
    figure = Figure(figsize=(0.85 * sum(widths) + 1, 1.2 + len(datasets) * (1 + 0.42 * rows)), layout="constrained")
    grid = figure.subplots(len(datasets), len(widths), squeeze=False, width_ratios=widths)
    for axes, dataset in zip(grid, datasets, strict=True):
        panels = [(pairs, score) for score in (MIOU, GROUNDING)] if pairs else []
        for place, (part, score) in zip(axes, panels, strict=False):
            values = [(cell.proposer, cell.namer, cell.scores.get(score)) for cell in part if cell.dataset == dataset]
            _draw(place, values, f"{score.replace('-', ' ')} %, {dataset}")
        if systems:
            of_systems = [cell for cell in systems if cell.dataset == dataset]
            values = [(cell.proposer, name, cell.scores.get(name)) for cell in of_systems for name in (MIOU, GROUNDING)]
            _draw(axes[-1], values, "systems, %")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)


def _draw(axes: Any, values: Sequence[tuple[str, str, float | None]], title: str) -> None:
    """Draw a heat map of (row, column, value), "-" for None and NaN."""
    import numpy as np

    if not values:
        axes.set_axis_off()
        return
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*(value[:2] for value in values), strict=True))
    shown = np.full((len(rows), len(columns)), np.nan)
    for row, column, value in values:
        shown[rows.index(row), columns.index(column)] = np.nan if value is None else value
    known = shown[np.isfinite(shown)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
    axes.imshow(shown, cmap="viridis", vmin=low, vmax=max(high, low + 1e-6), aspect="auto")
    for (row, column), value in np.ndenumerate(shown):
        light = math.isnan(value) or value >= (low + high) / 2
        text = "-" if math.isnan(value) else f"{value:.1f}"
        axes.text(column, row, text, ha="center", va="center", color="black" if light else "white", fontsize=9)
    axes.set_xticks(range(len(columns)), columns, fontsize=8, rotation=20)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_title(title, fontsize=10)


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1f}"
