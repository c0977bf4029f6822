from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from ovseg.config import get_cfg
from ovseg.config.limits import check_config
from ovseg.errors import OvsegError
from ovseg.evaluation.confusion import LabelRuns
from ovseg.evaluation.predictions import PngPredictions, RlePredictions
from ovseg.evaluation.sem_seg import SeenImage

NO_RUNS = LabelRuns(*(np.zeros(0, np.int64),) * 3)


def seen(index: int, num_classes: int, name: str | None = None) -> SeenImage:
    label_map = np.random.default_rng(index).integers(0, num_classes, (5 + index, 7))
    return SeenImage(index, name or f"{index}.jpg", "", label_map, NO_RUNS)


def decoded(records: list[dict], name: str) -> np.ndarray:
    own = [record for record in records if record["file_name"] == name]
    label_map = np.full(own[0]["segmentation"]["size"], -1)
    for record in own:
        label_map[coco_mask.decode(record["segmentation"]).astype(bool)] = record["category_id"]
    return label_map


def test_run_length_codes_give_back_the_label_maps(tmp_path):
    saver = RlePredictions(tmp_path / "out" / "p.json", tmp_path / "p.jsonl", {i: 10 * i + 1 for i in range(5)})
    images = [seen(index, 5) for index in range(3)]
    for image in images:
        saver.see(image)
    saver.finish()
    records = json.loads((tmp_path / "out" / "p.json").read_text())
    for image in images:
        np.testing.assert_array_equal((decoded(records, image.file_name) - 1) // 10, image.label_map)


def test_streams_of_broken_off_runs_are_joined_in_the_order_of_images(tmp_path):
    """Image 2 was written but never counted by the first run, which was killed in the middle of a line."""
    images = [seen(index, 5) for index in range(4)]
    first = RlePredictions(tmp_path / "1.json", tmp_path / "first.jsonl", {})
    first.see(images[1])
    state = first.state()
    first.see(images[2])
    first.close()
    with open(tmp_path / "first.jsonl", "a") as file:
        file.write('3\\t[{"file_na')
    second = RlePredictions(tmp_path / "1.json", tmp_path / "second.jsonl", {})
    for index in (0, 2, 3):
        second.see(images[index])
    second.add(state)
    second.finish()
    whole = RlePredictions(tmp_path / "2.json", tmp_path / "whole.jsonl", {})
    for image in images:
        whole.see(image)
    whole.finish()
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()


def test_a_stream_that_is_gone_is_named(tmp_path):
    saver = RlePredictions(tmp_path / "p.json", tmp_path / "own.jsonl", {})
    saver.add({"stream": np.array("gone.jsonl"), "bytes": np.array(10)})
    with pytest.raises(OvsegError, match="OUTPUT_DIR must be a folder that all machines share"):
        saver.finish()
    assert not (tmp_path / "p.json").exists()


def test_no_image_is_an_empty_list(tmp_path):
    saver = RlePredictions(tmp_path / "p.json", tmp_path / "own.jsonl", {})
    saver.finish()
    assert json.loads((tmp_path / "p.json").read_text()) == []


@pytest.mark.parametrize(("num_classes", "dtype"), [(150, np.uint8), (256, np.uint8), (257, np.uint16)])
def test_label_maps_as_png(tmp_path, num_classes, dtype):
    names = ["/data/a/x.jpg", "/data/b/x.jpg", "/data/b/y.z.png"]
    saver = PngPredictions(tmp_path, names, num_classes)
    images = [seen(index, num_classes, name) for index, name in enumerate(names)]
    for image in images:
        saver.see(image)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")} == {"a/x.png", "b/x.png", "b/y.z.png"}
    for image, name in zip(images, ("a/x.png", "b/x.png", "b/y.z.png"), strict=True):
        with Image.open(tmp_path / name) as file:
            read = np.array(file)
        assert read.dtype == dtype
        np.testing.assert_array_equal(read, image.label_map)


def test_images_that_differ_in_their_suffix_alone_keep_it(tmp_path):
    saver = PngPredictions(tmp_path, ["d/x.jpg", "d/x.png"], 5)
    saver.see(seen(1, 5, "d/x.png"))
    assert [path.name for path in Path(tmp_path).iterdir()] == ["x.png.png"]


def test_other_formats_are_refused():
    cfg = get_cfg()
    for wrong in ("PNG", 1, "true"):
        cfg.TEST.SAVE_PREDICTIONS = wrong
        with pytest.raises(OvsegError, match=r"SAVE_PREDICTIONS is .*; choose one of None, False, True, rle, png"):
            check_config(cfg)
