"""The check of prepared data: every kind of fault is found, named, and told apart from what is only incomplete."""

from __future__ import annotations

import numpy as np
import pytest

from ovseg.data.benchmarks import DATASETS
from ovseg.data.file_list import file_list_checksum
from ovseg.data.prepare import facts
from ovseg.data.prepare.facts import CHECKSUMS, FOLDERS, Folder, Labels
from ovseg.data.prepare.stamps import NAME
from ovseg.data.prepare.verify import verify
from ovseg.vocabulary import label_set
from tests.data.prepared import RUNS, copy_miniature, load, prepare, save, script

ADE = "ADEChallengeData2016"
OUT = f"{ADE}/annotations_detectron2/validation"
CONTEXT = "VOCdevkit/VOC2010/annotations_detectron2"


@pytest.fixture
def ade(tmp_path):
    root = copy_miniature("ade20k_150", tmp_path)
    prepare("ade20k_150", root, "--splits", "validation")
    return root


def faults(root, name: str, capsys) -> str:
    """What --verify --partial prints; it must find something wrong."""
    capsys.readouterr()
    assert prepare(name, root, "--verify", "--partial") == 1
    printed = capsys.readouterr().out
    assert "verdict: WRONG" in printed
    return printed


def test_each_fault_is_named(ade, capsys):
    files = [ade / OUT / f"ADE_val_0000000{number}.png" for number in (1, 2, 3)]
    labels = load(files[0])
    labels[0, 0] = 150
    save(files[0], labels)
    files[1].write_bytes(b"")
    files[2].write_bytes(files[2].read_bytes()[:60])
    save(files[0].with_name("ADE_val_00000009.png"), labels[:5])  # no image
    save(files[0].with_name("ADE_val_00003000.png"), labels)  # not in the list
    save(ade / ADE / "images/validation/ADE_val_00000010.jpg", np.zeros((4, 4, 3), np.uint8))
    save(files[0].with_name("ADE_val_00000010.png"), np.zeros((4, 5), np.uint8))
    save(files[0].with_name("ADE_val_00000011.png"), np.zeros((4, 5, 3), np.uint8))
    save(files[0].with_name("ADE_val_00000012.png"), np.zeros((4, 5), np.uint16))
    (ade / OUT / ".ADE_val_00000001.999999999.tmp.png").write_bytes(b"x")
    printed = faults(ade, "ade20k_150", capsys)
    for name, what in (
        ("00000001.png", "holds 150, allowed are 0..149 and 255"),
        ("00000002.png", "is empty (0 bytes)"),
        ("00000003.png", "cannot read"),
        ("00000009.png", f"has no image in {ADE}/images/validation"),
        ("00003000.png", "is not in the list of the data set"),
        ("00000010.png", "has 5 x 4 pixels, its image 4 x 4"),
        ("00000011.png", "has shape (4, 5, 3) and type uint8, should be (H, W) and uint8"),
        ("00000012.png", "has shape (4, 5) and type"),
        (".tmp.png", "was left by a run that was killed"),
    ):
        line = next(line for line in printed.splitlines() if f"{name}: " in line and what in line)
        assert str(ade / OUT) in line
    assert f"WRONG      {OUT}/*.png: 8 files; " in printed
    assert "not there  ADEChallengeData2016/annotations_detectron2/training" in printed


def test_incomplete_is_not_wrong(ade, capsys):
    capsys.readouterr()
    assert prepare("ade20k_150", ade, "--verify") == 1
    printed = capsys.readouterr().out
    assert f"incomplete {OUT}/*.png: 3 files; 3 of 2,000 files" in printed
    assert "right as far as it goes, but incomplete; --partial accepts that" in printed
    assert prepare("ade20k_150", ade, "--verify", "--partial") == 0


def test_images_are_checked_too(ade, capsys):
    image = ade / ADE / "images/validation/ADE_val_00000002.jpg"
    image.write_bytes(b"")
    assert f"{image}: is empty (0 bytes)" in faults(ade, "ade20k_150", capsys)
    image.write_bytes(b"no picture")
    assert f"{image}: cannot be read" in faults(ade, "ade20k_150", capsys)
    for path in image.parent.iterdir():
        path.unlink()
    assert f"{image.parent}: holds no image *.jpg for the labels in" in faults(ade, "ade20k_150", capsys)


def test_many_faults_are_counted_and_some_shown(ade, capsys):
    for number in range(100, 150):
        (ade / OUT / f"ADE_val_00000{number}.png").write_bytes(b"")
    printed = faults(ade, "ade20k_150", capsys)
    assert printed.count("is empty") == 20 and "... and 30 more like these" in printed and "50 faults" in printed


def test_ade20k_847_sizes_and_types(tmp_path, capsys):
    root = copy_miniature("ade20k_847", tmp_path)
    prepare("ade20k_847", root)
    base = root / "ADE20K_2021_17_01"
    save(base / "images_detectron2/validation/ADE_val_00000001.jpg", np.zeros((600, 700, 3), np.uint8))
    save(base / "annotations_detectron2/validation/ADE_val_00000001.tif", np.full((600, 700), 847, np.uint16))
    save(base / "annotations_detectron2/validation/ADE_val_00000002.tif", np.zeros((8, 8), np.uint8))
    printed = faults(root, "ade20k_847", capsys)
    assert "ADE_val_00000001.jpg: its shorter side has 600 pixels, more than 512" in printed
    assert "ADE_val_00000001.tif: holds 847, allowed are 0..846 and 65535" in printed
    assert "ADE_val_00000002.tif: has shape (8, 8) and type uint8, should be (H, W) and uint16" in printed


def test_labels_that_are_missing_without_a_reason(tmp_path, capsys):
    """COCO-Stuff has no file where every pixel is ignored; a note tells these from those that are lacking."""
    root = copy_miniature("coco", tmp_path)
    prepare("coco_stuff", root)
    folder = root / "coco/stuffthingmaps_detectron2/train2017"
    capsys.readouterr()
    prepare("coco_stuff", root, "--verify")
    printed = capsys.readouterr().out
    assert "train2017/*.png: 2 files, 1 left out (every pixel is ignored); 3 of 118,287 files" in printed
    (folder / NAME).unlink()
    prepare("coco_stuff", root, "--verify")
    assert "train2017/*.png: 2 files; 2 of 118,287 files; missing are 000000000030" in capsys.readouterr().out


def test_pascal_context_in_the_order_of_others(tmp_path, capsys):
    root = copy_miniature("pascal_context", tmp_path)
    prepare("pascal_context", root)
    for path in (root / CONTEXT / "pc59_val").iterdir():
        path.unlink()
    (root / CONTEXT / "pc59_val").rmdir()
    (root / CONTEXT / "pc59_alphabetical_val").rename(root / CONTEXT / "pc59_val")
    wanted = "pc59_val: is in the order of pc59_alphabetical (seen in 2008_000001.png), as other projects write it"
    assert wanted in faults(root, "pascal_context", capsys)
    for path in (root / CONTEXT / "pc459_val").iterdir():
        path.unlink()
    assert wanted in faults(root, "pascal_context", capsys)  # by the .mat files
    path = root / CONTEXT / "pc59_train/2008_000900.png"
    labels = load(path)
    labels[labels != 255] = 7
    save(path, labels)
    assert f"{path}: holds other classes than the annotation of 459 classes" in faults(root, "pascal_context", capsys)


def complete(tmp_path, **options) -> tuple[Folder, ...]:
    """A data set of three files that is complete."""
    names = ["a", "b", "c"]
    for index, name in enumerate(names):
        save(tmp_path / f"labels/{name}.png", np.full((2, 2), index, np.uint8))
    labels = Labels(3, 255, all_occur=True)
    return (Folder("labels", (3,), ".png", file_list_checksum(names), labels=labels, made=True),)


def test_complete(tmp_path, capsys):
    folders = complete(tmp_path)
    assert verify(tmp_path, folders, 2) == 0
    assert "right      labels/*.png: 3 files\nverdict: complete and right" in capsys.readouterr().out


def test_a_class_that_never_occurs(tmp_path, capsys):
    folders = complete(tmp_path)
    save(tmp_path / "labels/c.png", np.full((2, 2), 255, np.uint8))
    assert verify(tmp_path, folders, 2) == 1
    assert "labels: no pixel has the class 2" in capsys.readouterr().out


def test_other_names_and_too_many(tmp_path, capsys):
    folders = complete(tmp_path)
    (tmp_path / "labels/c.png").rename(tmp_path / "labels/d.png")
    assert verify(tmp_path, folders, 2, partial=True) == 1
    assert "the number of files is right, but their names are not those of the data set" in capsys.readouterr().out
    save(tmp_path / "labels/c.png", np.full((2, 2), 2, np.uint8))
    assert verify(tmp_path, folders, 2, partial=True) == 1
    assert "labels: holds 4 files, 3 is the complete data set" in capsys.readouterr().out


def test_checksums_of_ade20k_are_those_of_its_numbers():
    for pattern, number, checksum in (
        ("ADE_train_{:08d}", 20210, CHECKSUMS["ADE_TRAINING"]),
        ("ADE_val_{:08d}", 2000, CHECKSUMS["ADE_VALIDATION"]),
    ):
        assert file_list_checksum(pattern.format(index) for index in range(1, number + 1)) == checksum


def test_the_table_fits_the_label_sets_and_the_catalog():
    folders = {(folder.path, folder.suffix): folder for rows in FOLDERS.values() for folder in rows if folder.labels}
    prepared = [dataset for dataset in DATASETS if dataset.script]
    assert len(prepared) > 20
    for dataset in prepared:
        folder = folders[dataset.labels, dataset.label_suffix]
        classes = label_set(dataset.label_set)
        assert folder.labels.classes == len(classes), dataset.name
        assert folder.labels.void in (None, classes.ignore_label), dataset.name
        assert (folder.labels.images, folder.labels.image_suffix) == (dataset.images, dataset.image_suffix)
        assert folder.made and folder.recursive == dataset.recursive


def test_expected_files():
    assert facts.expected_files("coco/panoptic_val2017", 3) == 5000
    assert facts.expected_files(f"{CONTEXT}/pc59_val", 5105) == 5105
    with pytest.raises(KeyError):
        facts.expected_files("nowhere", 3)


def test_each_script_has_its_rows():
    assert FOLDERS.keys() == RUNS.keys()
    assert all(any(folder.made for folder in FOLDERS[name]) and script(name) for name in RUNS)
