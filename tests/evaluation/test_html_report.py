from __future__ import annotations

import base64
import html.parser
import io
import re
from pathlib import Path

import evaluation_standin as standin
import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from ovseg.errors import OvsegError
from ovseg.evaluation import runner
from ovseg.evaluation.confusion import label_runs
from ovseg.evaluation.predictions import WorstImage, WorstImages, read_worst
from ovseg.evaluation.report import confusion_pairs
from ovseg.evaluation.sem_seg import SeenImage
from tests.scripts import load_script

EVIL = '<script>alert("x")</script> & "cat"'


class Page(html.parser.HTMLParser):
    """Tags, their attributes, and the text of a page that must be well nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open = "", []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def folder(data_folder) -> Path:
    """Of an evaluation with a report, whose classes and files have names that are no good HTML."""
    for kind in ("images", "labels"):
        (data_folder / kind / "0.png").rename(data_folder / kind / "<b>&0.png")
    MetadataCatalog.get(standin.NAME).stuff_classes[1] = EVIL
    try:
        runner.evaluate_all(standin.configuration(data_folder / "out", "TEST.REPORT", True), standin.StandIn())
    finally:
        standin.CLASSES[1] = "striped cat"
    return data_folder / "out" / "inference" / standin.NAME


def test_report_is_one_file_with_everything_in_it(folder):
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1  # ours
    assert EVIL in page.text
    assert "<b>&0.png" in page.text
    for word in (
        "mIoU-union",
        "mIoU-gt",
        "called mIoU",
        "tag",
        "variant",
        "ignore_label",
        "Worst classes",
        "Confused most",
    ):
        assert word in page.text
    sources = [attrs[name] for _, attrs in page.tags for name in ("src", "href") if name in attrs]
    assert len(sources) == 3 * standin.NUM_IMAGES  # fewer than a report holds
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.search(r"https?://|@import|url\(", text)
    policy = next(attrs["content"] for tag, attrs in page.tags if "Content-Security-Policy" in attrs.values())
    assert "default-src 'none'" in policy


def test_images_show_image_truth_and_prediction(folder):
    page = Page((folder / "report.html").read_text())
    worst = read_worst(folder / "worst_images.npz")[0]
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    image, truth, predicted = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))).astype(int) for source in sources[:3]
    )
    original = Image.open(worst.file_name)
    assert image.shape == truth.shape == predicted.shape
    assert max(image.shape) == 420
    assert abs(image.shape[1] / image.shape[0] - original.width / original.height) < 0.02
    resized = np.asarray(original.resize(image.shape[1::-1], Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(image - resized).mean() < 3  # as JPEG
    wrong = np.asarray(Image.open(worst.label_file).resize(image.shape[1::-1], 0)) != np.asarray(
        Image.fromarray(worst.label_map()).resize(image.shape[1::-1], 0)
    )
    wrong[: 3 * image.shape[0] // original.height] = False  # ignored pixels
    differs = np.abs(truth - predicted).sum(axis=2) > 40
    assert differs[wrong].mean() > 0.8 > 0.3 > differs[~wrong].mean()


def test_report_again_by_the_tool_without_the_images(folder, capsys):
    first = (folder / "report.html").read_text()
    report = load_script("tools/report.py")
    report.main([str(folder)])
    assert (folder / "report.html").read_text() == first
    assert str(folder / "report.html") in capsys.readouterr().out
    Path(read_worst(folder / "worst_images.npz")[0].file_name).unlink()
    report.main([str(folder)])
    assert "there is no image" in Page((folder / "report.html").read_text()).text
    (folder / "worst_images.npz").unlink()
    report.main([str(folder)])
    assert "Worst images" not in (folder / "report.html").read_text()
    (folder / "confusion.npz").write_bytes(b"PK")
    with pytest.raises(OvsegError, match=r"confusion\.npz cannot be read"):
        report.main([str(folder)])
    with pytest.raises(OvsegError, match=r"no inference/<data set>/results\.json in .*: evaluate with OUTPUT_DIR"):
        report.main([str(folder.parents[2])])


def test_pairs_are_ordered_by_their_share_of_the_true_class():
    conf = np.array([[5, 3, 0, 7], [5, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])  # column = truth, the last ignored
    assert confusion_pairs(conf, ["a", "b", "c"]) == [
        {"true": "b", "called": "a", "share": 75.0, "pixels": 3},
        {"true": "a", "called": "b", "share": 50.0, "pixels": 5},
        {"true": "b", "called": "c", "share": 25.0, "pixels": 1},
    ]


def seen(index: int, right: int) -> SeenImage:
    """An image of ten pixels of class 1, so many of them right."""
    pred = np.array([[1] * right + [0] * (10 - right)])
    return SeenImage(index, f"{index}.jpg", f"{index}.png", pred, label_runs(pred, np.ones((1, 10), int), 2, None))


def test_the_worst_are_kept_whatever_the_order_and_however_they_are_spread(tmp_path):
    rights = [9, 3, 3, 7, 1, 3, 10, 0]
    whole = WorstImages(tmp_path / "whole.npz", 2, count=4)
    parts = [WorstImages(tmp_path / "parts.npz", 2, count=4) for _ in range(3)]
    for index, right in enumerate(rights):
        whole.see(seen(index, right))
    for index, right in reversed(list(enumerate(rights))):
        parts[index % 3].see(seen(index, right))
    for part in parts[1:]:
        parts[0].add(part.state())
    for keeper in (whole, parts[0]):
        keeper.finish()
    kept = read_worst(tmp_path / "whole.npz")
    assert [(image.index, image.accuracy) for image in kept] == [(7, 0.0), (4, 0.1), (1, 0.3), (2, 0.3)]
    assert kept == read_worst(tmp_path / "parts.npz")
    np.testing.assert_array_equal(kept[1].label_map(), [[1] + [0] * 9])


def test_an_image_without_counted_pixels_is_not_among_the_worst(tmp_path):
    ignored = label_runs(np.zeros((1, 3), int), np.full((1, 3), 255), 2, 255)
    worst = WorstImages(tmp_path / "w.npz", 2)
    worst.see(SeenImage(0, "a.jpg", "a.png", np.zeros((1, 3), int), ignored))
    worst.finish()
    assert read_worst(tmp_path / "w.npz") == []
    assert read_worst(tmp_path / "none.npz") is None
    (tmp_path / "w.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(OvsegError, match=r"w\.npz cannot be read"):
        read_worst(tmp_path / "w.npz")


def test_maps_of_many_classes_keep_their_values():
    file = io.BytesIO()
    Image.fromarray(np.array([[846, 3]], dtype=np.uint16)).save(file, "PNG")
    np.testing.assert_array_equal(WorstImage(0.0, 0, "", "", file.getvalue()).label_map(), [[846, 3]])
