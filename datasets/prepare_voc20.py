"""PASCAL VOC 20: labels 1..20 -> 0..19, background and border -> 255.

Reads the names in VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt and their labels in SegmentationClassAug (else
SegmentationClass), writes annotations_detectron2/val. Images without any of the 20 objects get no file.
"""

from __future__ import annotations

from pathlib import Path

from ovseg.data import prepare
from ovseg.errors import OvsegError, user_errors


def main(root: Path, workers: int) -> None:
    """Convert the validation split."""
    base = root / "VOCdevkit" / "VOC2012"
    table = prepare.class_table("pascal_voc_20", 256, ignore_label=255)

    def convert(name: str) -> bool:
        candidates = [base / folder / f"{name}.png" for folder in ("SegmentationClassAug", "SegmentationClass")]
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            raise OvsegError(f"labels of {name} are missing: neither {candidates[0]} nor {candidates[1]} is there")
        labels = prepare.look_up(table, prepare.raw_labels(path), path)
        if (labels == 255).all():
            return False
        prepare.write_labels(base / "annotations_detectron2" / "val" / path.name, labels)
        return True

    names = prepare.read_names(base / "ImageSets" / "Segmentation" / "val.txt")
    prepare.convert_all("PASCAL VOC 20 val", convert, names, workers, expected=1449)


if __name__ == "__main__":
    with user_errors():
        main(**vars(prepare.parse_arguments(__doc__)))
