"""convert_dataset/convert_coco_object.py on the miniature: both outputs, from either layout, twice."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovseg.errors import OvsegError
from tests.scripts import load_script

COCO = Path(__file__).parent / "miniatures/coco/coco"
GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)  # specification, section 9
command = load_script("convert_dataset/convert_coco_object.py")


def expected(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """COCO-Object's and COCO-Stuff's labels, as the specification says."""
    table = np.zeros(256, np.uint8)
    kept = [value for value in range(182) if value not in GAPS]
    table[kept] = np.arange(1, 172)
    return np.where(raw > 90, 0, table[raw]), table[raw]


def check(source: Path, target: Path) -> None:
    for split, name in (("train2017", "000000000009"), ("val2017", "000000000139"), ("val2017", "000000000285")):
        raw = np.asarray(Image.open(COCO / "stuffthingmaps" / split / f"{name}.png"))
        for ending, labels in zip(("_cocoobject", ""), expected(raw), strict=True):
            made = target / f"annotations/{split}{ending}/{name}_instanceTrainIds.png"
            assert np.array_equal(np.asarray(Image.open(made)), labels)


def test_another_folder_with_copies_of_the_images(tmp_path):
    assert command.main([str(COCO), "-o", str(tmp_path / "out"), "--nproc", "2"]) == 0
    check(COCO, tmp_path / "out")
    images = sorted(path.name for path in (tmp_path / "out/images/val2017").glob("*.jpg"))
    assert images == sorted(path.name for path in (COCO / "val2017").glob("*.jpg"))


def test_the_same_folder_twice(tmp_path):
    shutil.copytree(COCO / "stuffthingmaps", tmp_path / "annotations")
    for _ in range(2):
        assert command.main([str(tmp_path)]) == 0
    check(tmp_path, tmp_path)
    assert len(list(tmp_path.glob("annotations/val2017/*_instanceTrainIds.png"))) == 2
    assert not (tmp_path / "images").exists()


def test_a_folder_without_labels(tmp_path):
    with pytest.raises(OvsegError, match=r"neither annotations/train2017 nor .*unpack"):
        command.main([str(tmp_path)])
