"""Runs of label maps against pycocotools, OpenCV and supervision, which go through a map once per word."""

import cv2
import numpy as np
import pytest
import supervision as sv
from pycocotools import mask as coco_mask

from ovseg.io.run_lengths import decode_mask
from ovseg.result.drawing import colors_of, draw_regions
from ovseg.result.label_runs import LabelRuns, parts_of
from ovseg.result.regions import Region, find_regions


def label_map(kind: str) -> np.ndarray:
    random = np.random.default_rng(0)
    noise = random.integers(-1, 6, (41, 57)).astype(np.int32)
    blobs = cv2.resize(random.integers(-1, 6, (7, 9)).astype(np.int32), (57, 41), interpolation=cv2.INTER_NEAREST)
    return {
        "noise": noise,
        "blobs": blobs,
        "one word": np.full((41, 57), 3, np.int32),
        "nothing": np.full((41, 57), -1, np.int32),
        "columns": np.repeat(np.arange(57, dtype=np.int32)[None] // 7, 41, axis=0),
        "rows": np.repeat(np.arange(41, dtype=np.int32)[:, None] // 6, 57, axis=1),
        "rings": np.add.outer(np.abs(np.arange(41) - 20), np.abs(np.arange(57) - 28)).astype(np.int32) // 3 % 6,
        "one pixel": np.zeros((1, 1), np.int32),
        "one row": noise[:1],
        "one column": noise[:, :1].copy(),
        "many labels": np.where(noise > 3, noise * 1000, noise),
    }[kind]


KINDS = (
    "noise", "blobs", "one word", "nothing", "columns", "rows", "rings", "one pixel", "one row", "one column",
    "many labels",
)  # fmt: skip


def encoded(mask: np.ndarray) -> str:
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode("ascii")


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_and_run_lengths(kind):
    labels = label_map(kind)
    runs = LabelRuns.of(labels)
    assert runs.found == tuple(np.unique(labels[labels >= 0]).tolist())
    for k in runs.found:
        mask = labels == k
        rows, columns = runs.window(k)
        part = mask[rows, columns]
        assert part.sum() == mask.sum()
        assert part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any()
        assert runs.encode(k) == {"size": list(labels.shape), "counts": encoded(mask)}


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_those_of_each_mask(kind):
    labels = label_map(kind)
    expected = []
    for k in np.unique(labels[labels >= 0]).tolist():
        count, parts, stats, _ = cv2.connectedComponentsWithStats((labels == k).astype(np.uint8), connectivity=4)
        expected += [(k, *stats[n].tolist(), (parts == n)) for n in range(1, count)]
    found = parts_of(labels)
    assert len(found) == len(expected)
    for part, (label, left, top, width, height, area, mask) in zip(found, expected, strict=True):
        assert (part.label, part.left, part.top, part.area) == (label, left, top, area)
        assert np.array_equal(part.mask, mask[top : top + height, left : left + width])


@pytest.mark.parametrize("kind", KINDS)
def test_run_lengths_of_regions_are_those_of_the_image(kind):
    labels = label_map(kind)
    for region in find_regions(labels, None, [0.5] * 6000):
        found = region.run_lengths(labels.shape)
        assert found == {"size": list(labels.shape), "counts": encoded(region.full_mask(labels.shape))}
        kept = region.to_json()
        assert np.array_equal(Region.from_json(kept).mask, region.mask)
        assert np.array_equal(decode_mask(kept["counts"], *region.mask.shape), region.mask)


def drawn_by_supervision(image: np.ndarray, labels: np.ndarray, count: int, outlined: bool) -> np.ndarray:
    """Return the drawing of one word after the other at full size."""
    scene = np.ascontiguousarray(image[:, :, ::-1])
    found = [k for k in np.unique(labels).tolist() if 0 <= k < count]
    for k, color in colors_of(found).items():
        mask = labels == k
        region = sv.Detections(xyxy=sv.mask_to_xyxy(mask[None]), mask=mask[None], class_id=np.array([k]))
        scene = sv.MaskAnnotator(color=color, opacity=0.5).annotate(scene, region)
        if outlined:
            thickness = max(1, round(max(image.shape[:2]) / 500))
            scene = sv.PolygonAnnotator(color=color, thickness=thickness).annotate(scene, region)
    return scene[:, :, ::-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outlined", [True, False])
@pytest.mark.parametrize("enlarged", [1, 24])  # outlines of one and of several pixels
def test_drawings_are_those_of_one_word_after_the_other(kind, outlined, enlarged):
    labels = np.kron(label_map(kind), np.ones((enlarged, enlarged), np.int32))
    image = np.random.default_rng(1).integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
    drawn = draw_regions(image, labels, [f"word {k}" for k in range(5)], outlined=outlined, named=False)
    assert np.array_equal(drawn, drawn_by_supervision(image, labels, 5, outlined))
