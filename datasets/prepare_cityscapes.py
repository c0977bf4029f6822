#!/usr/bin/env python3
"""Convert Cityscapes: labelIds -> labelTrainIds, the 19 classes that are evaluated; the 15 other labels -> 255.

python datasets/prepare_cityscapes.py [--archives gtFine_trainvaltest.zip leftImg8bit_trainvaltest.zip]
python datasets/prepare_cityscapes.py --verify

Reads cityscapes/gtFine/{train,val}/<city>/*_gtFine_labelIds.png, writes *_gtFine_labelTrainIds.png next to them, as
cityscapesScripts' createTrainIdLabelImgs does from the polygons.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from ovseg.data import prepare
from ovseg.errors import user_errors

SPLITS = ("train", "val")
TREE = """
cityscapes/
  leftImg8bit/{train,val}/<city>/*_leftImg8bit.png
  gtFine/{train,val}/<city>/*_gtFine_labelIds.png
"""


def conversions(args: argparse.Namespace) -> Iterator[prepare.Conversion]:
    id_map = prepare.class_table("cityscapes_19", 34)
    sources = {split: args.root / "cityscapes/gtFine" / split for split in SPLITS}
    for split in prepare.find_splits(sources, args.splits):
        files = prepare.find_files(sources[split], "_gtFine_labelIds.png", recursive=True)
        items = [prepare.Item(name, (path,)) for name, path in files.items()]
        output = prepare.label_output(sources[split], id_map, "_gtFine_labelTrainIds.png")
        expected = prepare.expected_files(f"cityscapes/gtFine/{split}", len(items))
        yield prepare.Conversion(f"Cityscapes {split}", items, prepare.read_labels_of, [output], expected)


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    args = prepare.parser(__doc__, TREE, SPLITS).parse_args(argv)
    return prepare.run(args, "cityscapes", TREE, conversions)


if __name__ == "__main__":
    with user_errors():
        sys.exit(main())
