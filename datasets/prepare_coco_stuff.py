#!/usr/bin/env python3
"""Convert COCO-Stuff: raw values (category id - 1) -> 0..170, everything else -> 255.

python datasets/prepare_coco_stuff.py [--archives train2017.zip val2017.zip stuffthingmaps_trainval2017.zip]
python datasets/prepare_coco_stuff.py --split 156-15
python datasets/prepare_coco_stuff.py --background --splits val2017
python datasets/prepare_coco_stuff.py --verify

Reads coco/stuffthingmaps/{train2017,val2017}, writes coco/stuffthingmaps_detectron2/{train2017,val2017}; with
--split 156-15 also {train2017,val2017}_{base,novel}, the 156 seen and the 15 unseen classes of the zero-shot split,
each counted from 0. With --background also {train2017,val2017}_background, for OVSegmentor's evaluation: everything
else is 0, and the classes follow it. Images without any labelled pixel get no file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from ovseg.data import prepare
from ovseg.errors import user_errors

SPLITS = ("train2017", "val2017")
TREE = """
coco/
  {train2017,val2017}/*.jpg
  stuffthingmaps/{train2017,val2017}/*.png
"""


def conversions(args: argparse.Namespace) -> Iterator[prepare.Conversion]:
    variants = {"": "coco_stuff_171"}
    if args.split:
        variants |= {"_base": "coco_stuff_156_seen", "_novel": "coco_stuff_15_unseen"}
    if args.background:
        variants |= {"_background": "coco_stuff_172"}
    id_maps = {variant: prepare.class_table(name, 182, offset=-1, void=255) for variant, name in variants.items()}
    sources = {split: args.root / "coco/stuffthingmaps" / split for split in SPLITS}
    for split in prepare.find_splits(sources, args.splits):
        items = [prepare.Item(name, (path,)) for name, path in prepare.find_files(sources[split], ".png").items()]
        outputs = [
            prepare.label_output(
                args.root / f"coco/stuffthingmaps_detectron2/{split}{variant}", id_map, keep_empty=False
            )
            for variant, id_map in id_maps.items()
        ]
        expected = prepare.expected_files(f"coco/stuffthingmaps/{split}", len(items))
        yield prepare.Conversion(f"COCO-Stuff {split}", items, prepare.read_labels_of, outputs, expected)


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    parser = prepare.parser(__doc__, TREE, SPLITS)
    parser.add_argument("--split", choices=["156-15"], help="also the labels of seen and of unseen classes alone")
    parser.add_argument("--background", action="store_true", help="also labels in which background is a class, 0")
    return prepare.run(parser.parse_args(argv), "coco_stuff", TREE, conversions)


if __name__ == "__main__":
    with user_errors():
        sys.exit(main())
