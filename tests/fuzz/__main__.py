"""The command line; the package says how it is used."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: workers are forked, and must find no threads

from rich.console import Console
from rich.table import Table

import tests.fuzz
from tests.fuzz.harness import Result, fuzz
from tests.fuzz.targets import ALL, BY_NAME

_KINDS = ("traceback", "message", "hang", "crash", "memory", "executed", "network", "outside", "harness")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 1 if there is any defect."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=tests.fuzz.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"some of {', '.join(BY_NAME)} (default: all)")
    parser.add_argument("--inputs", type=int, metavar="N", help="of each target (default: 2,000; pickles 10,000)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--index", type=int, help="this input only")
    parser.add_argument("--seconds", type=float, default=600, help="at most, for each target (default: %(default)g)")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep the first input of each defect, with its traceback"
    )
    args = parser.parse_args(argv)
    if unknown := [name for name in args.targets if name not in BY_NAME]:
        parser.error(f"there is no target {unknown[0]}: choose among {', '.join(BY_NAME)}")
    console, results = Console(soft_wrap=True, highlight=False, width=160), []
    for target in [BY_NAME[name] for name in args.targets] or ALL:
        count = args.inputs or target.inputs
        indices = range(count) if args.index is None else range(args.index, args.index + 1)
        result = fuzz(target, indices, args.seed, seconds=args.seconds, keep=args.keep and args.keep.resolve())
        results.append(result)
        show(result, console)
    console.print(table(results))
    return int(any(result.defects for result in results))


def show(result: Result, console: Console) -> None:
    """Print the defects of one target, the commonest first."""
    seconds = f"{result.inputs:,} inputs in {result.seconds:.0f} s"
    console.print(f"{result.target}: {seconds}, {len(result.defects)} kinds of defects", markup=False)
    for defect in sorted(result.defects.values(), key=lambda defect: -len(defect.indices)):
        numbers = ", ".join(map(str, defect.indices[:3])) + (", ..." if len(defect.indices) > 3 else "")
        console.print(f"  {defect.kind} x{len(defect.indices)} at {defect.place} (inputs {numbers})", markup=False)
        console.print(f"      {' '.join(defect.message.split())[:300]}", markup=False)


def table(results: Sequence[Result]) -> Table:
    """A row for each target."""
    shown = [kind for kind in _KINDS if kind in _KINDS[:5] or any(result.count(kind) for result in results)]
    columns = Table()
    columns.add_column("target")
    for name in ("inputs", "ok", "refused", *shown, "peak MB", "slowest s", "seconds"):
        columns.add_column(name, justify="right")
    for result in results:
        counts = [result.inputs, result.ok, result.refused, *(result.count(kind) for kind in shown)]
        sizes = f"{result.peak / 1e6:,.0f}", f"{result.slowest:.1f}", f"{result.seconds:.0f}"
        columns.add_row(result.target, *(f"{count:,}" for count in counts), *sizes)
    return columns


if __name__ == "__main__":
    sys.exit(main())
