"""The work of ``ovseg check`` and ``tools/check_dataset.py``: check a data set, and print what is found."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

import ovseg
from ovseg.data.check import Report, check_dataset, choose_pairs, draw_sheet, open_subject
from ovseg.data.check.dataset import KINDS, NOTES
from ovseg.io.cpus import usable_cpus
from ovseg.io.files import atomic_path
from ovseg.io.progress import progress_bar

MOST_LINES = 10  # files of each kind, and
MOST_CLASSES = 60  # classes that the terminal shows; JSON has all


def check_and_show(
    dataset: str,
    *,
    sheet: Path | None = None,
    sheet_images: int = 12,
    limit: int | None = None,
    workers: int | None = None,
    json_file: Path | None = None,
) -> int:
    """Check a data set and print what is found.

    Args:
        dataset: a registered data set, or a YAML file.
        sheet: image file to draw on.
        sheet_images: number of its images.
        limit: number of pairs to open, evenly spread; None for all.
        workers: threads; None for one for each CPU, at most 8.
        json_file: file of everything that is found; ``-`` prints it in place of the report.

    Returns:
        0, or 1 if something is wrong.

    Raises:
        OvsegError: the data set is not there, or a file cannot be written.
    """
    ovseg.register()
    workers = min(8, usable_cpus()) if workers is None else workers
    subject = open_subject(dataset)
    with progress_bar(transient=True) as progress:
        task = progress.add_task(f"checking {dataset}", total=None)
        report = check_dataset(
            subject, limit, workers, lambda done, total: progress.update(task, completed=done, total=total)
        )
    text = json.dumps(report.as_dict(), indent=2)
    if json_file == Path("-"):
        print(text)
    else:
        show(report)
        if json_file:
            with atomic_path(json_file) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
    if sheet:
        draw_sheet(subject, report, choose_pairs(report, sheet_images), sheet)
        print(f"sheet: {sheet}", file=sys.stderr)
    return 1 if report.wrong else 0


def show(report: Report) -> None:
    """Print the report for people."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(_histogram(report))
    if report.never:
        console.print(f"never: {_some(report.never, 20)}")
    for kind, findings in groupby(report.findings, key=lambda finding: finding.kind):
        found = list(findings)
        console.print(f"\n{KINDS[kind]}: {len(found):,}{' (a note, no fault)' if kind in NOTES else ''}", style="bold")
        for finding in found[:MOST_LINES]:
            console.print(f"  {finding.message}")
        if len(found) > MOST_LINES:
            console.print(f"  ... and {len(found) - MOST_LINES:,} more, which --json FILE lists")
    if report.unlisted:
        console.print("\nvalues outside the list of classes", style="bold")
        for value, entry in list(report.unlisted.items())[:MOST_LINES]:
            console.print(f"  {value}: {entry['pixels']:,} pixels in {_some(entry['files'], 3)}")
    if report.left_out:
        things = len(report.left_out)
        pixels = sum(entry["pixels"] for entry in report.left_out.values())
        console.print(f"\nleft out: {things:,} shapes, annotations or values with {pixels:,} pixels", style="bold")
    checked = f"{report.num_pairs:,} pairs of image and labels, {len(report.checked):,} checked"
    console.print(f"\n{report.name}: {checked}; {_verdict(report)}", style="bold")


def _histogram(report: Report) -> Table:
    labelled = max(int(report.pixels.sum()), 1)
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("index", "class", "pixels", "of labelled", "images"):
        table.add_column(column, justify="left" if column == "class" else "right")
    order = sorted(range(len(report.class_names)), key=lambda index: -report.pixels[index])
    occurring = [index for index in order if report.pixels[index]]
    for index in sorted(occurring[:MOST_CLASSES]):
        pixels = int(report.pixels[index])
        share = f"{pixels / labelled:.2%}"
        table.add_row(str(index), report.class_names[index], f"{pixels:,}", share, f"{report.images[index]:,}")
    if len(occurring) > MOST_CLASSES:
        table.add_row("", f"and {len(occurring) - MOST_CLASSES} rarer classes", "", "", "")
    table.add_row("", "ignored", f"{report.ignored:,}", "", "")
    return table


def _verdict(report: Report) -> str:
    if not report.wrong:
        return "nothing is wrong"
    kinds = {kind: len(list(found)) for kind, found in groupby(report.wrong, key=lambda finding: finding.kind)}
    return "WRONG: " + ", ".join(f"{count:,} {KINDS[kind]}" for kind, count in kinds.items())


def _some(items: Sequence[str], most: int) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most:,} more" if len(items) > most else "")
