"""Samples of captioned images: the place on the canvas, the masks, the words."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as run_lengths

from ovseg.config import get_cfg
from ovseg.data.caption_mapper import CaptionMapper
from ovseg.data.caption_records import captioned_records
from ovseg.data.pseudo_masks import ImageMasks, read_pseudo_masks, shard_text
from ovseg.data.record_masks import Grid, record_masks
from ovseg.data.sampler import seeded
from ovseg.errors import OvsegError

HEIGHT, WIDTH, CANVAS = 30, 40, 80


@pytest.fixture
def image(tmp_path):
    """Each pixel's red value is its row, its green value its column."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    path = tmp_path / "image.png"
    Image.fromarray(np.stack([rows * 8, columns * 6, rows * 0], 2).astype(np.uint8)).save(path)
    return path


def mapper(words=str.split, **options):
    return CaptionMapper(**{"canvas": CANVAS, "words": words, "keep_prob": 1.0, "flip": "none"} | options)


def samples(mapper, record, count=60):
    for seed in range(count):
        with seeded(seed):
            yield mapper(record)


def whole(height=HEIGHT, width=WIDTH):
    return Grid(height, width, (height, width), np.arange(height), np.arange(width))


def left_half():
    return np.arange(WIDTH)[None].repeat(HEIGHT, 0) < WIDTH // 2


def rle(mask):
    code = run_lengths.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def test_jitter(image):
    sizes = [sample["image"].shape[1:] for sample in samples(mapper(), {"file_name": str(image)}, 300)]
    heights, widths = map(np.array, zip(*sizes, strict=True))
    assert widths.max() == CANVAS and widths.min() == pytest.approx(0.8 * CANVAS, abs=1)  # the longer side fits
    assert (widths == CANVAS).mean() == pytest.approx(0.5, abs=0.1)  # f > 1 is cut, f in [0.8, 1.2] uniform
    assert heights.max() == pytest.approx(1.2 * CANVAS * HEIGHT / WIDTH, abs=1)  # not cut: it fits the canvas
    uncut = widths < CANVAS
    assert np.abs(heights[uncut] - widths[uncut] * HEIGHT / WIDTH).max() <= 0.5


def test_cut_at_any_offset_and_masks_follow(image):
    record = {"file_name": str(image), "annotations": [{"segmentation": rle(left_half())}]}
    offsets = set()
    for sample in samples(mapper(), record, 100):
        (mask,) = sample["instances"].gt_masks
        pixels = sample["image"]
        assert mask.shape == pixels.shape[1:] and mask.dtype == torch.bool
        green = pixels[1].float()
        clear = (green - (WIDTH // 2 - 0.5) * 6).abs() > 6  # not at the border, where the image is interpolated
        assert (mask == (green < (WIDTH // 2 - 0.5) * 6))[clear].all()
        if pixels.shape[2] == CANVAS:
            offsets.add(int(green[0, 0]))
    assert len(offsets) > 3


def test_a_tall_image_is_cut_at_its_height(tmp_path):
    Image.fromarray(np.zeros((200, 3, 3), np.uint8)).save(tmp_path / "tall.png")
    shapes = {sample["image"].shape for sample in samples(mapper(), {"file_name": str(tmp_path / "tall.png")})}
    assert {shape[2] for shape in shapes} == {1} and max(shape[1] for shape in shapes) == CANVAS


@pytest.mark.parametrize(
    ("flip", "caption", "share"),
    [
        ("none", "dog", 0.0),
        ("horizontal", "dog", 0.5),
        ("horizontal", "dog left", 0.0),  # it would be wrong
        ("vertical", "dog left", 0.5),
        ("vertical", "upper dog", 0.0),
    ],
)
def test_flip(image, flip, caption, share):
    record = {"file_name": str(image), "captions": [caption], "annotations": [{"segmentation": rle(left_half())}]}
    axis = 2 if flip == "horizontal" else 1
    flipped = []
    for sample in samples(mapper(flip=flip), record, 150):
        channel = sample["image"][1 if axis == 2 else 0].float()
        flipped.append(bool(channel[0, 0] > channel[-1, -1]))
        if axis == 2:
            first, last = sample["instances"].gt_masks[0][0, [0, -1]].tolist()
            assert first != flipped[-1] and last == flipped[-1]
    assert np.mean(flipped) == pytest.approx(share, abs=0.12 if share else 0)


def test_one_caption_and_its_words_are_drawn(image):
    record = {"file_name": str(image), "captions": ["a b c d", "e", ""], "image_id": 7}
    drawn = list(samples(mapper(keep_prob=0.5), record, 300))
    assert {sample["caption"] for sample in drawn} == {"a b c d", "e", ""} and drawn[0]["image_id"] == 7
    for sample in drawn:
        assert isinstance(sample["caption_words"], list)
        assert set(sample["caption_words"]) <= set(sample["caption"].split())
    assert {len(sample["caption_words"]) for sample in drawn if sample["caption"] == "a b c d"} == {1, 2, 3, 4}
    assert all(sample["caption_words"] == ["e"] for sample in drawn if sample["caption"] == "e")  # one is kept
    assert all(sample["caption_words"] == [] for sample in drawn if sample["caption"] == "")


def test_a_random_choice_of_too_many_words(image):
    record = {"file_name": str(image), "captions": [" ".join(f"w{index:02d}" for index in range(20))]}
    drawn = [sample["caption_words"] for sample in samples(mapper(max_words=5), record)]
    assert all(len(words) == 5 and words == sorted(words) for words in drawn)
    assert len({word for words in drawn for word in words}) == 20


def test_samples_are_repeatable(image):
    record = {"file_name": str(image), "captions": ["a b c d e f"]}
    options = {"keep_prob": 0.5, "flip": "horizontal", "colors": True}
    first, second = (list(samples(mapper(**options), record, 5)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one["caption_words"] == other["caption_words"]
        torch.testing.assert_close(one["image"], other["image"])


def test_images_without_captions_or_masks(image):
    sample = mapper(flip="horizontal")({"file_name": str(image)})
    assert sample["caption_words"] == [] and sample["caption"] == ""
    masks = sample["instances"].gt_masks
    assert masks.shape == (0, *sample["image"].shape[1:]) and masks.dtype == torch.bool
    sample = mapper(words=lambda caption: ())({"file_name": str(image), "captions": ["it is"]})  # no usable word
    assert sample["caption_words"] == [] and sample["caption"] == "it is"
    sample = mapper(words=None)({"file_name": str(image), "captions": ["a b"]})  # a teacher reads no captions
    assert sample["caption_words"] == []


def panoptic(tmp_path):
    ids = np.where(left_half(), 300, 70_000)  # beyond a byte
    ids[:5] = 9
    ids[5:10] = 0
    png = np.stack([ids % 256, ids // 256 % 256, ids // 65536], 2).astype(np.uint8)
    Image.fromarray(png).save(tmp_path / "panoptic.png")
    infos = [
        {"id": 300, "category_id": 1, "isthing": True},
        {"id": 70_000, "category_id": 1, "iscrowd": 0},
        {"id": 9, "category_id": 2, "iscrowd": 1},
        {"id": 5, "category_id": 2},  # without a pixel
    ]
    return {"pan_seg_file_name": str(tmp_path / "panoptic.png"), "segments_info": infos}, ids


def test_panoptic_segments_without_crowds(image, tmp_path):
    record, ids = panoptic(tmp_path)
    masks = record_masks({"file_name": str(image), **record}, whole(), 255)
    np.testing.assert_array_equal(masks, np.stack([ids == 300, ids == 70_000]))


def test_label_maps_and_their_ignore_label(image, tmp_path):
    labels = np.where(left_half(), 3, 255).astype(np.uint8)
    labels[:5] = 0
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record = {"file_name": str(image), "sem_seg_file_name": str(tmp_path / "labels.png")}
    np.testing.assert_array_equal(record_masks(record, whole(), 255), np.stack([labels == 0, labels == 3]))
    record["ignore_label"] = 0
    np.testing.assert_array_equal(record_masks(record, whole(), 255), np.stack([labels == 3, labels == 255]))


def test_instances_as_run_lengths_and_polygons(image):
    polygon = [0, 0, WIDTH // 2, 0, WIDTH // 2, HEIGHT, 0, HEIGHT]
    code = rle(left_half())
    annotations = [
        {"segmentation": code},
        {"segmentation": {**code, "counts": code["counts"].encode()}},  # pycocotools' own form
        {"segmentation": [polygon]},
        {"segmentation": [np.array(polygon, float)]},  # Detectron2's form
        {"segmentation": code, "iscrowd": 1},
        {"segmentation": [[1, 1, 2, 2]]},  # no area
    ]
    masks = record_masks({"file_name": str(image), "annotations": annotations}, whole(), 255)
    assert masks.shape == (4, HEIGHT, WIDTH)
    np.testing.assert_array_equal(masks[0], left_half())
    assert all((mask == masks[0]).mean() > 0.95 for mask in masks)


def test_pseudo_masks(image, tmp_path):
    folder = tmp_path / "pseudo"
    folder.mkdir()
    mask = {"segmentation": rle(left_half()), "bbox": [0, 0, 1, 1], "area": 1, "score": 0.9}
    (folder / "masks-00000.json").write_text(shard_text([ImageMasks(1, "image.png", HEIGHT, WIDTH, [mask])]))
    (folder / "summary.json").write_text('{"shards": 1}')
    record = {"file_name": str(image), "pseudo_masks": read_pseudo_masks(folder).place("image.png")}
    np.testing.assert_array_equal(record_masks(record, whole(), 255), left_half()[None])
    cfg = openseg_cfg(DATASETS__PSEUDO_MASKS=[str(folder)])
    lacking = [{"file_name": str(image), "captions": ["a"]}, {"file_name": str(image), "annotations": []}]
    ((*ready, other),) = captioned_records(cfg, [[*lacking, {"file_name": "b.png"}]])
    assert all(record_masks(record, whole(), 255).shape[0] == 1 for record in ready) and "pseudo_masks" not in other
    assert record_masks(lacking[1], whole(), 255).shape[0] == 0
    with pytest.raises(OvsegError, match=r"PSEUDO_MASKS .* are of no image of DATASETS\.TRAIN that lacks masks"):
        captioned_records(cfg, [[{"file_name": "b.png", "captions": ["a"]}]])


@pytest.mark.parametrize("source", ["annotations", "pseudo_masks"])
def test_memory_is_that_of_one_whole_mask(tmp_path, source):
    height, width, count = 500, 1000, 40
    stripes = np.zeros((height, width), bool)
    stripes[:, :8] = True
    masks = [{"segmentation": rle(stripes), "bbox": [0, 0, 1, 1], "area": 1, "score": 0.9}] * count
    (tmp_path / "masks-00000.json").write_text(shard_text([ImageMasks(1, "a.png", height, width, masks)]))
    (tmp_path / "summary.json").write_text('{"shards": 1}')
    record = {"file_name": "a.png", source: masks}
    if source == "pseudo_masks":
        record[source] = read_pseudo_masks(tmp_path).place("a.png")
    grid = Grid(height, width, (height, width), np.arange(10), np.arange(16))
    tracemalloc.start()
    try:
        found = record_masks(record, grid, 255)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.shape == (count, 10, 16) and found[:, :, :8].all() and not found[:, :, 8:].any()
    assert peak < count / 3 * height * width


def test_masks_that_are_cut_away_are_left_out(image):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, 0] = True
    record = {"file_name": str(image), "annotations": [{"segmentation": rle(left_half())}, {"segmentation": rle(mask)}]}
    grid = Grid(HEIGHT, WIDTH, (HEIGHT, WIDTH), np.arange(HEIGHT), np.arange(5, WIDTH))
    assert record_masks(record, grid, 255).shape == (1, HEIGHT, WIDTH - 5)


def test_masks_of_another_size_or_damaged(image, tmp_path):
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(tmp_path / "small.png")
    name = {"file_name": str(image)}
    for record, message in [
        ({"sem_seg_file_name": str(tmp_path / "small.png")}, r"small\.png has 6x5 pixels but its image 40x30"),
        ({"annotations": [{"segmentation": rle(np.ones((5, 6)))}]}, "annotation 1 of .*run lengths are of 6x5 pixels"),
        ({"annotations": [{"segmentation": "mask"}]}, "annotation 1 of .*neither polygons nor run lengths"),
        ({"pan_seg_file_name": str(tmp_path / "small.png"), "segments_info": []}, "6x5 pixels but its image"),
        ({"pan_seg_file_name": str(tmp_path / "gone.png"), "segments_info": []}, r"gone\.png"),
    ]:
        with pytest.raises(OvsegError, match=message):
            mapper()({**name, **record})


def openseg_cfg(**keys):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "OpenSeg"
    cfg.DATASETS.TRAIN = ("captions_test",)
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


@pytest.mark.parametrize(
    ("record", "keys", "message"),
    [
        ({}, {}, "'captions_test' have neither captions nor masks"),
        ({"captions": ["a"]}, {}, r"has masks: .*SEG_LOSS_WEIGHT 0"),
        ({"annotations": []}, {}, "'captions_test' have neither captions nor masks"),
        ({"annotations": [], "captions": ["a"]}, {}, r"has masks: .*SEG_LOSS_WEIGHT 0"),
        ({"annotations": [{}]}, {}, r"has captions: .*GROUNDING_LOSS_WEIGHT 0"),
        ({"captions": "a dog"}, {}, "'a dog': give a list of texts"),
        ({"captions": 5}, {}, "are 5: give a list of texts"),
        ({"captions": [" "]}, {}, "neither captions nor masks"),
        ({"captions": ["a"]}, {"MODEL__OPENSEG__SEG_LOSS_WEIGHT": 0}, None),
        ({"annotations": [{}]}, {"MODEL__OPENSEG__GROUNDING_LOSS_WEIGHT": 0}, None),
        ({"annotations": [{}], "captions": ["a", ""]}, {}, None),
    ],
)
def test_data_without_what_a_loss_needs(record, keys, message):
    cfg, sets = openseg_cfg(**keys), [[{"file_name": "a.png", **record}]]
    if message is None:
        assert captioned_records(cfg, sets)[0][0]["captions"] == [c for c in record.get("captions", ()) if c]
    else:
        with pytest.raises(OvsegError, match=message):
            captioned_records(cfg, sets)
