#!/usr/bin/env python3
"""Write report.html for an evaluation that is finished: one file that opens offline.

python tools/report.py output/run/inference/ade20k_sem_seg_val

It shows the scores in both conventions, the protocol, the worst classes, what is confused with what, and every class.
With TEST.REPORT True in the evaluation, which writes the report by itself, it shows the worst images, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ovseg.errors import user_errors
from ovseg.evaluation.html_report import write_report
from ovseg.evaluation.record import FILE, read_record
from ovseg.evaluation.report import read_confusion


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="OUTPUT_DIR/inference/<data set>")
    for folder in parser.parse_args(argv).folders:
        record = read_record(folder / FILE)
        path = write_report(folder, record, read_confusion(folder, len(record["class_names"])))
        Console().print(f"open {path} in a browser", soft_wrap=True, markup=False, highlight=False)


if __name__ == "__main__":
    with user_errors():
        main()
