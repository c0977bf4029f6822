#!/usr/bin/env python3
"""Convert ADE20K-150: labels 1..150 -> 0..149, unlabeled -> 255.

python datasets/prepare_ade20k_150.py [--archives ADEChallengeData2016.zip]
python datasets/prepare_ade20k_150.py --verify

Reads ADEChallengeData2016/annotations/{training,validation}, writes annotations_detectron2/ next to it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from ovseg.data import prepare
from ovseg.errors import user_errors

SPLITS = ("training", "validation")
TREE = """
ADEChallengeData2016/
  images/{training,validation}/ADE_*.jpg
  annotations/{training,validation}/ADE_*.png
"""


def conversions(args: argparse.Namespace) -> Iterator[prepare.Conversion]:
    base = args.root / "ADEChallengeData2016"
    id_map = prepare.class_table("ade20k_150", 151)
    sources = {split: base / "annotations" / split for split in SPLITS}
    for split in prepare.find_splits(sources, args.splits):
        items = [prepare.Item(name, (path,)) for name, path in prepare.find_files(sources[split], ".png").items()]
        output = prepare.label_output(base / "annotations_detectron2" / split, id_map)
        expected = prepare.expected_files(f"ADEChallengeData2016/annotations_detectron2/{split}", len(items))
        yield prepare.Conversion(f"ADE20K-150 {split}", items, prepare.read_labels_of, [output], expected)


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    args = prepare.parser(__doc__, TREE, SPLITS).parse_args(argv)
    return prepare.run(args, "ade20k_150", TREE, conversions)


if __name__ == "__main__":
    with user_errors():
        sys.exit(main())
