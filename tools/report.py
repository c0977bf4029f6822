#!/usr/bin/env python3
"""Write report.html for evaluations that are finished: one file each, which opens offline.

python tools/report.py output/run                                  # of each data set in it
python tools/report.py output/run/inference/ade20k_sem_seg_val

It shows the scores in both conventions, the protocol, the worst classes, what is confused with what, and every class.
With TEST.REPORT True in the evaluation, which writes the report by itself, it shows the worst images, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ovseg.errors import user_errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="OUTPUT_DIR, or OUTPUT_DIR/inference/<data set>"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # --help and mistakes are answered before what takes seconds is imported

from rich.console import Console

from ovseg.evaluation.record import read_record, record_files
from ovseg.evaluation.report import read_confusion, write_report


def main(argv: Sequence[str] | None = None) -> None:
    for file in [file for folder in parse_args(argv).folders for file in record_files(folder)]:
        record = read_record(file, complete=True)
        path = write_report(file.parent, record, read_confusion(file.parent, len(record["class_names"])))
        Console().print(f"open {path} in a browser", soft_wrap=True, markup=False, highlight=False)


if __name__ == "__main__":
    with user_errors():
        main()
