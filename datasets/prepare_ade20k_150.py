"""ADE20K-150: labels 1..150 -> 0..149, unlabeled -> 255.

Reads ADEChallengeData2016/annotations/{validation,training}, writes annotations_detectron2/ beside it; training only
if it is there.
"""

from __future__ import annotations

from pathlib import Path

from ovseg.data import prepare
from ovseg.errors import user_errors

EXPECTED = {"validation": 2000, "training": 20210}


def main(root: Path, workers: int) -> None:
    """Convert the splits that are there; validation must be."""
    base = root / "ADEChallengeData2016"
    table = prepare.class_table("ade20k_150", 256, ignore_label=255)
    for split, expected in EXPECTED.items():
        source, destination = base / "annotations" / split, base / "annotations_detectron2" / split
        if split == "training" and not source.is_dir():
            continue

        def convert(path: Path, destination: Path = destination) -> bool:
            labels = prepare.look_up(table, prepare.raw_labels(path), path)
            prepare.write_labels(destination / path.name, labels)
            return True

        prepare.convert_all(f"ADE20K-150 {split}", convert, prepare.find_files(source, "*.png"), workers, expected)


if __name__ == "__main__":
    with user_errors():
        main(**vars(prepare.parse_arguments(__doc__)))
