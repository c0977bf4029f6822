"""Own data as registered data sets: pairs, converting once, names, evaluating."""

from __future__ import annotations

import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from own_folder import CLASSES, load, save, save_image, save_json, write_masks, write_yaml

from ovseg.config import load_cfg
from ovseg.data import catalog
from ovseg.data.custom import registration as own_registration
from ovseg.data.custom.description import read_description
from ovseg.data.custom.names import folder_name
from ovseg.data.custom.pairing import find, pair
from ovseg.data.custom.registration import prepare
from ovseg.data.loader import build_train_loader
from ovseg.engine.run import evaluate
from ovseg.errors import OvsegError
from tests.tiny_model import make_tiny_model

SHIFTED = {"images": "images/*.jpg", "masks": "masks/*.png", "classes": CLASSES, "first_id": 1}


@pytest.fixture
def cache_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("OVSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/datasets"


@pytest.fixture
def shifted(tmp_path) -> Path:
    """Four masks that count from 1, and their YAML file."""
    rng = np.random.default_rng(3)
    write_masks(tmp_path, {name: rng.integers(0, 4, (5, 7)).astype(np.uint8) for name in "abcd"})
    return write_yaml(tmp_path, SHIFTED)


# --- pairs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "masks", "files", "names"),
    [
        ("images/*.jpg", "masks/*.png", "images/a.jpg masks/a.png images/b.JPG", ["a"]),
        ("images", "masks", "images/a.jpg masks/a.png images/b.JPG masks/b.tif images/c.txt masks/c.txt", ["a", "b"]),
        ("images", "masks", "images/day/a.jpg masks/day/a.png images/a.jpg", ["day/a"]),
        ("images/*.*", "masks/*", "images/a.v1.jpg masks/a.v1.png", ["a.v1"]),
        ("*_leftImg8bit.png", "*_labelIds.png", "a_1_leftImg8bit.png a_1_labelIds.png", ["a_1"]),
        ("rgb/*/*_x.png", "gt/*/*_y.png", "rgb/bonn/7_x.png gt/bonn/7_y.png gt/ulm/7_y.png", ["bonn/7"]),
        ("*/rgb/*.jpg", "*/gt/*.tif", "r1/rgb/3.jpg r1/gt/3.tif r2/rgb/3.jpg r2/gt/3.tif", ["r1/3", "r2/3"]),
        ("**/img_?[0-9].jpg", "**/mask_?[0-9].png", "x/y/img_a1.jpg x/y/mask_a1.png", ["x/y/a/1"]),
        (["i/*.jpg", "i/*.png"], "m/*.png", "i/a.jpg i/b.png m/a.png m/b.png", ["a", "b"]),
        ("images/**/*.jpg", "masks/*.png", "images/a.jpg masks/a.png", ["a"]),
        ("im (1)/*.j[pP]*g", "ma+sk/*.png", "im (1)/a.jpeg im (1)/b.jPg ma+sk/a.png ma+sk/b.png", ["a", "b"]),
    ],
)
def test_what_wildcards_stand_for_is_the_shared_name(tmp_path, images, masks, files, names):
    for file in files.replace("im (1)", "im@").split():
        path = tmp_path / file.replace("im@", "im (1)")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    own = read_description(write_yaml(tmp_path, {"images": images, "masks": masks, "classes": CLASSES}))
    pairs = pair(own, find(own, "images"), find(own, "masks")).pairs
    assert [p.name for p in pairs] == names
    assert all(p.image.is_file() and p.labels.is_file() for p in pairs)


def test_a_list_of_names_is_a_split(tmp_path):
    write_masks(tmp_path, {name: np.zeros((2, 2), np.uint8) for name in "abc"})
    save_image(tmp_path / "images/d.jpg")
    (tmp_path / "val.txt").write_text("c.jpg\n\na\nd\nnothing\na\n")
    own = read_description(write_yaml(tmp_path, {**SHIFTED, "names": "val.txt"}))
    pairing = pair(own, find(own, "images"), find(own, "masks"))
    assert [p.name for p in pairing.pairs] == ["a", "c"]
    assert pairing.images_alone == (str(tmp_path / "images/d.jpg"),)
    assert (pairing.labels_alone, pairing.absent) == ((), ("nothing",))


def test_two_files_of_one_name_are_told(tmp_path):
    write_masks(tmp_path, {"a": np.zeros((2, 2), np.uint8)})
    save_image(tmp_path / "images/a.png")
    own = read_description(write_yaml(tmp_path, {**SHIFTED, "images": "images"}))
    with pytest.raises(OvsegError, match=r"images: .*a\.\w+ and .*a\.\w+ have the same name 'a'"):
        find(own, "images")


# --- converting once -------------------------------------------------------------------------------------------------


def states(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*.png"))}


def test_files_of_class_indices_are_used_where_they_are(tmp_path, cache_folder):
    write_masks(tmp_path, {"a": np.array([[0, 1], [2, 255]], np.uint8), "b": np.array([[0, 1]], np.uint8)})
    save(tmp_path / "masks/b.png", np.repeat(np.array([[[1], [2]]], np.uint8), 3, axis=2))  # grey, saved as RGB
    prepared = prepare(read_description(write_yaml(tmp_path, {**SHIFTED, "first_id": 0})))
    first, second = prepared.pairing.pairs
    assert first.labels == tmp_path / "masks/a.png"
    assert second.labels.is_relative_to(cache_folder)
    assert load(second.labels).tolist() == [[1, 2]]


def test_a_second_time_nothing_is_opened(shifted, cache_folder, monkeypatch):
    first = prepare(read_description(shifted))
    (folder,) = (path for path in cache_folder.iterdir() if path.is_dir())
    before = states(folder)
    assert len(before) == 4
    for p in first.pairing.pairs:
        raw = load(shifted.parent / "masks" / p.labels.name).astype(int)
        assert load(p.labels).tolist() == np.where(raw == 0, 255, raw - 1).tolist()
        assert load(p.labels).dtype == np.uint8

    def refuse(*_):
        raise AssertionError("files are opened again")

    monkeypatch.setattr(own_registration, "open_source", refuse)
    # comments, the split and the words have nothing to do with the files
    text = shifted.read_text() + "# a comment\nseen: sky\ntemplates: vild\n"
    second = prepare(read_description(write_yaml(shifted.parent, text)))
    assert second.pairing == first.pairing
    assert second.classes.evaluation_set == {"base": [0], "novel": [1, 2]}
    assert states(folder) == before


def test_a_killed_conversion_is_taken_up(shifted, cache_folder):
    prepare(read_description(shifted))
    (folder,) = (path for path in cache_folder.iterdir() if path.is_dir())
    (folder / "index.json").unlink()
    (folder / "labels/b.png").unlink()
    before = states(folder)
    prepare(read_description(shifted))
    after = states(folder)
    assert {name: after[name] for name in before} == before
    assert "labels/b.png" in after and (folder / "index.json").is_file()
    for damage in ("{", '{"pairs": [["a"]]}'):
        (folder / "index.json").write_text(damage)
        assert len(prepare(read_description(shifted)).pairing.pairs) == 4
    (folder / "labels/b.png").unlink()  # somebody tidied up
    prepare(read_description(shifted))
    assert (folder / "labels/b.png").is_file()


def test_changed_files_and_descriptions_are_converted_anew(shifted, cache_folder):
    first = prepare(read_description(shifted)).pairing.pairs[0]
    save(shifted.parent / "masks/a.png", np.full((5, 7), 3, np.uint8))
    os.utime(shifted.parent / "masks/a.png", ns=(1, 1))  # older than what was made of the former one
    second = prepare(read_description(shifted)).pairing.pairs[0]
    assert second.labels != first.labels
    assert (load(second.labels) == 2).all()
    other = write_yaml(shifted.parent, {**SHIFTED, "first_id": None, "ids": {0: 0, 1: 0, 2: 0, 3: 0}})
    third = prepare(read_description(other)).pairing.pairs[0]
    assert (load(third.labels) == 0).all()
    save_image(shifted.parent / "images/e.jpg", (5, 7))
    save(shifted.parent / "masks/e.png", np.full((5, 7), 3, np.uint8))
    assert len(prepare(read_description(other)).pairing.pairs) == 5


def test_only_one_of_several_at_once_converts(shifted, cache_folder, monkeypatch):
    opened = []

    def count(own):
        opened.append(own)
        return source(own)

    source = own_registration.open_source
    monkeypatch.setattr(own_registration, "open_source", count)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: prepare(read_description(shifted), workers=1), range(4)))
    assert len(opened) == 1
    assert all(one.pairing == found[0].pairing for one in found)


def test_more_than_255_classes_become_16_bit(tmp_path, cache_folder):
    classes = [f"thing {i}" for i in range(300)]
    write_masks(tmp_path, {"a": np.array([[1, 300], [0, 256]], np.uint16)})
    path = prepare(read_description(write_yaml(tmp_path, {**SHIFTED, "classes": classes}))).pairing.pairs[0].labels
    assert (path.suffix, load(path).dtype) == (".tif", np.uint16)
    assert load(path).tolist() == [[0, 299], [65535, 255]]


def test_categories_of_a_coco_file_are_remembered(tmp_path, cache_folder):
    save_image(tmp_path / "images/a.jpg")
    image = {"id": 1, "file_name": "a.jpg", "height": 4, "width": 6}
    square = {"id": 1, "image_id": 1, "category_id": 8, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]}
    categories = [{"id": 8, "name": "dog"}, {"id": 3, "name": "sky"}]
    save_json(tmp_path / "coco.json", {"images": [image], "annotations": [square], "categories": categories})
    yaml_file = write_yaml(tmp_path, {"images": "images/*.jpg", "coco_instances": "coco.json", "seen": "dog"})
    for _ in range(2):
        prepared = prepare(read_description(yaml_file))
        assert prepared.classes.vocabulary.names == ("sky", "dog")
        assert prepared.classes.evaluation_set == {"base": [1], "novel": [0]}
    assert load(prepared.pairing.pairs[0].labels)[:3, :3].tolist() == [[1, 1, 255], [1, 1, 255], [255, 255, 255]]


def test_unusable_masks_are_all_told_and_the_others_are_done(shifted, cache_folder):
    save(shifted.parent / "masks/b.png", np.array([[9, 9, 8]], np.uint8))
    (shifted.parent / "masks/c.png").write_bytes(b"")
    with pytest.raises(OvsegError) as error:
        prepare(read_description(shifted), workers=1)
    for part in (
        "b.png has value 9 (2 pixels), value 8 (1 pixels), no class of",
        "mine.yaml: add it to ids",
        "c.png is empty",
    ):
        assert part in str(error.value)
    (folder,) = (path for path in cache_folder.iterdir() if path.is_dir())
    assert {Path(name).name for name in states(folder)} == {"a.png", "d.png"}


def test_a_cache_that_cannot_be_written_is_told(shifted, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OVSEG_CACHE", str(tmp_path / "file"))
    with pytest.raises(OvsegError, match=r"cannot keep the labels of .*mine\.yaml .* set OVSEG_CACHE"):
        prepare(read_description(shifted))


# --- the path as a name ----------------------------------------------------------------------------------------------


def test_a_path_is_a_data_set(shifted, cache_folder, caplog):
    write_yaml(shifted.parent, {**SHIFTED, "unseen": ["dog"]})
    save_image(shifted.parent / "images/lonely.jpg")
    save(shifted.parent / "masks/orphan.png", np.zeros((2, 2), np.uint8))
    name = str(shifted)
    with caplog.at_level(logging.WARNING, logger="ovseg.data.custom.registration"):
        catalog.check_prepared(name)
        catalog.check_prepared(name)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and "lonely.jpg" in told[0] and "orphan.png" in told[1]
    metadata = MetadataCatalog.get(name)
    assert metadata.stuff_classes == ["sky", "person", "dog"]
    assert metadata.vocabulary.synonyms[1] == ("person", "pedestrian")
    assert (metadata.ignore_label, metadata.evaluator_type) == (255, "sem_seg")
    assert metadata.evaluation_set == {"base": [0, 1], "novel": [2]}
    assert metadata.image_root == str(shifted.parent / "images")
    records = DatasetCatalog.get(name)
    assert [Path(record["file_name"]).name for record in records] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert all(Path(record["sem_seg_file_name"]).is_file() for record in records)

    write_yaml(shifted.parent, {**SHIFTED, "classes": ["sky", "person", "cat"]})
    catalog.check_prepared(name)  # the file has changed
    assert MetadataCatalog.get(name).stuff_classes == ["sky", "person", "cat"]
    assert MetadataCatalog.get(name).get("evaluation_set") is None


def test_a_file_that_is_not_there_gets_the_nearest(shifted):
    with pytest.raises(OvsegError, match=r"there is no data set '.*mime\.yaml': did you mean .*mine\.yaml\?"):
        catalog.check_prepared(str(shifted.with_name("mime.yaml")))
    with pytest.raises(OvsegError, match=r"give the path of the YAML file"):
        catalog.check_prepared("nowhere/at/all.yml")


def test_names_of_folders():
    assert folder_name("ade20k_sem_seg_val", ["ade20k_sem_seg_val"]) == "ade20k_sem_seg_val"
    assert folder_name("some/where/mine.yaml", ["some/where/mine.yaml", "other"]) == "mine"
    both = ["a/mine.yaml", "b/mine.yml"]
    first, second = (folder_name(name, both) for name in both)
    assert first != second and all(name.startswith("mine-") for name in (first, second))
    assert folder_name("a/toy.yaml", ["toy", "a/toy.yaml"]) != "toy"


def test_train_net_evaluates_it(shifted, cache_folder, tmp_path):
    config, weights = make_tiny_model(tmp_path)
    (tmp_path / "b").mkdir()
    other = write_yaml(tmp_path / "b", {**SHIFTED, "root": "..", "seen": ["sky", "dog"]})
    names = (str(shifted), str(other))
    opts = ["DATASETS.TEST", repr(names), "MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", str(tmp_path / "out")]
    results = evaluate(load_cfg(config, [*opts, "DATALOADER.NUM_WORKERS", "0", "TEST.VOCABULARY", "synonyms"]))
    assert set(results) == set(names)
    assert 0 <= results[names[0]]["sem_seg"]["mIoU"] == results[names[1]]["sem_seg"]["mIoU"] <= 100
    assert "mIoU-novel" in results[names[1]]["sem_seg"]
    folders = sorted((tmp_path / "out/inference").iterdir())
    assert [folder.name for folder in folders] == sorted(folder_name(name, names) for name in names)
    for folder in folders:
        record = json.loads((folder / "results.json").read_text())
        assert (record["num_images"], record["protocol"]["tag"]) == (4, "mine")


def test_it_can_be_trained_on(shifted, cache_folder, tmp_path):
    config, _ = make_tiny_model(tmp_path)
    opts = ["DATASETS.TRAIN", repr((str(shifted),)), "SOLVER.IMS_PER_BATCH", "4", "DATALOADER.NUM_WORKERS", "0"]
    opts += ["INPUT.CROP.ENABLED", "False", "INPUT.MIN_SIZE_TRAIN", "(32,)"]
    cfg = load_cfg(config, opts)
    catalog.check_prepared(str(shifted))
    batch = next(iter(build_train_loader(cfg, seed=0)))
    assert len(batch) == 4
    classes = {label for sample in batch for label in sample["instances"].gt_classes.tolist()}
    assert classes == {0, 1, 2}
