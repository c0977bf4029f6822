from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from ovseg.data import catalog, prepare
from ovseg.errors import OvsegError
from tests.scripts import load_script

SCRIPTS = Path(__file__).parents[2] / "datasets"


def script(name: str) -> ModuleType:
    return load_script(f"datasets/{name}.py")


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def load(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def registered(name: str) -> catalog.SemSegDataset:
    return next(dataset for dataset in catalog.DATASETS if dataset.name == name)


def test_every_script_named_by_the_catalog_is_there_and_in_the_readme():
    readme = (SCRIPTS / "README.md").read_text(encoding="utf-8")
    named = {dataset.script for dataset in catalog.DATASETS if dataset.script}
    assert named == {f"datasets/{path.name}" for path in SCRIPTS.glob("prepare_*.py")}
    assert all(name in readme for name in named)
    assert not (SCRIPTS / "__init__.py").exists()  # `datasets` is another library's name


def test_ade20k_150(tmp_path, capsys):
    save(tmp_path / "ADEChallengeData2016/annotations/validation/a.png", np.array([[0, 1], [2, 150]], dtype=np.uint8))
    script("prepare_ade20k_150").main(tmp_path, 2)
    labels = load(tmp_path / registered("ade20k_sem_seg_val").labels / "a.png")
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, [[255, 0], [1, 149]])
    assert "1 label files written; ATTENTION: the complete data set has 2000 files" in capsys.readouterr().out


def test_coco_stuff(tmp_path, capsys):
    folder = tmp_path / "coco/stuffthingmaps/train2017"
    # values are category id - 1; 11, 25 and 28 belong to categories without masks
    save(folder / "a.png", np.array([[0, 10, 11, 12], [25, 89, 181, 255]], dtype=np.uint8))
    save(folder / "b.png", np.full((2, 2), 255, dtype=np.uint8))
    script("prepare_coco_stuff").main(tmp_path, 2)
    destination = tmp_path / registered("coco_2017_train_stuff_sem_seg").labels
    np.testing.assert_array_equal(load(destination / "a.png"), [[0, 10, 255, 11], [255, 79, 170, 255]])
    assert [path.name for path in destination.iterdir()] == ["a.png"]
    assert "1 left out" in capsys.readouterr().out


def test_voc20(tmp_path):
    base = tmp_path / "VOCdevkit/VOC2012"
    save(base / "SegmentationClassAug/a.png", np.array([[0, 1, 20, 255]], dtype=np.uint8))
    palette = Image.fromarray(np.array([[15, 0]], dtype=np.uint8), mode="P")
    palette.putpalette([200] * 768)
    (base / "SegmentationClass").mkdir()
    palette.save(base / "SegmentationClass/b.png")
    save(base / "SegmentationClassAug/c.png", np.zeros((2, 2), dtype=np.uint8))
    (base / "ImageSets/Segmentation").mkdir(parents=True)
    names = base / "ImageSets/Segmentation/val.txt"
    names.write_text("a\nb\nc\n")
    script("prepare_voc20").main(tmp_path, 1)
    destination = tmp_path / registered("pascalvoc20_sem_seg_val").labels
    np.testing.assert_array_equal(load(destination / "a.png"), [[255, 0, 19, 255]])
    np.testing.assert_array_equal(load(destination / "b.png"), [[14, 255]])
    assert not (destination / "c.png").exists()
    names.write_text("a\nmissing\n")
    with pytest.raises(OvsegError, match=r"labels of missing are missing.*SegmentationClassAug"):
        script("prepare_voc20").main(tmp_path, 1)


def test_pascal_context(tmp_path):
    base = tmp_path / "VOCdevkit/VOC2010"
    (base / "trainval").mkdir(parents=True)
    # 2 is aeroplane, 360 is sky: both among the 59 classes, as numbers 0 and 49
    savemat(base / "trainval/a.mat", {"LabelMap": np.array([[0, 1, 2], [23, 360, 459]], dtype=np.uint16)})
    (base / "pascalcontext_val.txt").write_text("a\n")
    script("prepare_pascal_context").main(tmp_path, 1)
    labels_59 = load(tmp_path / registered("pascal_context_59_sem_seg_val").labels / "a.png")
    labels_459 = load(tmp_path / registered("pascal_context_459_sem_seg_val").labels / "a.tif")
    np.testing.assert_array_equal(labels_59, [[255, 255, 0], [1, 49, 255]])
    np.testing.assert_array_equal(labels_459, [[65535, 0, 1], [22, 359, 458]])
    assert (labels_59.dtype, labels_459.dtype) == (np.uint8, np.uint16)
    (base / "trainval/a.mat").write_text("<html>")
    with pytest.raises(OvsegError, match=r"a\.mat is no PASCAL Context annotation"):
        script("prepare_pascal_context").main(tmp_path, 1)


def test_ade20k_847(tmp_path):
    def seg(ids: np.ndarray) -> np.ndarray:
        # instance number in blue, and the two last digits of red carry nothing
        return np.stack([ids // 256 * 10 + 3, ids % 256, np.full_like(ids, 9)], axis=2).astype(np.uint8)

    folder = tmp_path / "ADE20K_2021_17_01/images/ADE/validation/urban/street"
    ids = np.array([[2978, 312, 0], [1, 2420, 3687]])  # wall, building, nothing, unused, sky
    for name, object_ids in (("ADE_val_1", ids), ("ADE_val_2", np.full((520, 1040), 312))):
        save(folder / f"{name}_seg.png", seg(object_ids))
        save(folder / f"{name}.jpg", np.full((*object_ids.shape, 3), 77, dtype=np.uint8))
    script("prepare_ade20k_847").main(tmp_path, 2)
    dataset = registered("ade20k_full_sem_seg_val")
    labels = load(tmp_path / dataset.labels / "ADE_val_1.tif")
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels[:, :2], [[0, 1], [65535, 2]])
    assert labels[0, 2] == 65535
    assert load(tmp_path / dataset.images / "ADE_val_1.jpg").shape == (2, 3, 3)
    resized = load(tmp_path / dataset.labels / "ADE_val_2.tif")
    assert resized.shape == load(tmp_path / dataset.images / "ADE_val_2.jpg").shape[:2] == (512, 1024)
    assert (resized == 1).all()


@pytest.mark.parametrize(("size", "expected"), [((512, 900), (512, 900)), ((600, 513), (599, 512)), ((9, 4), (9, 4))])
def test_ade20k_847_sizes(size, expected):
    assert script("prepare_ade20k_847").output_size(*size) == expected


def test_damaged_and_strange_files_are_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"PNG")
    with pytest.raises(OvsegError, match=r"cannot read .*a\.png"):
        prepare.raw_labels(tmp_path / "a.png")
    table = prepare.class_table("pascal_voc_20", 22, 255)
    with pytest.raises(OvsegError, match=r"b\.png has shape \(2, 2, 3\)"):
        prepare.look_up(table, np.zeros((2, 2, 3), dtype=np.uint8), Path("b.png"))
    with pytest.raises(OvsegError, match=r"b\.png holds the value 77"):
        prepare.look_up(table, np.full((2, 2), 77, dtype=np.uint8), Path("b.png"))


def test_nothing_to_do_is_an_error_with_status_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare_ade20k_150.py", "--root", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPTS / "prepare_ade20k_150.py"), run_name="__main__")
    assert stop.value.code == 2
    assert re.match(r"error: folder .*annotations/validation is missing: unpack", capsys.readouterr().err)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OvsegError, match=r"no file in .*empty matches"):
        prepare.find_files(tmp_path / "empty", "*.png")
