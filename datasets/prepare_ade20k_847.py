"""ADE20K-847 (ADE20K_2021_17_01), validation: images and 16-bit labels, the shorter side at most 512 pixels.

Reads ADE20K_2021_17_01/images/ADE/validation (its folders too), writes images_detectron2/validation/*.jpg and
annotations_detectron2/validation/*.tif. The index pickle is not needed.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ovseg.data import prepare
from ovseg.errors import OvsegError, user_errors
from ovseg.files import atomic_path
from ovseg.images import read_image

SHORTEST_SIDE = 512  # pixels


def object_ids(path: Path) -> np.ndarray:
    """(H,W) int64 object numbers of a ``_seg.png``: floor(R / 10) * 256 + G."""
    raw = prepare.raw_labels(path)
    if raw.ndim != 3 or raw.shape[2] < 3:
        raise OvsegError(f"{path} has shape {raw.shape}: expected an RGB image")
    return raw[:, :, 0].astype(np.int64) // 10 * 256 + raw[:, :, 1]


def output_size(height: int, width: int) -> tuple[int, int]:
    """Height and width after bringing the shorter side to :data:`SHORTEST_SIDE` if it is longer."""
    shorter = min(height, width)
    if shorter <= SHORTEST_SIDE:
        return height, width
    longer = round(max(height, width) / shorter * SHORTEST_SIDE)
    return (SHORTEST_SIDE, longer) if height <= width else (longer, SHORTEST_SIDE)


def main(root: Path, workers: int) -> None:
    """Convert the validation split."""
    base = root / "ADE20K_2021_17_01"
    table = prepare.class_table("ade20k_847", 26 * 256, ignore_label=65535)

    def convert(path: Path) -> bool:
        label_file = path.with_name(f"{path.stem}_seg.png")
        labels = prepare.look_up(table, object_ids(label_file), label_file)
        image = read_image(path)
        if image.shape[:2] != labels.shape:
            raise OvsegError(f"{path} and {label_file} differ in size: unpack the archive again")
        height, width = output_size(*labels.shape)
        image_file = base / "images_detectron2" / "validation" / path.name
        if (height, width) == labels.shape:
            with atomic_path(image_file) as temporary:
                temporary.write_bytes(path.read_bytes())
        else:
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
            labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
            with atomic_path(image_file) as temporary:
                Image.fromarray(image).save(temporary, quality=95)
        prepare.write_labels(base / "annotations_detectron2" / "validation" / f"{path.stem}.tif", labels)
        return True

    paths = prepare.find_files(base / "images" / "ADE" / "validation", "**/ADE_val_*.jpg")
    prepare.convert_all("ADE20K-847 validation", convert, paths, workers, expected=2000)


if __name__ == "__main__":
    with user_errors():
        main(**vars(prepare.parse_arguments(__doc__)))
