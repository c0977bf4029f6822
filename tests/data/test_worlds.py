"""Worlds: imported when something asks for them, and not before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ovseg.data import worlds
from ovseg.errors import OvsegError

CODE = """
import sys
import ovseg
from ovseg.config import load_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from ovseg.data import catalog
load_cfg("configs/scan_vitB.yaml")
catalog.register_on_demand("ade20k_sem_seg_val")
assert not any(name.startswith("ovseg.toy") for name in sys.modules)
assert not any(name.startswith("toy_") for name in DatasetCatalog.list())
catalog.check_prepared("toy_sem_seg_tune")
assert len(MetadataCatalog.get("toy_sem_seg_val").stuff_classes) == 90
assert "toy_sem_seg_train" in DatasetCatalog.list()
"""


def test_nobody_imports_the_toy_world_who_does_not_ask_for_it():
    subprocess.run([sys.executable, "-c", CODE], check=True, cwd=Path(__file__).parents[2])


def test_names_of_worlds():
    from ovseg.toy.classes import BASE_CLASSES, CLASS_NAMES

    for name in ("toy", "toy:train", "toy_base", "toy_sem_seg_val"):
        assert worlds.find_world(name).name == "toy"
    for name in ("toys", "toyota_sem_seg", "train", "", "./toy", "ade20k_sem_seg_val"):
        assert worlds.find_world(name) is None and worlds.world_words(name) is None
    assert worlds.world_words("toy") == CLASS_NAMES and worlds.world_words("toy_base") == BASE_CLASSES
    assert worlds.world_words("toy_novel") is None
    assert worlds.is_split("toy:train") and not worlds.is_split("toy") and not worlds.is_split("C:toy")


def test_images_and_masks_of_a_split(tmp_path, monkeypatch):
    monkeypatch.setenv("OVSEG_CACHE", str(tmp_path))
    (record,) = worlds.split_records("toy:tune", 1)
    regions = worlds.find_world("toy").regions(record)
    shape = (record["height"], record["width"])
    assert all(mask.dtype == bool and mask.shape == shape for mask, _ in regions)
    assert sum(mask.astype(int) for mask, _ in regions).max() == 1
    assert [label for _, label in regions][: len(record["things"])] == [t["category_id"] for t in record["things"]]
    with pytest.raises(OvsegError, match='no toy split "nowhere"'):
        worlds.split_folder("toy:nowhere")
