"""Damaged raw files of the data sets: one sentence for each."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ovseg.data.prepare import BadFile, raw_labels
from ovseg.data.prepare.raw_formats import DetailImage, label_map, read_detail
from ovseg.errors import OvsegError
from tests.scripts import load_script

TEXTS = (
    *(b"", bytes(100), b"\xff\xfe", b"null", b"[]", b"{}", b"[" * 100_000, b'{"annotations": 3, "images": 3}'),
    *(b'{"annotations": [3]}', b'{"annotations": [{"file_name": 3, "segments_info": []}]}'),
    b'{"annotations": [{"file_name": "a.png", "segments_info": [{"id": 1e999, "category_id": 1}]}]}',
    b'{"images": [{"image_id": 1, "phase": "val", "height": 1e999, "width": 3, "file_name": "a"}]}',
)


@pytest.mark.parametrize("content", TEXTS, ids=range(len(TEXTS)))
def test_damaged_json(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    for read in (load_script("datasets/prepare_coco_panoptic.py").read_annotations, read_detail):
        with pytest.raises(OvsegError, match=r"a\.json is not .* JSON") as error:
            read(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("height", "width"), [(0, 5), (-3, 5), (10**6, 10**6), ("x", 5), (None, 5)])
def test_sizes_that_no_image_has(tmp_path, height, width):
    image = {"image_id": 1, "phase": "val", "height": height, "width": width, "file_name": "a.jpg"}
    (tmp_path / "a.json").write_text(json.dumps({"images": [image], "annos_segmentation": []}))
    with pytest.raises(OvsegError, match="is not the Detail API's JSON"):
        read_detail(tmp_path / "a.json")


@pytest.mark.parametrize(
    "mask",
    [
        {"size": [4, 4], "counts": "zzzz"},  # ends the process in pycocotools
        {"size": [4, 4], "counts": [3, 4]},
        {"size": [5, 4], "counts": [20]},
        {"size": 3, "counts": [16]},
        {"counts": [16]},
        {"size": [4, 4], "counts": None},
        None,
    ],
)
def test_masks_that_cannot_be_drawn(tmp_path, mask):
    with pytest.raises(BadFile, match=r"a\.json holds a mask that cannot be drawn"):
        DetailImage("val", (4, 4), [(1, mask)]).draw(tmp_path / "a.json")
    with pytest.raises(BadFile, match="cannot be drawn"):
        DetailImage("val", (4, 4), [(10**9, {"size": [4, 4], "counts": [0, 16]})]).draw(tmp_path / "a.json")


def test_files_under_the_names_of_others(tmp_path):
    """A format that is not one of the data sets', such as EPS, for which Pillow starts Ghostscript."""
    for number, content in enumerate(
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"", b"GIF89a" + bytes(50))
    ):
        path = tmp_path / f"{number}.png"
        path.write_bytes(content)
        with pytest.raises(BadFile, match="cannot read"):
            raw_labels(path)
    path = tmp_path / "whole.png"
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(path)
    content = path.read_bytes()
    for place in range(8, len(content), 3):
        path.write_bytes(content[:place] + b"\xff\xff" + content[place + 2 :])
        try:
            raw_labels(path)
        except BadFile as error:
            assert "\n" not in str(error)


def test_mat_files(tmp_path):
    for content in (b"", bytes(500), b"MATLAB 5.0 MAT-file" + bytes(120), b"\x00\x01" * 400):
        (tmp_path / "a.mat").write_bytes(content)
        with pytest.raises(BadFile, match=r"a\.mat is no PASCAL Context annotation"):
            label_map(tmp_path / "a.mat")
