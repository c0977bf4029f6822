#!/usr/bin/env python3
"""Look at a data set before it is used: pairs, broken files, sizes, label values, class histogram, a contact sheet.

python tools/check_dataset.py configs/data/my_dataset.yaml --sheet output/my_dataset.png
python tools/check_dataset.py ade20k_sem_seg_val --limit 200 --json output/ade20k.json

NAME_OR_YAML is a registered data set, or a YAML file as docs/your_data.md describes; of the latter the raw files are
read, nothing is converted. The exit status is 0 if nothing is wrong, 1 if something is, 2 if the data set is not there
at all or the command line is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import ovseg
from ovseg.errors import user_errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", metavar="NAME_OR_YAML")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="draw some images with their labels (.png, .jpg)")
    parser.add_argument("--sheet-images", type=int, default=12, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="open N pairs only, evenly spread")
    parser.add_argument("--workers", type=int, help="threads (default: one for each CPU, at most 8)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found; - is the terminal")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # --help and mistakes are answered before what takes seconds is imported
ovseg.register()

from rich import box
from rich.console import Console
from rich.table import Table

from ovseg.data.check import Report, check_dataset, choose_pairs, draw_sheet, open_subject
from ovseg.data.check.dataset import KINDS, NOTES
from ovseg.io.cpus import usable_cpus
from ovseg.io.files import atomic_path
from ovseg.io.progress import progress_bar

MOST_LINES = 10  # files of each kind, and
MOST_CLASSES = 60  # classes that the terminal shows; JSON has all


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(argv)
    workers = min(8, usable_cpus()) if args.workers is None else args.workers
    subject = open_subject(args.dataset)
    with progress_bar(transient=True) as progress:
        task = progress.add_task(f"checking {args.dataset}", total=None)
        report = check_dataset(
            subject, args.limit, workers, lambda done, total: progress.update(task, completed=done, total=total)
        )
    text = json.dumps(report.as_dict(), indent=2)
    if args.json == Path("-"):
        print(text)
    else:
        show(report)
        if args.json:
            with atomic_path(args.json) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
    if args.sheet:
        draw_sheet(subject, report, choose_pairs(report, args.sheet_images), args.sheet)
        print(f"sheet: {args.sheet}", file=sys.stderr)
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


if __name__ == "__main__":
    with user_errors():
        sys.exit(main())
