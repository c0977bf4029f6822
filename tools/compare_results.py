#!/usr/bin/env python3
"""Compare evaluations side by side: mean and spread of the runs that differ in their seed alone.

python tools/compare_results.py output/a output/b                # a column each, with the differences from the first
python tools/compare_results.py --rows output/study/*            # a row each for original, ft_0 + ft_1 + ft_2, ...
python tools/compare_results.py a.json b.json --scores mIoU pACC

A run is an OUTPUT_DIR of train_net.py --eval-only, or a results.json in it; repeated runs and copies count once.
Runs whose folders have equal names except for a last ``_0``, ``_1``, ... are shown as one: their mean and the standard
deviation of the sample. Results of different data, protocols (vocabulary, background, ignored label) or conventions of
mean IoU are refused; --force prints them, marked. The tables are Markdown, in per cent.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ovseg.errors import user_errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--scores", nargs="+", default=(), metavar="SCORE", help="default: the means of all")
    parser.add_argument("--rows", action="store_true", help="a row for each run, without differences")
    parser.add_argument("--settings", action="store_true", help="also list the settings in which the runs differ")
    parser.add_argument("--force", action="store_true", help="print what must not be compared, too, and mark it")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # before slow imports, for --help and errors

from rich.console import Console

from ovseg.evaluation.comparison import compare, score_table, setting_lines


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    console = Console(width=500, highlight=False)
    for dataset, groups in compare(args.runs, args.force).items():
        console.print(score_table(dataset, groups, args.scores, args.rows))
        for group in groups:
            for sentence in group.same:
                console.print(f"* {sentence}", markup=False)
            if group.unlike:
                reasons = "; ".join(group.unlike)
                console.print(f"* {group.name} must not be compared with {groups[0].name}: {reasons}", markup=False)
        for line in setting_lines(groups) if args.settings else ():
            console.print(line, markup=False)


if __name__ == "__main__":
    with user_errors():
        main()
