"""``MaskFiles``: which records belong to an image, and files that are refused."""

from __future__ import annotations

import json

import pytest
import torch

from ovseg.errors import OvsegError
from ovseg.proposals import MaskFiles
from ovseg.proposals.views import Views

HEIGHT, WIDTH = 6, 8


def code(area: int, height: int = HEIGHT, width: int = WIDTH) -> dict:
    return {"size": [height, width], "counts": [height * width - area, area]}


def areas(path, *requests: dict) -> list[list[float]]:
    image = torch.zeros(3, HEIGHT, WIDTH)
    found = MaskFiles(path)(Views([{"image": image, **request} for request in requests], [image] * len(requests)))
    return [masks.probabilities.flatten(1).sum(1).tolist() for masks in found]


@pytest.fixture
def written(tmp_path):
    def write(content) -> str:
        path = tmp_path / "masks.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(path)

    return write


def test_equal_names_in_several_folders(written):
    """Cityscapes and video frames: names repeat."""
    path = written(
        [{"file_name": f"{name}.jpg", "segmentation": code(area)} for name, area in (("x/1", 5), ("y/1", 7))]
    )
    assert areas(path, {"file_name": "/data/y/1.jpg"}, {"file_name": "/data/x/1.jpg"}) == [[7], [5]]
    with pytest.raises(OvsegError, match=r"has masks of x/1.jpg and of y/1.jpg, and 1.jpg may be either"):
        areas(path, {"file_name": "1.jpg"})
    path = written([{"file_name": f"1.{suffix}", "segmentation": code(len(suffix))} for suffix in ("jpg", "jpeg")])
    assert areas(path, {"file_name": "1.jpeg"}) == [[4]]


@pytest.mark.parametrize("number", [3, "3"])
def test_numbers(written, number):
    path = written({"images": None, "annotations": [{"image_id": 3, "segmentation": code(5)}]})
    assert areas(path, {"file_name": "a.jpg", "image_id": number}) == [[5]]


def test_byte_order_mark(written):
    assert areas(written("\ufeff" + json.dumps([{"file_name": "a", "segmentation": code(2)}])), {"file_name": "a"}) == [
        [2]
    ]


IMAGES = [{"id": 1, "file_name": "a.jpg"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"images": IMAGES, "annotations": [{"image_id": 1, "segmentation": [[1, 1, 4, 1, 4, 4]]}]},
            "not a run-length code",
        ),
        (
            {"images": IMAGES, "annotations": [{"file_name": "a.png", "segments_info": [{"id": 3}]}]},
            "not a run-length code",
        ),
        ([{"image_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}], "not a run-length code"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 1, "segmentation": code(5)}]}, "holds no masks of a.jpg"),
        ([{"image_id": [1], "segmentation": code(5)}], "holds no masks of a.jpg"),
        ([{"file_name": {"a": 1}, "segmentation": code(5)}], "holds no masks of a.jpg"),
        ([{"file_name": "a.jpg", "segmentation": {"size": [0, 0], "counts": []}}], "damaged mask"),
        ('[{"file_name": "a.jpg", "segmentation": {"size": [Infinity, 3], "counts": [1]}}]', "damaged mask"),
        ([{"file_name": "a.jpg", "segmentation": {"size": [6, 8]}}], "damaged mask"),
        ([{"file_name": "a.jpg", "segmentation": code(5, *size)} for size in ((6, 8), (12, 16))], "several sizes"),
    ],
)
def test_refused(written, content, message):
    with pytest.raises(OvsegError, match=message):
        areas(written(content), {"file_name": "a.jpg"})
