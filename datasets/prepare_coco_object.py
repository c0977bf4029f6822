#!/usr/bin/env python3
"""Convert COCO-Object: things -> 1..80, everything else -> 0 (background); no pixel is ignored.

python datasets/prepare_coco_object.py [--archives val2017.zip stuffthingmaps_trainval2017.zip]
python datasets/prepare_coco_object.py --verify

Reads coco/stuffthingmaps/{train2017,val2017}, writes coco/coco_object/{train2017,val2017}, named as the images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from ovseg.data import prepare
from ovseg.errors import user_errors

SPLITS = ("train2017", "val2017")
GROUPVIT_SUFFIX = "_instanceTrainIds.png"
TREE = """
coco/
  {train2017,val2017}/*.jpg
  stuffthingmaps/{train2017,val2017}/*.png
"""


def conversions(args: argparse.Namespace) -> Iterator[prepare.Conversion]:
    id_map = prepare.class_table("coco_object_80", 182, offset=-1, void=255)
    suffix = GROUPVIT_SUFFIX if args.groupvit_names else ".png"
    sources = {split: args.root / "coco/stuffthingmaps" / split for split in SPLITS}
    for split in prepare.find_splits(sources, args.splits):
        items = [prepare.Item(name, (path,)) for name, path in prepare.find_files(sources[split], ".png").items()]
        folder = args.root / ("coco/coco_object_groupvit" if args.groupvit_names else "coco/coco_object") / split
        output = prepare.label_output(folder, id_map, suffix)
        expected = prepare.expected_files(f"coco/stuffthingmaps/{split}", len(items))
        yield prepare.Conversion(f"COCO-Object {split}", items, prepare.read_labels_of, [output], expected)


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    parser = prepare.parser(__doc__, TREE, SPLITS)
    parser.add_argument(
        "--groupvit-names",
        action="store_true",
        help=f"for GroupViT's code: coco/coco_object_groupvit/{{train2017,val2017}}/*{GROUPVIT_SUFFIX} instead",
    )
    return prepare.run(parser.parse_args(argv), "coco_object", TREE, conversions)


if __name__ == "__main__":
    with user_errors():
        sys.exit(main())
