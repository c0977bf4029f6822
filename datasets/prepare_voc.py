#!/usr/bin/env python3
"""Convert PASCAL VOC 2012: labels of 20 classes (background ignored), 20b (background last) and 21 (background first).

python datasets/prepare_voc.py [--archives VOCtrainval_11-May-2012.tar SegmentationClassAug.zip]
python datasets/prepare_voc.py --classes 20 --splits val         all that OVSeg and SCAN need
python datasets/prepare_voc.py --verify

Reads the names in ImageSets/Segmentation/{train,val}.txt and the labels in SegmentationClassAug, else SegmentationClass
(with equal labels); with SegmentationClassAug also train_aug, the training set with SBD's masks. Writes
annotations_detectron2 (20), annotations_detectron2_bg (20b) and annotations_detectron2_21, each with {train,val} and
train_aug. The border (255) is always ignored. In the labels of 20 classes, images without any object get no file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ovseg.data import prepare
from ovseg.data.prepare.facts import VOC_TRAIN_AUG_LISTS
from ovseg.errors import OvsegError, user_errors

SPLITS = ("val", "train", "train_aug")
VARIANTS = {"20": "annotations_detectron2", "20b": "annotations_detectron2_bg", "21": "annotations_detectron2_21"}
TREE = """
VOCdevkit/VOC2012/
  JPEGImages/*.jpg
  ImageSets/Segmentation/{train,val}.txt
  SegmentationClass/*.png
  SegmentationClassAug/*.png                       only for train_aug
  ImageSets/SegmentationAug/train_aug.txt          optional: else, all of SegmentationClassAug that are not in val.txt
"""


def names_of(base: Path, split: str) -> list[str]:
    """Return the names of a split."""
    if split != "train_aug":
        return prepare.read_names(base / "ImageSets/Segmentation" / f"{split}.txt")
    for place in VOC_TRAIN_AUG_LISTS:
        if (base / "ImageSets" / place).is_file():
            return prepare.read_names(base / "ImageSets" / place)
    val = set(names_of(base, "val"))
    return [name for name in prepare.find_files(base / "SegmentationClassAug", ".png") if name not in val]


def find_items(base: Path, names: Sequence[str]) -> list[prepare.Item]:
    """Return the names with their label files."""
    folders = [base / "SegmentationClassAug", base / "SegmentationClass"]
    files = {}
    for folder in reversed(folders):
        if folder.is_dir():
            files |= prepare.find_files(folder, ".png")
    if not files:
        raise prepare.NothingFound(f"there is neither {folders[0]} nor {folders[1]}")
    if missing := [name for name in names if name not in files]:
        raise OvsegError(
            f"labels of {missing[0]} are missing ({len(missing)} of {len(names)} names): {missing[0]}.png is neither "
            f"in {folders[0]} nor in {folders[1]}"
        )
    return [prepare.Item(name, (files[name],)) for name in names]


def conversions(args: argparse.Namespace) -> Iterator[prepare.Conversion]:
    base = args.root / "VOCdevkit/VOC2012"
    lists = {split: base / "ImageSets/Segmentation" / f"{split}.txt" for split in ("val", "train")}
    sources = {**lists, "train_aug": base / "SegmentationClassAug"}
    if not args.splits:
        prepare.find_splits(lists, None)  # SegmentationClassAug alone is not a data set
    for split in prepare.find_splits(sources, args.splits):
        outputs = [
            prepare.label_output(
                base / VARIANTS[variant] / split,
                prepare.class_table(f"pascal_voc_{variant}", 21, void=255),
                keep_empty=variant != "20",
            )
            for variant in args.classes
        ]
        items = find_items(base, names_of(base, split))
        expected = prepare.expected_files(f"VOCdevkit/VOC2012/annotations_detectron2/{split}", len(items))
        yield prepare.Conversion(f"PASCAL VOC {split}", items, prepare.read_labels_of, outputs, expected)


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    parser = prepare.parser(__doc__, TREE, SPLITS)
    parser.add_argument("--classes", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    return prepare.run(parser.parse_args(argv), "voc", TREE, conversions)


if __name__ == "__main__":
    with user_errors():
        sys.exit(main())
