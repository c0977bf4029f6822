"""PASCAL Context 59 and 459 at once, from the same .mat files.

Reads the names in VOCdevkit/VOC2010/pascalcontext_val.txt and their labels in trainval/<name>.mat, writes
annotations_detectron2/pc59_val (png, unlabeled 255) and pc459_val (16-bit tif, unlabeled 65535).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import loadmat

from ovseg.data import prepare
from ovseg.errors import OvsegError, user_errors


def label_map(path: Path) -> np.ndarray:
    """(H,W) uint16 values 0..459 of a PASCAL Context annotation."""
    try:
        return loadmat(path, variable_names=["LabelMap"])["LabelMap"]
    except FileNotFoundError as error:
        raise OvsegError(f"{path} is missing: unpack the PASCAL Context annotations there") from error
    except Exception as error:  # scipy raises many kinds on damaged files
        raise OvsegError(f"{path} is no PASCAL Context annotation ({error}): unpack its archive again") from error


def main(root: Path, workers: int) -> None:
    """Convert the validation split."""
    base = root / "VOCdevkit" / "VOC2010"
    table_59 = prepare.class_table("pascal_context_59", 460, ignore_label=255)
    table_459 = prepare.class_table("pascal_context_459", 460, ignore_label=65535)

    def convert(name: str) -> bool:
        path = base / "trainval" / f"{name}.mat"
        raw = label_map(path)
        annotations = base / "annotations_detectron2"
        prepare.write_labels(annotations / "pc59_val" / f"{name}.png", prepare.look_up(table_59, raw, path))
        prepare.write_labels(annotations / "pc459_val" / f"{name}.tif", prepare.look_up(table_459, raw, path))
        return True

    names = prepare.read_names(base / "pascalcontext_val.txt")
    prepare.convert_all("PASCAL Context 59 and 459 val", convert, names, workers, expected=5104)


if __name__ == "__main__":
    with user_errors():
        main(**vars(prepare.parse_arguments(__doc__)))
