"""COCO-Stuff: raw values (category id - 1) -> 0..170, everything else -> 255.

Reads coco/stuffthingmaps/{train2017,val2017}, writes coco/stuffthingmaps_detectron2/; val2017 only if it is there.
Images without any labelled pixel get no file.
"""

from __future__ import annotations

from pathlib import Path

from ovseg.data import prepare
from ovseg.errors import user_errors

EXPECTED = {"train2017": 118_287, "val2017": 5_000}


def main(root: Path, workers: int) -> None:
    """Convert the splits that are there; train2017 must be."""
    table = prepare.class_table("coco_stuff_171", 256, ignore_label=255, offset=-1)
    for split, expected in EXPECTED.items():
        source, destination = root / "coco/stuffthingmaps" / split, root / "coco/stuffthingmaps_detectron2" / split
        if split == "val2017" and not source.is_dir():
            continue

        def convert(path: Path, destination: Path = destination) -> bool:
            labels = prepare.look_up(table, prepare.raw_labels(path), path)
            if (labels == 255).all():
                return False
            prepare.write_labels(destination / path.name, labels)
            return True

        prepare.convert_all(f"COCO-Stuff {split}", convert, prepare.find_files(source, "*.png"), workers, expected)


if __name__ == "__main__":
    with user_errors():
        main(**vars(prepare.parse_arguments(__doc__)))
