#!/usr/bin/env python3
"""Convert ADE20K-847 (ADE20K_2021_17_01): images and 16-bit labels, the shorter side at most 512 pixels.

python datasets/prepare_ade20k_847.py [--splits training validation]
python datasets/prepare_ade20k_847.py --verify

Reads ADE20K_2021_17_01/images/ADE/{training,validation} (and its folders), writes images_detectron2/*/*.jpg and
annotations_detectron2/*/*.tif. The list of files is that of the folders, or of index_ade20k.pkl with --index or without
these folders.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ovseg.data import prepare
from ovseg.data.prepare.raw_formats import read_index
from ovseg.errors import OvsegError, user_errors
from ovseg.io.images import read_image

SHORTEST_SIDE = 512  # pixels
SPLITS = ("training", "validation")
TREE = """
ADE20K_2021_17_01/
  index_ade20k.pkl                                        only for --index
  images/ADE/{training,validation}/<group>/<scene>/ADE_*.jpg
  images/ADE/{training,validation}/<group>/<scene>/ADE_*_seg.png
"""


def object_ids(path: Path) -> np.ndarray:
    """Return the object numbers of a ``_seg.png``, floor(R / 10) * 256 + G; int64 (H, W)."""
    raw = prepare.raw_labels(path)
    if raw.ndim != 3 or raw.shape[2] < 3:
        raise prepare.BadFile(f"{path} has shape {raw.shape}: expected an RGB image")
    return raw[:, :, 0].astype(np.int64) // 10 * 256 + raw[:, :, 1]


def output_size(height: int, width: int) -> tuple[int, int]:
    """Return height and width after reducing the shorter side to :data:`SHORTEST_SIDE` if it is longer."""
    shorter = min(height, width)
    if shorter <= SHORTEST_SIDE:
        return height, width
    longer = round(max(height, width) / shorter * SHORTEST_SIDE)
    return (SHORTEST_SIDE, longer) if height <= width else (longer, SHORTEST_SIDE)


def resize(array: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """Resize by one of OpenCV's methods."""
    import cv2  # imports slowly, and --help does not need it

    return cv2.resize(array, (width, height), interpolation=getattr(cv2, interpolation))


def image_of(item: prepare.Item, ids: np.ndarray) -> np.ndarray | bytes:
    """Return the image of object ids (H, W), resized; the bytes of the file if it has the right size."""
    path = item.sources[1]
    try:
        image = read_image(path)
    except OvsegError as error:
        raise prepare.BadFile(str(error)) from error
    if image.shape[:2] != ids.shape:
        raise prepare.BadFile(f"{path} and {item.sources[0]} differ in size: unpack the archive again")
    height, width = output_size(*ids.shape)
    if (height, width) == ids.shape:
        return path.read_bytes()
    return resize(image, height, width, "INTER_LINEAR")


def find_items(root: Path, split: str, from_index: bool) -> list[prepare.Item]:
    """Return the annotations of a split, named after their images."""
    base = root / "ADE20K_2021_17_01"
    folder, index = base / "images" / "ADE" / split, base / "index_ade20k.pkl"
    if from_index or (not folder.is_dir() and index.is_file()):
        images = [root / path for path in read_index(index) if is_in(split, path.name)]
    else:
        labels = prepare.find_files(folder, "_seg.png", recursive=True).values()
        images = [path.with_name(path.name.replace("_seg.png", ".jpg")) for path in labels]
    items = {path.stem: prepare.Item(path.stem, (path.with_name(f"{path.stem}_seg.png"), path)) for path in images}
    if not items:
        raise prepare.NothingFound(f"{index} lists no {split} image")
    return [items[name] for name in sorted(items)]


def is_in(split: str, name: str) -> bool:
    """Return whether an image belongs to a split: ADE_val_00000001.jpg to validation, all others to training."""
    return (name.split("_")[1:2] == ["val"]) == (split == "validation")


def conversions(args: argparse.Namespace) -> Iterator[prepare.Conversion]:
    base = args.root / "ADE20K_2021_17_01"
    id_map = prepare.class_table("ade20k_847", 3689)

    def labels_of(item: prepare.Item, ids: np.ndarray) -> np.ndarray:
        labels = prepare.look_up(id_map, ids, item.sources[0])
        return resize(labels, *output_size(*labels.shape), "INTER_NEAREST")

    for split in args.splits or ["validation"]:
        outputs = [
            prepare.Output(base / "images_detectron2" / split, image_of, ".jpg", "512"),
            prepare.Output(base / "annotations_detectron2" / split, labels_of, ".tif", f"{id_map.recipe} 512"),
        ]
        items = find_items(args.root, split, args.index)
        expected = prepare.expected_files(f"ADE20K_2021_17_01/annotations_detectron2/{split}", len(items))
        yield prepare.Conversion(
            f"ADE20K-847 {split}", items, lambda item: object_ids(item.sources[0]), outputs, expected
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    parser = prepare.parser(__doc__, TREE, SPLITS, default_splits="validation")
    parser.add_argument("--index", action="store_true", help="take the list of files from index_ade20k.pkl")
    return prepare.run(parser.parse_args(argv), "ade20k_847", TREE, conversions)


if __name__ == "__main__":
    with user_errors():
        sys.exit(main())
