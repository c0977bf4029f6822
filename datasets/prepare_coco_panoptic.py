#!/usr/bin/env python3
"""Convert COCO panoptic: semantic labels of 133 classes, and PanopticFPN's targets (things 0, stuff 1..53); void 255.

python datasets/prepare_coco_panoptic.py [--archives val2017.zip panoptic_annotations_trainval2017.zip]
python datasets/prepare_coco_panoptic.py --verify

Reads coco/annotations/panoptic_{train,val}2017.json and coco/panoptic_{train,val}2017/*.png, writes
coco/panoptic_semseg_{train,val}2017 and coco/panoptic_stuff_{train,val}2017.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ovseg.data import prepare
from ovseg.errors import OvsegError, user_errors
from ovseg.vocabulary import label_set

SPLITS = ("train2017", "val2017")
NUM_THINGS = 80  # things come before stuff
VOID = 255
TREE = """
coco/
  {train2017,val2017}/*.jpg
  annotations/panoptic_{train2017,val2017}.json
  panoptic_{train2017,val2017}/*.png
"""


def read_annotations(path: Path) -> list[tuple[str, dict[int, int]]]:
    """Return (name of the PNG, category by segment id) of each annotation of a panoptic JSON.

    Raises:
        OvsegError: the file is damaged or of another format.
    """
    try:
        return [
            (
                Path(entry["file_name"]).name,
                {int(part["id"]): int(part["category_id"]) for part in entry["segments_info"]},
            )
            for entry in json.loads(path.read_bytes())["annotations"]
        ]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise OvsegError(
            f"{path} is not COCO's panoptic JSON ({type(error).__name__}: {error}): unpack its archive again"
        ) from error


def class_map(item: prepare.Item, class_of_category: dict[int, int]) -> np.ndarray:
    """Return classes 0..132 and 255, uint8 (H, W), of a PNG with segment ids R + 256 G + 65536 B."""
    path = item.sources[0]
    rgb = prepare.raw_labels(path)
    if rgb.ndim != 3 or rgb.shape[2] < 3:
        raise prepare.BadFile(f"{path} has shape {rgb.shape}: expected an RGB image")
    # one number for each pixel, then each distinct number once
    ids = rgb[:, :, 0] + rgb[:, :, 1] * np.int32(256) + rgb[:, :, 2] * np.int32(65536)
    present, inverse = np.unique(ids, return_inverse=True)
    if strange := set(present.tolist()) - {0} - item.extra.keys():
        raise prepare.BadFile(
            f"{path} has the segment {min(strange)}, which {item.sources[1]} does not list: unpack both again"
        )
    categories = [item.extra.get(number) for number in present.tolist()]
    if strange := set(categories) - {None} - class_of_category.keys():
        raise prepare.BadFile(
            f"{item.sources[1]} gives {path.name} the category {min(strange)}, which COCO lacks: unpack it again"
        )
    classes = [VOID if category is None else class_of_category[category] for category in categories]
    return np.array(classes, dtype=np.uint8)[inverse].reshape(ids.shape)


def stuff_target(item: prepare.Item, classes: np.ndarray) -> np.ndarray:
    """Return the target of classes: things 0, stuff 1..53 in the order of the list, void 255; uint8 (H, W) both."""
    table = np.full(256, VOID, dtype=np.uint8)
    table[:NUM_THINGS] = 0
    table[NUM_THINGS : len(label_set("coco_panoptic_133"))] = np.arange(1, 54)
    return table[classes]


def conversions(args: argparse.Namespace) -> Iterator[prepare.Conversion]:
    coco = args.root / "coco"
    class_of_category = {number: index for index, number in enumerate(label_set("coco_panoptic_133").dataset_ids)}
    read = functools.partial(class_map, class_of_category=class_of_category)
    sources = {split: coco / f"annotations/panoptic_{split}.json" for split in SPLITS}
    for split in prepare.find_splits(sources, args.splits):
        images = prepare.find_files(coco / f"panoptic_{split}", ".png")
        items = [
            prepare.Item(Path(name).stem, (images[Path(name).stem], sources[split]), segments)
            for name, segments in read_annotations(sources[split])
            if Path(name).stem in images
        ]
        if not items:
            raise prepare.NothingFound(f"no PNG in {coco}/panoptic_{split} is named in {sources[split]}")
        outputs = [
            prepare.Output(coco / f"panoptic_semseg_{split}", lambda item, classes: classes, ".png", "133"),
            prepare.Output(coco / f"panoptic_stuff_{split}", stuff_target, ".png", "54"),
        ]
        expected = prepare.expected_files(f"coco/panoptic_{split}", len(items))
        yield prepare.Conversion(f"COCO panoptic {split}", items, read, outputs, expected)


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    args = prepare.parser(__doc__, TREE, SPLITS).parse_args(argv)
    return prepare.run(args, "coco_panoptic", TREE, conversions)


if __name__ == "__main__":
    with user_errors():
        sys.exit(main())
