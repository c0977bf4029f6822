#!/usr/bin/env python3
"""Compare evaluations side by side: mean and spread of the runs that differ in their seed alone.

python tools/compare_results.py output/study/*                 # a row each for original, ft_0 + ft_1 + ft_2, ...
python tools/compare_results.py output/a output/b --scores mIoU pACC

A run is an OUTPUT_DIR of train_net.py --eval-only, or a results.json in it. Runs whose folders have the same name but
for a last ``_0``, ``_1``, ... are one row: their mean and the standard deviation of the sample. The table is Markdown,
in per cent.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from ovseg.errors import OvsegError, user_errors

SCORES = ("mIoU-base", "mIoU-novel", "mIoU")


def read_scores(run: Path) -> dict[str, dict[str, float]]:
    """All scores of a run, by data set.

    Raises:
        OvsegError: there is no finished evaluation, or one that cannot be read.
    """
    files = [run] if run.is_file() else sorted(run.glob("inference/*/results.json"))
    if not files:
        raise OvsegError(f"no inference/<data set>/results.json in {run}: evaluate with OUTPUT_DIR {run} first")
    scores: dict[str, dict[str, float]] = {}
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            scores[content["dataset"]] = {key: v for task in content["results"].values() for key, v in task.items()}
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise OvsegError(f"{file} is no results.json of train_net.py --eval-only ({error!r})") from error
    return scores


def group_name(run: Path) -> str:
    """Name of the OUTPUT_DIR without the seed."""
    folder = run.resolve().parents[2] if run.is_file() else run.resolve()
    return re.sub(r"_\d+$", "", folder.name)


def compare(runs: Sequence[Path], wanted: Sequence[str]) -> list[Table]:
    """A table for each data set, a row for each group of runs in the order given.

    Raises:
        OvsegError: a run has no scores, or lacks one that is wanted.
    """
    groups: dict[str, dict[str, list[Mapping[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for dataset, scores in read_scores(run).items():
            if lacking := [name for name in wanted if scores.get(name) is None]:
                raise OvsegError(f"{run} has no {lacking[0]} on {dataset}: choose --scores among {', '.join(scores)}")
            groups[dataset][group_name(run)].append(scores)
    tables = []
    for dataset, rows in groups.items():
        table = Table(box=box.MARKDOWN)
        for column in (dataset, "runs", *wanted):
            table.add_column(column, justify="left" if column == dataset else "right", no_wrap=True)
        for name, same in rows.items():
            table.add_row(name, str(len(same)), *(_spread([scores[score] for scores in same]) for score in wanted))
        tables.append(table)
    return tables


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--scores", nargs="+", default=SCORES, metavar="SCORE", help=f"default: {' '.join(SCORES)}")
    args = parser.parse_args(argv)
    for table in compare(args.runs, args.scores):
        Console(width=200).print(table)


if __name__ == "__main__":
    with user_errors():
        main()
