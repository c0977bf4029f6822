"""Labels that fit their description and cannot be what was meant, and what is left out: checked, counted, named."""

from __future__ import annotations

import json
import logging
import os

import numpy as np
import pytest
from own_folder import labels_of, save_image, save_json, source_of, write_masks, write_yaml
from PIL import Image

from ovseg.data import catalog
from ovseg.data.check import check_dataset, open_subject
from ovseg.data.custom.description import read_description
from ovseg.data.custom.registration import prepare
from ovseg.errors import OvsegError

BINARY = {"images": "images/*.jpg", "masks": "masks/*.png", "classes": ["background", "crack"]}


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OVSEG_CACHE", str(tmp_path / "cache"))


def found(path) -> dict[str, str]:
    return {finding.kind: finding.message for finding in check_dataset(open_subject(str(path))).findings}


def warnings_of(path, caplog) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="ovseg.data.custom.registration"):
        catalog.check_prepared(str(path))
    return "\n".join(record.getMessage() for record in caplog.records)


def test_masks_of_0_and_255(tmp_path, caplog):
    mask = np.zeros((4, 6), np.uint8)
    mask[1:3] = 255
    write_masks(tmp_path, {"a": mask, "b": mask})
    path = write_yaml(tmp_path, BINARY)
    report = check_dataset(open_subject(str(path)))
    assert [finding.kind for finding in report.wrong] == ["one_class"]
    assert "'crack' never occurs, while 24 pixels" in report.wrong[0].message
    assert "ids: {0: background, 255: crack}" in report.wrong[0].message
    assert "'crack' never occurs" in warnings_of(path, caplog)
    assert "'crack' never occurs" in prepare(read_description(path)).doubt  # from the index, too
    path = write_yaml(tmp_path, {**BINARY, "ignore_label": 255})  # as the template has it: worth a look
    assert not check_dataset(open_subject(str(path))).wrong and "ignored_class" in found(path)
    assert "'crack' never occurs" in warnings_of(path, caplog)
    for keys in ({"ids": {0: "background", 255: "crack"}}, {"ids": {0: 0, 255: "ignore"}}):
        path = write_yaml(tmp_path, {**BINARY, **keys})
        assert not check_dataset(open_subject(str(path))).wrong
        assert warnings_of(path, caplog) == ""
    path = write_yaml(tmp_path, {**BINARY, "classes": ["crack"]})
    assert "ids: {0: ignore, 255: crack}" in found(path)["ignored_class"]
    write_masks(tmp_path, {"c": np.ones((4, 6), np.uint8)})
    assert not {"one_class", "ignored_class"} & found(write_yaml(tmp_path, BINARY)).keys()


def test_masks_without_a_class_are_named_before_training(tmp_path, caplog):
    write_masks(tmp_path, {"a": np.full((4, 6), 255, np.uint8)})
    assert "no pixel of the masks" in warnings_of(write_yaml(tmp_path, {**BINARY, "first_id": 1}), caplog)


def test_rare_values_outside_the_list(tmp_path):
    mask = np.zeros((80, 80), np.uint8)
    mask[0, :6] = [7, 8, 9, 10, 11, 12]
    mask[40:] = 1
    write_masks(tmp_path, {"a": mask})
    for keys in ({}, {"unlisted": "ignore"}):
        message = found(write_yaml(tmp_path, {**BINARY, **keys}))["rare"]
        assert (
            "mine.yaml: 6 values outside the list fill less than 0.1% of the pixels each, value 7 (1 pixels)" in message
        )
    mask[:40] = 9
    write_masks(tmp_path, {"a": mask})
    assert "rare" not in found(write_yaml(tmp_path, BINARY))


@pytest.mark.parametrize(("orientation", "size"), [(3, (4, 6)), (2, (4, 6)), (6, (5, 5))])
def test_turned_images_of_the_size_of_their_masks(tmp_path, orientation, size):
    write_masks(tmp_path, {"a": np.eye(*size, dtype=np.uint8)})
    path = write_yaml(tmp_path, BINARY)
    assert not found(path)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / "images/a.jpg", exif=exif)
    assert f"EXIF orientation {orientation}" in found(path)["orientation"]


LOSSY = [
    ("JPEG", ".jpg", {}),
    ("JPEG", ".png", {}),
    ("WEBP", ".webp", {"quality": 80}),
    ("WEBP", ".png", {"quality": 80, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}),
    ("TIFF", ".tif", {"compression": "jpeg"}),
    ("JPEG2000", ".jp2", {"irreversible": True, "quality_layers": [50]}),
    ("AVIF", ".avif", {}),
]
LOSSLESS = [
    ("WEBP", ".webp", {"lossless": True}),
    ("WEBP", ".webp", {"lossless": True, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}),
    ("TIFF", ".tif", {"compression": "tiff_lzw"}),
    ("TIFF", ".tif", {"compression": "tiff_deflate"}),
    ("BMP", ".bmp", {}),
    ("GIF", ".gif", {}),
    ("JPEG2000", ".jp2", {"irreversible": False}),
]


@pytest.mark.parametrize(("kind", "suffix", "options"), LOSSY)
@pytest.mark.parametrize("colors", [None, {"background": "black", "crack": [1, 1, 1]}])
def test_lossy_masks_are_refused_by_their_content(tmp_path, kind, suffix, options, colors):
    write_masks(tmp_path, {"a": np.zeros((16, 16), np.uint8)})
    (tmp_path / "masks/a.png").unlink()
    image = Image.fromarray((np.eye(16) > 0).astype(np.uint8)).convert("RGB")
    image.save(tmp_path / f"masks/a{suffix}", kind, **options)
    with pytest.raises(OvsegError, match=rf"mask .*a\{suffix} is a \w+ file with lossy compression"):
        labels_of(tmp_path, **{**BINARY, "masks": "masks", "colors": colors})
    with pytest.raises(OvsegError, match="lossy compression"):
        prepare(read_description(write_yaml(tmp_path, {**BINARY, "masks": "masks"})))


@pytest.mark.parametrize(("kind", "suffix", "options"), LOSSLESS)
def test_lossless_masks_of_uncommon_formats_are_read(tmp_path, kind, suffix, options):
    write_masks(tmp_path, {"a": np.zeros((16, 16), np.uint8)})
    (tmp_path / "masks/a.png").unlink()
    mask = np.eye(16, dtype=np.uint8)
    image = Image.fromarray(mask)
    (image.convert("RGB") if kind == "WEBP" else image).save(tmp_path / f"masks/a{suffix}", kind, **options)
    np.testing.assert_array_equal(labels_of(tmp_path, **{**BINARY, "masks": "masks"}), mask)


def coco(folder):
    save_image(folder / "images/a.jpg")
    square = {"category_id": 1, "segmentation": [[0, 0, 3, 0, 3, 2, 0, 2]]}
    annotations = [
        {"id": 4, "image_id": 1, **square},
        {"id": 5, "image_id": 1, "category_id": 1, "segmentation": []},
        {"id": 6, "image_id": 9, **square},
    ]
    images = [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 6}]
    save_json(
        folder / "c.json", {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "crack"}]}
    )
    return write_yaml(folder, {"images": "images/*.jpg", "coco_instances": "c.json"})


def test_what_is_left_out_is_named_each_time(tmp_path, caplog):
    path = coco(tmp_path)
    messages = found(path)
    assert "annotation 5 (category 'crack'), which has no segmentation" in messages["left_out"]
    assert "1 annotations of" in messages["no_such_image"] and "image_id 9" in messages["no_such_image"]
    for _ in range(2):  # converting, and from the index
        text = warnings_of(path, caplog)
        assert "1 ids of annotations are no image's" in text and "image_id 9" in text
        assert "1 images have labels that are left out" in text and "annotation 5" in text
        path = write_yaml(tmp_path, path.read_text() + "# read again\n")


def test_a_conversion_that_was_killed_keeps_its_counts(tmp_path):
    path = coco(tmp_path)
    first = prepare(read_description(path))
    (index,) = (tmp_path / "cache").rglob("index.json")
    index.unlink()
    assert prepare(read_description(path)).left_out == first.left_out != ()
    content = json.loads(index.read_text())
    content.pop("left_out")  # as an older program wrote it
    index.write_text(json.dumps(content))
    assert prepare(read_description(path)).left_out == first.left_out


def test_values_that_are_ignored_by_request_are_named(tmp_path, caplog):
    write_masks(tmp_path, {"a": np.array([[0, 1, 7, 7]], np.uint8)})
    path = write_yaml(tmp_path, {**BINARY, "unlisted": "ignore"})
    assert "value 7 (2 pixels)" in found(path)["left_out"]
    assert "value 7 (2 pixels)" in warnings_of(path, caplog)


def test_a_file_of_the_same_size_and_time_is_noticed(tmp_path):
    write_masks(tmp_path, {"a": np.array([[1, 2]], np.uint8)})
    path = write_yaml(tmp_path, {**BINARY, "first_id": 1})
    before, mask = prepare(read_description(path)).pairing.pairs[0].labels, tmp_path / "masks/a.png"
    old, status = mask.read_bytes(), mask.stat()
    other = tmp_path / "other.png"
    Image.fromarray(np.array([[2, 1]], np.uint8)).save(other)
    assert len(other.read_bytes()) == len(old)
    os.replace(other, mask)
    os.utime(mask, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert prepare(read_description(path)).pairing.pairs[0].labels != before


def test_sizes_that_differ_stop_the_conversion(tmp_path):
    path = coco(tmp_path)
    save_image(tmp_path / "images/a.jpg", (6, 4))
    with pytest.raises(OvsegError, match=r"c\.json \(a\.jpg\) has 6x4 pixels, but its image .*a\.jpg 4x6"):
        prepare(read_description(path))


def test_a_json_file_that_goes_too_deep_is_refused(tmp_path):
    path = coco(tmp_path)
    (tmp_path / "c.json").write_text("[" * 100_000)
    with pytest.raises(OvsegError, match=r"cannot read .*c\.json"):
        source_of(tmp_path, coco_instances="c.json", classes=None)
    assert path.is_file()
