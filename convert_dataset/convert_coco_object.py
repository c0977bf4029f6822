#!/usr/bin/env python3
"""Convert COCO-Stuff's labels for OVSegmentor: COCO-Object (81 classes) and COCO-Stuff (172), background 0 in both.

python convert_dataset/convert_coco_object.py COCO -o OUT [--nproc 16]

Reads COCO/annotations/{train2017,val2017}/*.png, the released labels (or COCO/stuffthingmaps/...), and writes
OUT/annotations/{train2017,val2017}_cocoobject/*_instanceTrainIds.png (80 things -> 1..80, all else 0) and
OUT/annotations/{train2017,val2017}/*_instanceTrainIds.png (171 classes -> 1..171, unlabeled 0). Images are copied to
OUT/images if OUT is another folder. The same labels as data sets of ovseg: datasets/prepare_coco_object.py and
datasets/prepare_coco_stuff.py --background.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ovseg.data import prepare
from ovseg.errors import OvsegError, user_errors
from ovseg.io.files import atomic_path, locked_folder

SPLITS = ("train2017", "val2017")
SUFFIX = "_instanceTrainIds.png"
OUTPUTS = {"_cocoobject": "coco_object_80", "": "coco_stuff_172"}


def conversions(source: Path, target: Path) -> Iterator[prepare.Conversion]:
    """Yield the conversion of each split that is there.

    Raises:
        OvsegError: there are no labels.
    """
    id_maps = {ending: prepare.class_table(name, 182, offset=-1, void=255) for ending, name in OUTPUTS.items()}
    for split in SPLITS:
        if (labels := _folder(source, "annotations", "stuffthingmaps", split)) is None:
            continue
        raw = {name: path for name, path in prepare.find_files(labels, ".png").items() if not name.endswith("TrainIds")}
        items = [prepare.Item(name, (path,)) for name, path in raw.items()]
        outputs = [
            prepare.label_output(target / f"annotations/{split}{ending}", id_map, SUFFIX)
            for ending, id_map in id_maps.items()
        ]
        expected = prepare.expected_files(f"coco/stuffthingmaps/{split}", len(items))
        yield prepare.Conversion(
            f"COCO-Object and COCO-Stuff {split}", items, prepare.read_labels_of, outputs, expected
        )


def copy_images(source: Path, target: Path) -> int:
    """Copy the images of both splits that the target lacks, and return their number."""
    copied = 0
    for split in SPLITS:
        if (images := _folder(source, "images", "", split)) is None:
            continue
        there = target / "images" / split
        there.mkdir(parents=True, exist_ok=True)
        for name, image in prepare.find_files(images, ".jpg").items():
            place = there / f"{name}.jpg"
            if not place.is_file() or place.stat().st_size != image.stat().st_size:
                with atomic_path(place) as temporary:
                    shutil.copyfile(image, temporary)
                copied += 1
    return copied


def _folder(source: Path, usual: str, other: str, split: str) -> Path | None:
    return next((path for name in (usual, other) if (path := source / name / split).is_dir()), None)


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coco_path", type=Path, metavar="COCO", help="folder with annotations/{train2017,val2017}")
    parser.add_argument("-o", "--out_dir", type=Path, metavar="OUT", help="default: COCO")
    parser.add_argument("--nproc", type=int, default=1, help="threads (default: %(default)s)")
    args = parser.parse_args(argv)
    source, target = args.coco_path, args.out_dir or args.coco_path
    if not any(_folder(source, "annotations", "stuffthingmaps", split) for split in SPLITS):
        raise OvsegError(
            f"{source} has neither annotations/train2017 nor annotations/val2017 with COCO-Stuff's labels: unpack "
            "stuffthingmaps_trainval2017.zip in COCO/annotations"
        )
    target.mkdir(parents=True, exist_ok=True)
    with locked_folder(target, "choose another -o"):
        if source.resolve() != target.resolve():
            print(f"{copy_images(source, target)} images copied to {target / 'images'}")
        for conversion in conversions(source, target):
            prepare.convert(conversion, args.nproc)
    return 0


if __name__ == "__main__":
    with user_errors():
        sys.exit(main())
