"""Label formats of one segmentation, and the polygons of regions."""

from __future__ import annotations

import json
import os
import sys
import tracemalloc
from pathlib import Path
from xml.etree import ElementTree as ET

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ovseg.errors import OvsegError
from ovseg.io.run_lengths import decode_mask
from ovseg.result.formats.cvat import rows_run_lengths
from ovseg.result.formats.labelled_set import LabelledSet
from ovseg.result.formats.yolo import write_yolo
from ovseg.result.polygons import Outline, box_of, outline_of
from ovseg.result.regions import LabelledImage, Region
from ovseg.result.segmentation import Segmentation

NAMES = ("sky & sea", "cat", "dog")


def example(source="photos/a b.jpg", score_map=True):
    """A cat of two parts, one with a hole of 2 x 3 unlabelled pixels; sky on the right; no dog."""
    labels = np.ones((20, 30), int)
    labels[:, 20:] = 0
    labels[:, 8:10] = 2
    scores = np.where(labels == 0, 0.25, 0.75).astype(np.float32)
    scores[:, 8:10] = 0
    scores[4:6, 2:5] = 0
    scores[:10, 20:] = 0.5
    image = np.zeros((20, 30, 3), np.uint8)
    return Segmentation.from_maps(labels, scores, NAMES, image, source)


def random_mask(seed, size=(17, 23)):
    """A part of random pixels that is connected by sides, with holes and corners that touch."""
    noise = np.random.default_rng(seed).random(size) < 0.62
    _, parts, stats, _ = cv2.connectedComponentsWithStats(noise.astype(np.uint8), connectivity=4)
    mask = parts == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
    left, top, width, height = box_of(mask)
    return mask[top : top + height, left : left + width]


def filled(points, size):
    rle = coco_mask.frPyObjects([np.asarray(points, float).ravel().tolist()], *size)
    return coco_mask.decode(coco_mask.merge(rle)).astype(bool)


def test_the_score_map_is_kept():
    result = example()
    assert result.score_map.dtype == np.float32 and result.score_map[0, 25] == 0.5 and result.score_map[0, 8] == 0
    limited = Segmentation.from_maps(result.label_map.clip(0), result.score_map, NAMES, result.image, min_score=0.3)
    assert limited.label_map[15, 25] == -1 and limited.score_map[15, 25] == 0.25  # of unlabelled pixels, too
    with pytest.raises(ValueError, match="differ in size"):
        Segmentation(result.label_map, NAMES, result.scores, result.image, score_map=np.zeros((2, 2)))


def test_regions_are_connected_parts():
    image = example().regions()
    assert [(one.label, one.area, one.box) for one in image.regions] == [
        (0, 200, (20, 0, 10, 20)),
        (1, 200, (10, 0, 10, 20)),
        (1, 154, (0, 0, 8, 20)),
    ]
    assert [one.score for one in image.regions] == pytest.approx([0.375, 0.75, 0.75])
    assert np.array_equal(image.label_map(), example().label_map) and image.name == "a b.jpg"
    assert [one.label for one in example().regions(min_score=0.5).regions] == [1, 1]
    assert [one.area for one in example().regions(min_area=160).regions] == [200, 200]
    assert len(example().regions(min_area=0.3).regions) == 2  # 180 of 600 pixels
    for arguments in ({"min_area": -1}, {"min_area": "1"}, {"min_score": float("nan")}):
        with pytest.raises(OvsegError, match="min_"):
            example().regions(**arguments)


@pytest.mark.parametrize("seed", range(8))
def test_exact_outlines(seed):
    """Their holes, and the slits to them, are exact."""
    mask = random_mask(seed)
    outline = outline_of(mask)
    outside = filled(outline.outer, mask.shape)
    holes = [filled(hole, mask.shape) for hole in outline.holes]
    assert holes and np.array_equal(outside & ~np.logical_or.reduce(holes), mask)
    assert np.array_equal(filled(outline.joined(), mask.shape), mask)
    moved = outline_of(mask, offset=(5, 7))
    assert np.array_equal(moved.outer, outline.outer + np.array([5, 7]))


@pytest.mark.parametrize("seed", range(4))
def test_slits_are_the_shortest(seed):
    """Equal to a comparison of all pairs of points, the first of several shortest ones too."""
    outline = outline_of(random_mask(seed))
    ring = outline.outer
    for hole in sorted(outline.holes, key=lambda points: points[:, 0].min()):
        distances = ((ring[:, None] - hole[None]) ** 2).sum(-1)
        i, j = np.unravel_index(int(distances.argmin()), distances.shape)
        ring = np.concatenate([ring[: i + 1], hole[j:], hole[: j + 1], ring[i:]])
    assert np.array_equal(outline.joined(), ring) and outline.joined().dtype == np.float32


def test_slits_of_long_outlines_need_little_memory():
    circle = np.linspace(0, 2 * np.pi, 20000, endpoint=False)
    ring = np.stack([np.cos(circle), np.sin(circle)], axis=-1).astype(np.float32)
    tracemalloc.start()
    joined = Outline(100 * ring, (90 * ring,)).joined()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(joined) == 40002 and peak < 50e6  # bytes; all pairs: 6e9


def test_links_from_an_output_folder_that_is_a_link(tmp_path):
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "deep")
    labelled = LabelledSet([], NAMES, tmp_path / "photos", tmp_path / "out" / "yolo-seg")
    image = LabelledImage("a.jpg", (1, 1), NAMES, ())
    labelled.add_image(image, "images")
    assert (tmp_path / "out" / "yolo-seg" / "images" / "a.jpg").read_bytes() == b"x"
    file = tmp_path / "out" / "labelme" / "a.json"
    assert os.path.samefile(file.parent.parent / ".." / ".." / "photos", tmp_path / "photos")
    assert labelled.relative_image(image, file) == "../../../photos/a.jpg"


def test_yolo_labels_are_where_ultralytics_looks(tmp_path):
    names = ["a.jpg", "images/b.c.jpg", "x/images/images/y/d.png", "images.jpg"]
    for name in names:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(b"x")
    images = [LabelledImage(name, (1, 1), NAMES, ()) for name in names]
    write_yolo(LabelledSet(images, NAMES, tmp_path / "photos", tmp_path / "out", copy_images=True))
    for name in names:  # ultralytics/data/utils.py, img2label_paths
        path = str(tmp_path / "out" / "images" / name)
        assert Path("/labels/".join(path.rsplit("/images/", 1)).rsplit(".", 1)[0] + ".txt").is_file(), name


def test_simplified_outlines():
    disc = np.hypot(*np.mgrid[-20:21, -20:21]) <= 20
    exact, simple = outline_of(disc), outline_of(disc, 1.0)
    assert len(simple.outer) < len(exact.outer) / 3
    assert (filled(simple.outer, disc.shape) != disc).mean() < 0.03
    thin = np.ones((1, 9), bool)
    assert sorted(map(tuple, outline_of(thin, 5).outer.tolist())) == [(0, 0), (0, 1), (9, 0), (9, 1)]
    ring = np.pad(np.zeros((2, 3), bool), 2, constant_values=True)
    assert len(outline_of(ring).holes) == 1 and outline_of(ring, smallest_hole=7).holes == ()


def test_regions_as_json():
    region = Region(1, 0.123456789, 3, 4, random_mask(0))
    again = Region.from_json(json.loads(json.dumps(region.to_json())))
    assert np.array_equal(again.mask, region.mask) and again.box == region.box and again.label == 1
    assert again.score == np.float32(region.score)


def test_coco_instances():
    coco = example().to_coco(tolerance=0)
    assert [category["name"] for category in coco["categories"]] == list(NAMES)
    assert coco["images"] == [{"id": 1, "file_name": "a b.jpg", "height": 20, "width": 30}]
    first, _, third = coco["annotations"]
    assert first["segmentation"] == [[20, 0, 20, 20, 30, 20, 30, 0]] and first["bbox"] == [20, 0, 10, 20]
    assert third["category_id"] == 2 and third["area"] == 154 and third["score"] == 0.75 and third["id"] == 3
    assert np.array_equal(coco_mask.decode(third["segmentation"])[4:6, 2:5], np.zeros((2, 3)))  # a hole: run lengths
    assert "connected part" in coco["info"]["description"]
    with pytest.raises(OvsegError, match="kind is 'boxes': choose"):
        example().to_coco("boxes")
    with pytest.raises(OvsegError, match="tolerance is -1"):
        example().to_coco(tolerance=-1)


def test_panoptic_segments_are_words():
    ids, infos = example().panoptic()
    assert np.array_equal(ids, example().label_map + 1) and ids.dtype == np.int32
    assert [(info["id"], info["area"], info["isthing"], info["bbox"]) for info in infos] == [
        (1, 200, 0, [20, 0, 10, 20]),
        (2, 354, 0, [0, 0, 20, 20]),
    ]
    coco = example().to_coco("panoptic")
    assert coco["annotations"][0] == {"image_id": 1, "file_name": "a b.png", "segments_info": infos}
    assert all(category["isthing"] == 0 for category in coco["categories"])


def test_yolo_lines():
    lines = example().to_yolo(tolerance=0).splitlines()
    assert lines[0] == "0 0.666667 0.000000 0.666667 1.000000 1.000000 1.000000 1.000000 0.000000"
    points = np.array(lines[2].split()[1:], float).reshape(-1, 2) * [30, 20]
    assert np.array_equal(filled(points, (20, 30)), example().regions().regions[2].full_mask((20, 30)))


def test_labelme_shapes():
    shapes = example().to_labelme()["shapes"]
    assert [shape["shape_type"] for shape in shapes] == ["polygon", "polygon", "mask"]
    assert sorted(shapes[0]["points"]) == [[20, 0], [20, 19], [29, 0], [29, 19]] and shapes[0]["score"] == 0.375
    thin = Segmentation.from_maps(np.zeros((1, 9), int), np.ones((1, 9)), NAMES, np.zeros((1, 9, 3), np.uint8))
    assert [shape["shape_type"] for shape in thin.to_labelme()["shapes"]] == ["mask"]


def test_cvat():
    root = ET.fromstring(example().to_cvat().encode())
    assert root.findtext("version") == "1.1" and root.findtext("meta/task/labels/label/name") == "sky & sea"
    shapes = [shape for shape in root.find("image") if shape.tag in ("polygon", "mask")]
    assert [shape.tag for shape in shapes] == ["polygon", "polygon", "mask"]
    assert shapes[0].findtext("attribute") == "0.375000" and shapes[2].get("width") == "8"
    lengths = list(map(int, shapes[2].get("rle").split(", ")))
    assert np.array_equal(decode_mask(lengths, 8, 20).T, example().regions().regions[2].mask)
    assert rows_run_lengths(np.array([[True, False], [False, True]])) == [0, 1, 2, 1]


def test_label_studio():
    task = example().to_label_studio(url="http://images/a.jpg")
    prediction = task["predictions"][0]
    assert task["data"] == {"image": "http://images/a.jpg"} and len(prediction["result"]) == 3
    assert prediction["result"][0]["value"]["polygonlabels"] == ["sky & sea"]
    assert max(max(point) for point in prediction["result"][0]["value"]["points"]) == 100
    assert prediction["score"] == pytest.approx((200 * 0.375 + 354 * 0.75) / 554, abs=1e-6)


def test_fiftyone_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(OvsegError, match="pip install fiftyone"):
        example().to_fiftyone()


def test_nothing_found():
    empty = Segmentation.from_maps(np.zeros((4, 5), int), np.zeros((4, 5)), NAMES, np.zeros((4, 5, 3), np.uint8))
    assert empty.to_coco()["annotations"] == [] and empty.to_yolo() == "" and empty.to_labelme()["shapes"] == []
    assert empty.panoptic()[1] == [] and empty.to_label_studio()["predictions"][0]["result"] == []
    assert ET.fromstring(empty.to_cvat().encode()).find("image/polygon") is None


def test_png_level_and_jpeg(tmp_path):
    result = example()
    large, small = result.save(tmp_path / "a", png_level=0), result.save(tmp_path / "b", png_level=9)
    assert large[0].stat().st_size > small[0].stat().st_size
    assert np.array_equal(cv2.imread(str(large[1]), -1), cv2.imread(str(small[1]), -1))
    assert result.save(tmp_path / "c.jpg", jpeg_quality=50)[0].stat().st_size > 0
