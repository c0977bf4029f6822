"""Captioned data sets: COCO, Localized Narratives, a user's own; and captions that do not fit their images."""

from __future__ import annotations

import json
import logging
import shutil
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ovseg.config import get_cfg
from ovseg.data.caption_sets import caption_sets, check_portion
from ovseg.data.catalog import check_prepared
from ovseg.data.loader import build_train_loader
from ovseg.errors import OvsegError
from tests.data.prepared import MINIATURES, copy_miniature

COCO = "coco_2017_train_panoptic_captions"


@pytest.fixture
def root(tmp_path):
    root = copy_miniature("coco", tmp_path)
    shutil.copytree(MINIATURES / "localized_narratives", root / "localized_narratives")
    return root


def load(root, name):
    return caption_sets(root)[name][0]()


def coco_file(root, kind="captions", split="train"):
    return root / f"coco/annotations/{kind}_{split}2017.json"


@pytest.fixture
def registered():
    """Names registered by a test, removed at its end."""
    names = []
    yield names
    for name in names:
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_coco_captions_with_panoptic_masks(root):
    records = load(root, COCO)
    expected = json.loads(coco_file(root).read_bytes())
    names = {image["id"]: image["file_name"] for image in expected["images"]}
    assert len(records) == 3
    for record in records:
        captions = [a["caption"] for a in expected["annotations"] if names[a["image_id"]] in record["file_name"]]
        assert record["captions"] == [" ".join(caption.split()) for caption in captions] != []
        assert record["segments_info"] and record["pan_seg_file_name"].endswith(".png")
    assert len(load(root, "coco_2017_val_panoptic_captions")) == 2


def test_coco_is_trained_on(root, registered):
    records = load(root, COCO)
    registered.append("coco_captions_test")
    DatasetCatalog.register("coco_captions_test", lambda: records)
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.OPENSEG.CANVAS = "OpenSeg", 64
    cfg.DATASETS.TRAIN, cfg.DATASETS.TRAIN_WEIGHTS = ("coco_captions_test", "coco_captions_test"), (0.5, 0.5)
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 6, 0
    batch, following = islice(build_train_loader(cfg, seed=0), 2)
    resumed = next(iter(build_train_loader(cfg, seed=0, start=6)))
    for one, other in zip(following, resumed, strict=True):
        assert one["file_name"] == other["file_name"] and one["caption_words"] == other["caption_words"]
        torch.testing.assert_close(one["image"], other["image"])
    assert len(batch) == 6
    for sample in batch:
        assert sample["image"].shape[0] == 3 and max(sample["image"].shape) <= 64
        assert len(sample["instances"].gt_masks) and sample["caption_words"]
        assert set(sample["caption_words"]) <= set(sample["caption"].lower().replace(".", " ").split())


def test_captions_of_another_split(root):
    shutil.copy(coco_file(root, split="val"), coco_file(root))
    message = r"captions_train2017\.json, whose masks are those of .*panoptic_train2017\.json; .*same split"
    with pytest.raises(OvsegError, match=message):
        load(root, COCO)


def test_images_without_captions_and_captions_without_images(root, caplog):
    content = json.loads(coco_file(root).read_bytes())
    last = content["images"][-1]["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != last]
    content["images"].append({"id": 10**6, "file_name": "elsewhere.jpg"})
    content["annotations"] += [{"image_id": 10**6, "caption": "a dog"}, {"image_id": 5, "caption": "nobody"}]
    coco_file(root).write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        records = load(root, COCO)
    assert sum(record["captions"] == [] for record in records) == 1
    assert "1 of 3 images have no captions" in caplog.text and "1 images with captions are not in it" in caplog.text
    assert "1 of " in caplog.text and "captions cannot be used" in caplog.text


@pytest.mark.parametrize("kind", ["captions", "panoptic"])
def test_truncated_and_missing_files(root, kind):
    file = coco_file(root, kind)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(OvsegError, match=rf"{COCO}.*{kind}_train2017\.json is not COCO's .*section 'Captions'"):
        load(root, COCO)
    file.unlink()
    with pytest.raises(OvsegError, match=rf"{COCO}.*there is no .*{kind}_train2017\.json; see section 'Captions'"):
        load(root, COCO)


def test_missing_folder_of_masks(root):
    shutil.rmtree(root / "coco/panoptic_train2017")
    with pytest.raises(OvsegError, match=r"there is no folder .*panoptic_train2017"):
        load(root, COCO)


def test_narratives_of_coco(root):
    records = load(root, "localized_narratives_coco_train")
    assert [record["image_id"] for record in records] == ["9", "25"]
    assert records[0]["file_name"] == str(root / "coco/train2017/000000000009.jpg")
    assert records[0]["captions"][0].endswith("colored blocks and a plain board .")
    full = root / "localized_narratives/annotations/coco_val_localized_narratives.jsonl"
    light = load(root, "localized_narratives_coco_val")
    full.with_name("coco_val_captions.jsonl").unlink()
    assert load(root, "localized_narratives_coco_val") == light  # the full form has the same captions


def test_several_narratives_of_an_image(root):
    file = root / "localized_narratives/annotations/coco_val_captions.jsonl"
    narratives = [
        {"dataset_id": "mscoco_val2017", "image_id": name, "caption": name} for name in ("139", "000000000139")
    ]
    file.write_text("".join(json.dumps(narrative) + "\n" for narrative in narratives))
    (record,) = load(root, "localized_narratives_coco_val")
    assert record["captions"] == ["139", "000000000139"]


def test_parts_that_are_missing(root):
    folder = root / "localized_narratives/annotations"
    (folder / "coco_train_captions.jsonl").unlink()
    with pytest.raises(OvsegError, match="1 of 4 parts of coco_train_localized_narratives: download"):
        load(root, "localized_narratives_coco_train")
    part = folder / "coco_train_localized_narratives-00000-of-00004.jsonl"
    for number in (1, 2, 3):
        shutil.copy(part, folder / f"coco_train_localized_narratives-0000{number}-of-00004.jsonl")
    assert len(load(root, "localized_narratives_coco_train")[0]["captions"]) == 4


def test_portions_that_are_not_prepared(root):
    message = (
        "lacks the files of localized_narratives_flickr30k_train, localized_narratives_open_images_train; .*coco_train"
    )
    with pytest.raises(OvsegError, match=message):
        load(root, "localized_narratives_train")


def test_all_portions(root):
    folder = root / "localized_narratives/annotations"
    for stem, name, image in (
        ("flickr30k_train", "1000092795", "flickr30k/images/1000092795.jpg"),
        ("open_images_train_v6", "00aa", "open_images/train/00aa.jpg"),
    ):
        narrative = {"dataset_id": "Flic", "image_id": name, "caption": "a dog"}
        (folder / f"{stem}_captions.jsonl").write_text(json.dumps(narrative))
        (root / image).parent.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / image)
    assert [record["image_id"] for record in load(root, "localized_narratives_train")] == [
        "9",
        "25",
        "1000092795",
        "00aa",
    ]


def test_narratives_without_images(root):
    shutil.rmtree(root / "coco/train2017")
    (root / "coco/train2017").mkdir()
    message = r"localized_narratives_coco_train.*coco_train_captions\.jsonl can be used: .*no image.*coco/train2017"
    with pytest.raises(OvsegError, match=message):
        load(root, "localized_narratives_coco_train")


def test_narratives_of_ade20k_are_left_out():
    for name in ("localized_narratives_ade20k_train", "localized_narratives_ade20k_validation"):
        with pytest.raises(OvsegError, match=r"is left out, as in OpenSeg: .*localized_narratives_train"):
            check_prepared(name)
    check_portion("localized_narratives_coco_train")
    check_portion("toy_sem_seg_train")


def test_names_are_registered():
    names = DatasetCatalog.list()
    assert {COCO, "localized_narratives_train", "localized_narratives_open_images_val"} <= set(names)
    assert "localized_narratives_ade20k_train" not in names


@pytest.fixture
def own(tmp_path):
    """A folder of three images, one of them in a folder below."""
    for name in ("images/0007.jpg", "images/b.jpg", "images/below/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(tmp_path / name)
    return tmp_path


def describe(folder, registered, text, captions):
    (folder / "captions.csv").write_text("file_name,caption\n" + "".join(f"{a},{b}\n" for a, b in captions))
    path = folder / "own.yaml"
    path.write_text(text)
    registered.append(str(path))
    check_prepared(str(path))
    return {record["file_name"][len(str(folder)) + 1 :]: record for record in DatasetCatalog.get(str(path))}


def test_own_images_with_captions(own, registered, caplog):
    captions = [("7", "a dog"), ("images/b.jpg", "a cat"), ("b.jpg", "two cats"), ("gone.jpg", "a bird")]
    with caplog.at_level(logging.WARNING):
        records = describe(own, registered, "images: images\ncaptions: captions.csv\n", captions)
    assert {name: record["captions"] for name, record in records.items()} == {
        "images/0007.jpg": ["a dog"],
        "images/b.jpg": ["a cat", "two cats"],
    }
    assert "1 of 3 images have no captions" in caplog.text and "1 images with captions are not in it" in caplog.text


def test_own_masks_with_captions(own, registered):
    for name in ("0007", "b"):
        (own / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 9), np.uint8)).save(own / f"masks/{name}.png")
    text = "images: images/*.jpg\nmasks: masks/*.png\nclasses: [dog, cat]\ncaptions: captions.csv\n"
    records = describe(own, registered, text, [("b.jpg", "a cat")])
    assert {name: record["captions"] for name, record in records.items()} == {
        "images/0007.jpg": [],
        "images/b.jpg": ["a cat"],
    }
    assert all(record["sem_seg_file_name"] for record in records.values())


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (
            [("x.jpg", "a dog")],
            r"no image has a caption in .*captions\.csv; .*x\.jpg: take the captions of the same split",
        ),
        ([], r"captions: no caption of .*captions\.csv can be used"),
    ],
)
def test_own_captions_of_other_images(own, registered, captions, message):
    with pytest.raises(OvsegError, match=message):
        describe(own, registered, "images: images\ncaptions: captions.csv\n", captions)


def test_own_captions_that_may_be_of_two_images(own, registered):
    shutil.copy(own / "images/b.jpg", own / "images/below/b.jpg")
    with pytest.raises(OvsegError, match=r"captions of 'b\.jpg' may be of .*write more of the path"):
        describe(own, registered, "images: images\ncaptions: captions.csv\n", [("b.jpg", "a cat")])


def test_captions_alone_are_no_labels(own, registered):
    describe(own, registered, "images: images\ncaptions: captions.csv\n", [("b.jpg", "a cat")])
    from ovseg.data.custom.description import read_description
    from ovseg.data.custom.source import open_source

    with pytest.raises(OvsegError, match="captions: are all that it has"):
        open_source(read_description(own / "own.yaml"))
