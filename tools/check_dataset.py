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
import sys
from collections.abc import Sequence
from pathlib import Path

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(argv)
    from ovseg.cli.check_report import check_and_show  # imports slowly: after the arguments are checked

    return check_and_show(
        args.dataset,
        sheet=args.sheet,
        sheet_images=args.sheet_images,
        limit=args.limit,
        workers=args.workers,
        json_file=args.json,
    )


if __name__ == "__main__":
    with user_errors():
        sys.exit(main())
