"""Pseudo-masks on disk: found by image, read one image at a time, damage named."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pycocotools.mask
import pytest
from pycocotools.coco import COCO

from ovseg.data import pseudo_masks
from ovseg.data.pseudo_masks import ImageMasks, read_annotations, read_masks, read_pseudo_masks, shard_text
from ovseg.errors import OvsegError

SIZES = {"a.png": (5, 7), "train/été.png": (6, 4), "train/a.png": (3, 3), "empty.png": (8, 8)}


def draw(name: str, count: int) -> np.ndarray:
    """Masks of an image, bool (count, H, W), each with a pixel."""
    masks = np.random.default_rng(len(name)).random((count, *SIZES[name])) > 0.5
    masks[:, 0, 0] = True
    return masks


def entry(image_id: int, name: str, masks: np.ndarray) -> ImageMasks:
    own = []
    for mask in masks:
        rle = pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))
        segmentation = {"size": list(mask.shape), "counts": rle["counts"].decode()}
        own.append({"segmentation": segmentation, "bbox": [0, 0, 1, 1], "area": int(mask.sum()), "score": 0.9})
    return ImageMasks(image_id, name, *SIZES[name], own)


@pytest.fixture
def folder(tmp_path):
    """Two shards: two images with masks; one with masks, one without."""
    first, second = [draw(name, 3) for name in ("a.png", "train/été.png")], draw("train/a.png", 1)
    shards = [
        shard_text([entry(4, "a.png", first[0]), entry(9, "train/été.png", first[1])]),
        shard_text([entry(11, "train/a.png", second), entry(12, "empty.png", np.zeros((0, 8, 8), bool))], 100),
    ]
    for number, text in enumerate(shards):
        (tmp_path / f"masks-{number:05d}.json").write_text(text, encoding="ascii")
    (tmp_path / "summary.json").write_text('{"shards": 2}')
    return tmp_path


def test_masks_come_back(folder):
    masks = read_pseudo_masks(folder)
    assert list(masks) == list(SIZES) and masks.size("train/été.png") == (6, 4)
    for name, count in zip(SIZES, (3, 3, 1, 0), strict=True):
        place = pickle.loads(pickle.dumps(masks.place(name)))
        assert np.array_equal(list(read_masks(place, *SIZES[name])), list(draw(name, count)))
        annotations = read_annotations(place)
        assert annotations == masks[name] and len(annotations) == count
        assert all((a["category_id"], a["iscrowd"], a["bbox_mode"], a["score"]) == (0, 0, 1, 0.9) for a in annotations)


def test_a_shard_is_a_coco_file(folder, capsys):
    coco = COCO(str(folder / "masks-00000.json"))
    assert coco.getImgIds() == [4, 9] and coco.getCatIds() == [1]
    found = [coco.annToMask(annotation) for annotation in coco.loadAnns(coco.getAnnIds([9]))]
    assert np.array_equal(np.stack(found), draw("train/été.png", 3))


def test_images_are_found_by_the_longest_name(folder):
    masks = read_pseudo_masks(folder)
    assert masks.find("/data/train/a.png") == "train/a.png"
    assert masks.find("/data/val/a.png") == masks.find("a.png") == "a.png"
    assert masks.find("/data/train/b.png") is None and masks.find("/data/été.png") is None


def test_a_shard_without_images(tmp_path):
    assert json.loads(shard_text([]))["images"] == []
    (tmp_path / "masks-00000.json").write_text(shard_text([]))
    (tmp_path / "summary.json").write_text('{"shards": 1}')
    assert len(read_pseudo_masks(tmp_path)) == 0


@pytest.mark.parametrize("cut", [0.0, 0.1, 0.3, 0.5, 0.8, 0.99])
def test_a_truncated_shard_is_named(folder, cut):
    shard = folder / "masks-00001.json"
    content = shard.read_bytes()
    shard.write_bytes(content[: int(cut * len(content))])
    with pytest.raises(OvsegError, match=r"masks-00001.json is truncated or damaged"):
        read_pseudo_masks(folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('{"id": 11, "file_name"', '{"id": 11, "name"'),
        ('{"id": 11, ', '{"id": 10, '),
        ('"height": 3', '"height": "x"'),
        ('{"image_id": 11', '{"image": 11'),
        ('"file_name": "train/a.png"', '"file_name": "a.png"'),
    ],
)
def test_a_changed_shard_is_named(folder, old, new):
    shard = folder / "masks-00001.json"
    assert old in shard.read_text()
    shard.write_text(shard.read_text().replace(old, new))
    with pytest.raises(OvsegError, match=r"masks-00001.json"):
        read_pseudo_masks(folder)


def test_damage_after_the_index_is_named(folder):
    masks = read_pseudo_masks(folder)
    place = masks.place("train/a.png")
    with pytest.raises(OvsegError, match=r"has the size \[3, 3\] \(height, width\), but its image \[3, 4\]"):
        list(read_masks(place, 3, 4))
    shard = folder / "masks-00001.json"
    content = shard.read_text()
    for damaged in (content.replace('"counts": "', '"counts": "~'), content.replace('"counts": "', '"counts" "'), ""):
        shard.write_text(damaged)
        with pytest.raises(OvsegError, match=r"masks-00001.json is truncated or damaged"):
            list(read_masks(place, 3, 3))
    shard.unlink()
    with pytest.raises(OvsegError, match="check that it is still there"):
        list(read_masks(place, 3, 3))


def test_unfinished_folders(folder, tmp_path):
    with pytest.raises(OvsegError, match=r"there is no folder of pseudo-masks .*nothing"):
        read_pseudo_masks(tmp_path / "nothing")
    (folder / "masks-00000.json").unlink()
    with pytest.raises(OvsegError, match="holds 1 of 2 shards"):
        read_pseudo_masks(folder)
    for damaged in ("[", '"shards"', '{"shards": 1, "image_root": 5}'):
        (folder / "summary.json").write_text(damaged)
        with pytest.raises(OvsegError, match=r"summary.json is damaged"):
            read_pseudo_masks(folder)
    (folder / "summary.json").unlink()
    with pytest.raises(OvsegError, match="the run that fills it did not end"):
        read_pseudo_masks(folder)


def test_memory_is_that_of_places(folder):
    """Nothing of the masks is kept: the index has numbers and names."""
    masks = read_pseudo_masks(folder)
    assert masks._places.dtype == np.int64 and masks._places.shape == (4, 3)
    assert not hasattr(pseudo_masks, "_cache")
