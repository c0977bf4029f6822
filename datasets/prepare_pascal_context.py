#!/usr/bin/env python3
"""Convert PASCAL Context: labels of 59 and of 459 classes, from the same .mat files.

python datasets/prepare_pascal_context.py [--archives VOCtrainval_03-May-2010.tar trainval.tar.gz]
python datasets/prepare_pascal_context.py --classes 59 459 59-alphabetical 60
python datasets/prepare_pascal_context.py --detail --classes 59-alphabetical
python datasets/prepare_pascal_context.py --verify

Reads VOCdevkit/VOC2010/trainval/<name>.mat, or with --detail trainval_merged.json, which has the 59 classes only.
Writes to annotations_detectron2: pc59_{val,train} (png, OVSeg's order, unlabeled 255), pc459_{val,train} (16-bit tif,
unlabeled 65535), pc59_alphabetical_{val,train} (the order of SAN, CAT-Seg and FC-CLIP), pc60_{val,train} (the same
after background 0, mmsegmentation's).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ovseg.data import prepare
from ovseg.data.prepare.facts import CONTEXT_LISTS
from ovseg.data.prepare.raw_formats import FOLDER, check_orders, label_map, read_detail
from ovseg.errors import OvsegError, user_errors

SPLITS = ("val", "train")
VARIANTS = {  # folder without split, label set
    "59": ("pc59", "pascal_context_59"),
    "459": ("pc459", "pascal_context_459"),
    "59-alphabetical": ("pc59_alphabetical", "pascal_context_59_alphabetical"),
    "60": ("pc60", "pascal_context_60"),
}
TREE = """
VOCdevkit/VOC2010/
  JPEGImages/*.jpg
  trainval/*.mat
  pascalcontext_val.txt                            or ImageSets/SegmentationContext/val.txt
  ImageSets/SegmentationContext/train.txt          optional: else, all that are not in the list of val
  trainval_merged.json                             only for --detail
"""


def find_items(base: Path, detail: bool) -> dict[str, prepare.Item]:
    """Return the annotations of both splits, by name."""
    if detail:
        path = base / "trainval_merged.json"
        return {name: prepare.Item(name, (path,), image) for name, image in read_detail(path).items()}
    files = prepare.find_files(base / "trainval", ".mat")
    return {name: prepare.Item(name, (path,)) for name, path in files.items()}


def names_of(base: Path, split: str, items: dict[str, prepare.Item]) -> list[str]:
    """Return the names of a split: by its list, else by --detail; else, for train, all that are not in val."""
    for place in CONTEXT_LISTS[split]:
        if (base / place).is_file():
            return prepare.read_names(base / place)
    if all(item.extra for item in items.values()):
        return [name for name, item in items.items() if item.extra.split == split]
    if split == "val":
        raise prepare.NothingFound(f"list {base / CONTEXT_LISTS['val'][0]} is missing")
    val = set(names_of(base, "val", items))
    return [name for name in items if name not in val]


def read(item: prepare.Item) -> np.ndarray:
    """Return values 0..459, uint16 (H, W)."""
    return item.extra.draw(item.sources[0]) if item.extra else label_map(item.sources[0])


def conversions(args: argparse.Namespace) -> Iterator[prepare.Conversion]:
    variants = args.classes or (["59"] if args.detail else ["59", "459"])
    if args.detail and "459" in variants:
        raise OvsegError("trainval_merged.json lacks the 459 classes: give --classes 59, or leave out --detail")
    base = args.root / FOLDER
    items = find_items(base, args.detail)
    for split in args.splits or SPLITS:
        names = names_of(base, split, items)
        if missing := [name for name in names if name not in items]:
            raise OvsegError(
                f"labels of {missing[0]} are missing ({len(missing)} of {len(names)} {split} names): unpack the "
                f"annotations in {base} again"
            )
        outputs = []
        for folder, classes in (VARIANTS[variant] for variant in variants):
            id_map, suffix = prepare.class_table(classes, 460), ".tif" if folder == "pc459" else ".png"
            place = base / "annotations_detectron2" / f"{folder}_{split}"
            outputs.append(prepare.label_output(place, id_map, suffix, made_by=" detail" if args.detail else ""))
        expected = prepare.expected_files(f"{FOLDER}/annotations_detectron2/pc59_{split}", len(names))
        if names:
            yield prepare.Conversion(f"PASCAL Context {split}", [items[n] for n in names], read, outputs, expected)


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    parser = prepare.parser(__doc__, TREE, SPLITS)
    parser.add_argument("--classes", nargs="+", choices=VARIANTS, help="default: 59 459, and 59 alone with --detail")
    parser.add_argument("--detail", action="store_true", help="take the labels from trainval_merged.json")
    return prepare.run(parser.parse_args(argv), "pascal_context", TREE, conversions, [check_orders])


if __name__ == "__main__":
    with user_errors():
        sys.exit(main())
