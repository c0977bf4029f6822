from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from ovseg.errors import OvsegError
from ovseg.result import drawing
from ovseg.result.drawing import DRAWING_SIZES, colors_of, draw_legend, draw_regions, draw_result, word_color
from ovseg.result.segmentation import UNLABELLED, Segmentation, output_files

NAMES = ("cat", "sofa", "dog")


def example(names=NAMES, height=40, width=60, source=None):
    """Left half word 0, right half word 1, the top 10 rows unpainted."""
    labels = np.zeros((height, width), dtype=np.int64)
    labels[:, width // 2 :] = 1
    scores = np.where(labels == 0, 0.25, 0.75).astype(np.float32)
    scores[:10] = 0
    image = np.full((height, width, 3), 120, dtype=np.uint8)
    return Segmentation.from_maps(labels, scores, names, image, source)


def test_unpainted_pixels_are_unlabelled_and_scores_are_means():
    result = example()
    assert result.label_map.dtype == np.int32
    assert (result.label_map[:10] == UNLABELLED).all() and (result.label_map[10:, :30] == 0).all()
    assert result.scores.tolist() == [0.25, 0.75, 0.0]
    assert result.areas.tolist() == [900, 900, 0]
    assert result.fractions.tolist() == [0.375, 0.375, 0.0]
    assert result.found == (0, 1)


def test_is_shown_in_one_line():
    assert repr(example()) == "Segmentation(60x40 pixels, 3 words: cat 37.5%, sofa 37.5%)"


def test_labels_beyond_the_words_are_unlabelled():
    result = example(names=("cat",))  # label 1 is what the model added: others
    assert result.names == ("cat",) and result.areas.tolist() == [900]
    assert set(np.unique(result.label_map)) == {UNLABELLED, 0}


def test_masks_by_word():
    result = example()
    assert np.array_equal(result.mask("Sofa "), result.label_map == 1)
    assert not result.mask("dog").any()
    assert list(result.masks) == ["cat", "sofa"]
    with pytest.raises(OvsegError, match=r"'soffa' is not a word of this segmentation: did you mean 'sofa'\?"):
        result.mask("soffa")


def test_detections_and_rle_tell_the_same():
    result = example()
    detections = result.to_detections()
    assert detections.class_id.tolist() == [0, 1] and detections["class_name"].tolist() == ["cat", "sofa"]
    assert detections.confidence.tolist() == [0.25, 0.75]
    assert [round(float(v)) for v in detections.xyxy[1]] == [30, 10, 59, 39]
    for rle, mask in zip(result.to_coco_rle(), detections.mask, strict=True):
        assert np.array_equal(coco_mask.decode(rle["segmentation"]).astype(bool), mask)
        assert rle["area"] == mask.sum()
    assert result.to_coco_rle()[1]["bbox"] == [30, 10, 30, 30]


def test_nothing_found():
    image = np.zeros((4, 5, 3), np.uint8)
    result = Segmentation.from_maps(np.zeros((4, 5), int), np.zeros((4, 5)), NAMES, image)
    assert result.found == () and result.masks == {} and result.to_coco_rle() == []
    detections = result.to_detections()
    assert len(detections) == 0 and detections.mask.shape == (0, 4, 5) and detections["class_name"].tolist() == []
    assert np.array_equal(result.overlay(), image)
    assert result.to_json()["unlabelled_fraction"] == 1


def test_pixels_below_a_limit_are_unlabelled():
    labels, scores = np.array([[0, 0, 1, 1]]), np.array([[0.03, 0.04, -0.5, 0.0]], np.float32)
    image = np.zeros((1, 4, 3), np.uint8)
    assert Segmentation.from_maps(labels, scores, NAMES, image).label_map.tolist() == [[0, 0, 1, -1]]
    found = Segmentation.from_maps(labels, scores, NAMES, image, min_score=np.float32(0.04).item())
    assert found.label_map.tolist() == [[-1, 0, -1, -1]] and found.areas.tolist()[:2] == [1, 0]
    with pytest.raises(OvsegError, match="min_score is 'low': give a number"):
        Segmentation.from_maps(labels, scores, NAMES, image, min_score="low")


@pytest.mark.parametrize(("count", "dtype", "blank"), [(255, np.uint8, 255), (256, np.uint16, 65535)])
def test_label_map_file_is_8_or_16_bit(tmp_path, count, dtype, blank):
    names = [f"word {k}" for k in range(count)]
    labels = np.arange(count).reshape(1, -1)
    scores = np.ones(labels.shape)
    scores[0, 7] = 0
    image = np.zeros((1, count, 3), np.uint8)
    files = Segmentation.from_maps(labels, scores, names, image).save(tmp_path / "x")
    written = np.array(Image.open(files[1]))
    assert written.dtype == dtype
    assert written[0, 7] == blank and np.delete(written[0], 7).tolist() == [k for k in range(count) if k != 7]


def test_json_holds_the_masks(tmp_path):
    result = example(names=("кошка", "sofa", "dog"), source="photos/a.jpg")
    data = json.loads(result.save(tmp_path)[2].read_text(encoding="utf-8"))
    assert data["image"] == "photos/a.jpg" and (data["height"], data["width"]) == (40, 60)
    assert data["names"] == ["кошка", "sofa", "dog"]
    assert [s["category_name"] for s in data["segments"]] == ["кошка", "sofa"]
    assert data["segments"][0]["fraction"] == 0.375 and data["unlabelled_fraction"] == 0.25
    assert coco_mask.decode(data["segments"][0]["segmentation"]).sum() == 900


@pytest.mark.parametrize(
    ("where", "drawing"),
    [
        ("", "a.b.png"),  # an existing folder: named after the image
        ("new/", "new/a.b.png"),
        ("prefix", "prefix.png"),
        ("v1.2", "v1.2.png"),
        ("x.png", "x.png"),
        ("x.JPG", "x.JPG"),
    ],
)
def test_where_files_go(tmp_path, where, drawing):
    files = example(source="photos/a.b.jpg").save(f"{tmp_path}/{where}")
    assert files == output_files(tmp_path / drawing)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(files)
    assert np.asarray(Image.open(files[0]).convert("RGB")).shape[1] == DRAWING_SIZES[0]


def test_an_interrupted_save_leaves_nothing_half_written(tmp_path, monkeypatch):
    def interrupt(self, *args, **kwargs):
        with open(args[0], "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        example().save(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_saving_where_one_cannot(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OvsegError, match="cannot write"):
        example().save(tmp_path / "file" / "x")


def test_overlay_colours_only_what_is_labelled():
    result = example()
    drawn = result.overlay()
    assert drawn.shape == (40, 60, 3) and drawn.dtype == np.uint8
    assert (drawn[:8] == 120).all()
    assert (result.image == 120).all()  # the image itself is not drawn on
    expected = (np.array(word_color(0).as_rgb()) + 120) / 2
    assert np.abs(drawn[13, 3] - expected).max() <= 1.5


def test_names_are_written_on_large_regions():
    labels = np.zeros((200, 300), int)
    image = np.full((200, 300, 3), 120, np.uint8)
    plate = np.array(word_color(0).as_rgb())
    drawn = draw_regions(image, labels, ["cat"])
    centre = drawn[80:120, 100:200].reshape(-1, 3)
    assert (centre == plate).all(1).sum() > 100  # the plate behind the name is opaque
    assert (centre.max(1) < 60).sum() > 10  # and its letters are dark


def test_colours_are_stable_and_distinct():
    colors = [word_color(k).as_rgb() for k in range(60)]
    assert colors == [word_color(k).as_rgb() for k in range(60)]
    assert len(set(colors)) == 60
    first = np.array(colors[:14], float)
    distances = np.linalg.norm(first[:, None] - first[None], axis=-1) + np.eye(14) * 1e3
    assert distances.min() > 50


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3000), (3000, 1), (13, 7), (640, 640), (30, 6000)])
def test_drawings_of_any_size_get_a_readable_legend(height, width):
    labels = np.zeros((height, width), int)
    labels[:, width // 2 :] = 1
    names = ["cat", "a name so long that it cannot stand on any image of a normal size " * 3]
    drawing = draw_result(np.zeros((height, width, 3), np.uint8), labels, names)
    longest = max(height, width)
    expected = min(max(longest, DRAWING_SIZES[0]), DRAWING_SIZES[1])
    assert drawing.dtype == np.uint8 and max(drawing.shape[:2]) >= expected
    legend = drawing[-60:]
    assert (legend.min(-1) < 120).any()  # there are letters below the image
    assert drawing.shape[1] >= 320


def test_letters_that_no_font_has_do_not_stop_the_drawing():
    draw_result(np.zeros((50, 50, 3), np.uint8), np.zeros((50, 50), int), ["猫 😀 \u0e19\u0e01"])


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="differ in size"):
        Segmentation(np.zeros((2, 3), np.int32), ("a",), np.zeros(1), np.zeros((3, 2, 3), np.uint8))
    with pytest.raises(ValueError, match="1 names but 2 scores"):
        Segmentation(np.zeros((2, 3), np.int32), ("a",), np.zeros(2), np.zeros((2, 3, 3), np.uint8))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_refused(bad):
    scores = np.ones((4, 5))
    scores[2, 3] = bad
    with pytest.raises(OvsegError, match=r"the scores of a\.jpg are not all numbers .*: the weights are damaged, or"):
        Segmentation.from_maps(np.zeros((4, 5), int), scores, NAMES, np.zeros((4, 5, 3), np.uint8), "a.jpg")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (2000, 3)])
@pytest.mark.parametrize("score", [0, 1])
def test_every_output_of_odd_sizes_with_and_without_labels(tmp_path, suffix, size, score):
    labels = np.zeros(size, int)
    result = Segmentation.from_maps(labels, np.full(size, score), NAMES, np.zeros((*size, 3), np.uint8))
    files = result.save(tmp_path / f"x{suffix}")
    assert Image.open(files[0]).size[0] >= 320
    data = json.loads(files[2].read_text())
    assert data["unlabelled_fraction"] == 1 - score and len(data["segments"]) == len(result.to_detections()) == score
    assert [rle["area"] for rle in result.to_coco_rle()] == [labels.size] * score


def test_colours_follow_what_was_found_not_the_list():
    labels = np.repeat([3, 77, 140], 20)[None].repeat(80, axis=0)
    result = Segmentation.from_maps(
        labels, np.ones(labels.shape), [f"word {k}" for k in range(150)], np.zeros((80, 60, 3), np.uint8)
    )
    drawn = result.overlay()
    for place, column in enumerate((10, 30, 50)):
        assert np.abs(drawn[75, column] * 2.0 - word_color(place).as_rgb()).max() <= 3
    stays = result.overlay(colors={3: word_color(8), 77: word_color(9), 140: word_color(10)})
    assert np.abs(stays[75, 10] * 2.0 - word_color(8).as_rgb()).max() <= 3


def test_the_first_twenty_colours_are_told_apart():
    colors = np.array([word_color(k).as_rgb() for k in range(20)], np.float32)[None] / 255
    lab = cv2.cvtColor(colors, cv2.COLOR_RGB2LAB)[0]
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + np.eye(20) * 1e3
    assert distances.min() > 25  # of CIE 1976; about 2.3 is just noticed


def test_a_series_of_images_keeps_its_colours():
    first = colors_of([4, 2])
    second = colors_of([1, 4], first)
    assert list(first) == [2, 4] and first.items() <= second.items()
    assert second[1].as_rgb() == word_color(2).as_rgb()


@pytest.mark.parametrize(("height", "width", "where"), [(40, 60, "right"), (40, 200, "below")])
def test_the_original_stands_with_the_overlay(height, width, where):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    labels = np.zeros((height, width), int)
    drawn = draw_result(image, labels, ["cat"])
    assert drawn.shape[1] == DRAWING_SIZES[0]
    size = (636, 424) if where == "right" else (1280, 256)
    original = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    assert np.array_equal(drawn[: size[1], : size[0]], original)
    regions = drawn[: size[1], size[0] + 8 :] if where == "right" else drawn[size[1] + 8 :][: size[1]]
    assert np.abs(regions[1:-1, 1:-1].mean((0, 1)) - (image.mean((0, 1)) + word_color(0).as_rgb()) / 2).max() < 12


def test_a_legend_of_very_many_words_ends():
    shares = [(k, 1 / 900) for k in range(900)]
    legend = draw_legend(320, shares, [f"a rather long word of number {k}" for k in range(900)])
    assert legend.shape[0] < 10_000


@pytest.mark.parametrize(
    ("words", "script"),
    [
        (["\u732b", "\u72ac"], "CJK"),
        (["\u0928\u092e\u0938\u094d\u0924\u0947"], "Devanagari"),
        (["\U0001f408"], "emoji and symbols"),
    ],
)
def test_a_missing_font_is_said_once(monkeypatch, caplog, words, script):
    monkeypatch.setattr(drawing.font_manager, "findSystemFonts", lambda: [])
    for cache in (drawing._font_file, drawing._warn_once):
        cache.cache_clear()
    for word in (*words, *words):
        drawing.text_font(word, 12)
    assert [record.args for record in caplog.records] == [(script,)]
    drawing._font_file.cache_clear()


def test_words_that_can_be_drawn_give_no_warning(caplog):
    for word in ("caf\u00e9", "\u043a\u043e\u0448\u043a\u0430", "\u0645\u0631\u062d\u0628\u0627", "e\u0301 x"):
        drawing.text_font(word, 12)
    assert not caplog.records
