"""Mappers, sampler and loaders."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image

from ovseg.data.loader import build_test_loader, build_train_loader
from ovseg.data.mapper import PadToMultiple, SemSegTestMapper, SemSegTrainMapper
from ovseg.data.sampler import StreamBatchSampler, mix, seeded
from ovseg.errors import OvsegError
from tests.engine import toy

OFF = {
    "INPUT__CROP__ENABLED": False,
    "INPUT__COLOR_AUG_SSD": False,
    "INPUT__RANDOM_FLIP": "none",
    "INPUT__MIN_SIZE_TRAIN": (20,),
}


def test_train_mapper_pads_and_splits_into_masks(dataset, tmp_path):
    cfg = toy.small_cfg(tmp_path, **OFF, INPUT__SIZE_DIVISIBILITY=32)
    sample = SemSegTrainMapper(cfg)(dataset[0])
    image = np.array(Image.open(dataset[0]["file_name"]))
    labels = np.array(Image.open(dataset[0]["sem_seg_file_name"]))
    assert sample["image"].dtype == torch.uint8 and sample["image"].shape == (3, 32, 32)
    np.testing.assert_array_equal(sample["image"][:, :20, :24].permute(1, 2, 0), image)
    assert (sample["image"][:, 20:] == 128).all() and (sample["image"][:, :, 24:] == 128).all()
    truth = sample["instances"]
    assert truth.gt_classes.tolist() == [0, 1] and truth.gt_classes.dtype == torch.int64
    assert truth.gt_masks.dtype == torch.bool and truth.gt_masks.shape == (2, 32, 32)
    assert truth.image_size == (32, 32)
    for label, mask in enumerate(truth.gt_masks):
        np.testing.assert_array_equal(mask[:20, :24], labels == label)
        assert not mask[20:].any() and not mask[:, 24:].any()
    assert sample["meta"] == {"dataset_name": toy.DATASET}
    assert "sem_seg_file_name" in dataset[0], "the record itself is not changed"


def test_image_without_labels_has_no_masks(dataset, tmp_path):
    truth = SemSegTrainMapper(toy.small_cfg(tmp_path, **OFF))(dataset[-1])["instances"]
    assert truth.gt_classes.shape == (0,) and truth.gt_classes.dtype == torch.int64
    assert truth.gt_masks.shape == (0, 32, 32) and truth.gt_masks.dtype == torch.bool


def test_labels_are_resized_with_their_image(dataset, tmp_path):
    cfg = toy.small_cfg(tmp_path, **{**OFF, "INPUT__MIN_SIZE_TRAIN": (40,)}, INPUT__SIZE_DIVISIBILITY=-1)
    sample = SemSegTrainMapper(cfg)(dataset[0])
    labels = np.array(Image.open(dataset[0]["sem_seg_file_name"]))
    assert sample["image"].shape == (3, 40, 48)
    np.testing.assert_array_equal(sample["instances"].gt_masks[1], np.kron(labels == 1, np.ones((2, 2), bool)))


def test_bgr(dataset, tmp_path):
    rgb, bgr = (
        SemSegTrainMapper(toy.small_cfg(tmp_path, **OFF, INPUT__FORMAT=order))(dataset[0])["image"]
        for order in ("RGB", "BGR")
    )
    torch.testing.assert_close(rgb, bgr.flip(0))


@pytest.mark.parametrize(("size", "padded"), [((7, 8), (8, 8)), ((8, 8), (8, 8)), ((9, 20), (16, 24))])
def test_padding_reaches_the_next_multiple(size, padded):
    transform = PadToMultiple(8, 255).get_transform(np.zeros((*size, 3), np.uint8))
    assert transform.apply_image(np.zeros((*size, 3), np.uint8)).shape == (*padded, 3)
    labels = transform.apply_segmentation(np.zeros(size))
    assert labels.shape == padded and labels.sum() == 255 * (np.prod(padded) - np.prod(size))


def test_category_area_constraint_is_used(tmp_path):
    labels = np.zeros((40, 40), np.uint8)
    labels[:, 20:] = 1
    files = {"file_name": str(tmp_path / "i.png"), "sem_seg_file_name": str(tmp_path / "l.png")}
    Image.fromarray(labels * 100).convert("RGB").save(files["file_name"])
    Image.fromarray(labels).save(files["sem_seg_file_name"])
    toy.register([files])
    options = {**OFF, "INPUT__CROP__ENABLED": True, "INPUT__MIN_SIZE_TRAIN": (40,)}
    counts = {}
    for area in (1.0, 0.75):
        mapper = SemSegTrainMapper(toy.small_cfg(tmp_path, **options, INPUT__CROP__SINGLE_CATEGORY_MAX_AREA=area))
        with seeded(0):
            counts[area] = [len(mapper(files)["instances"]) for _ in range(40)]
    assert min(counts[1.0]) == 1
    assert sum(counts[0.75]) > sum(counts[1.0])


def test_wrong_files(dataset, tmp_path):
    mapper = SemSegTrainMapper(toy.small_cfg(tmp_path, **OFF))
    Image.fromarray(np.full((20, 24), 9, np.uint8)).save(tmp_path / "nine.png")
    Image.fromarray(np.zeros((10, 24), np.uint8)).save(tmp_path / "small.png")
    Image.new("RGB", (24, 20)).save(tmp_path / "colour.png")
    (tmp_path / "empty.png").touch()
    for name, message in [
        ("nine.png", r"nine\.png holds the value 9, .*NUM_CLASSES = 2"),
        ("small.png", r"small\.png has 24x10 pixels but its image .* 24x20"),
        ("colour.png", r"colour\.png has shape \(20, 24, 3\)"),
        ("empty.png", r"empty\.png cannot be read"),
        ("missing.png", r"missing\.png is missing"),
    ]:
        with pytest.raises(OvsegError, match=message):
            mapper({**dataset[0], "sem_seg_file_name": str(tmp_path / name)})
    with pytest.raises(OvsegError, match=r"there is no image .*nowhere\.jpg"):
        mapper({**dataset[0], "file_name": "nowhere.jpg"})


def test_data_sets_of_different_words_cannot_be_mixed(dataset, tmp_path):
    toy.register(dataset, "engine_test_other")
    cfg = toy.small_cfg(tmp_path, DATASETS__TRAIN=f"('{toy.DATASET}', 'engine_test_other')")
    assert len(build_train_loader(cfg, seed=0).dataset) == 2 * len(dataset)
    MetadataCatalog.remove("engine_test_other")
    MetadataCatalog.get("engine_test_other").set(stuff_classes=toy.CLASSES, ignore_label=254)
    with pytest.raises(OvsegError, match="differ in classes or ignore label"):
        build_train_loader(cfg, seed=0)


def test_stream_is_the_same_from_anywhere_and_for_any_number_of_processes():
    def positions(start=0, rank=0, world=1, batches=10):
        return list(islice(StreamBatchSampler(7, 4, 5, start, rank, world), batches))

    whole = positions()
    assert [position for batch in whole for position, _ in batch] == list(range(40))
    indices = [index for batch in whole for _, index in batch]
    assert sorted(indices[:7]) == sorted(indices[7:14]) == list(range(7))
    assert indices[:7] != indices[7:14]
    assert positions(start=12, batches=7) == whole[3:]
    halves = [positions(rank=rank, world=2) for rank in (0, 1)]
    assert [first + second for first, second in zip(*halves, strict=True)] == whole
    with pytest.raises(ValueError, match="cannot be shared"):
        StreamBatchSampler(7, 4, 5, world_size=3)


def test_epochs_of_whole_batches_hold_no_sample_twice_in_a_batch():
    def stream(start=0, rank=0, world=1, batches=6):
        return list(islice(StreamBatchSampler(11, 4, 5, start, rank, world, drop_last=True), batches))

    whole = stream()
    assert [position for batch in whole for position, _ in batch] == list(range(24))
    epochs = [{index for batch in whole[first : first + 2] for _, index in batch} for first in (0, 2, 4)]
    assert [len(epoch) for epoch in epochs] == [8, 8, 8] and len(set.union(*epochs)) == 11
    assert stream(start=12, batches=3) == whole[3:]
    assert stream(start=9, batches=3) == whole[3:], "after a run with another batch"
    halves = [stream(rank=rank, world=2) for rank in (0, 1)]
    assert [first + second for first, second in zip(*halves, strict=True)] == whole
    with pytest.raises(ValueError, match="3 samples fill no batch of 4"):
        StreamBatchSampler(3, 4, 5, drop_last=True)


def test_samples_do_not_depend_on_workers_or_start(dataset, tmp_path):
    def images(workers: int, start: int, batches: int):
        loader = build_train_loader(toy.small_cfg(tmp_path, DATALOADER__NUM_WORKERS=workers), seed=3, start=start)
        return [sample["image"] for batch in islice(loader, batches) for sample in batch]

    random.seed(0)
    expected = images(0, 0, 5)
    random.seed(1)
    torch.testing.assert_close(images(2, 0, 5), expected)
    torch.testing.assert_close(images(0, 8, 3), expected[8:])


def test_seeding_leaves_the_generators_alone():
    np.random.seed(1), random.seed(1)
    expected = np.random.rand(), random.random()
    np.random.seed(1), random.seed(1)
    with seeded(5):
        inside = np.random.rand(), random.random()
    assert (np.random.rand(), random.random()) == expected
    with seeded(5):
        assert (np.random.rand(), random.random()) == inside
    assert len({mix(a, b) for a in range(20) for b in range(20)}) == 400


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_named_without_a_traceback(dataset, tmp_path, workers):
    toy.register([{**dataset[0], "file_name": "gone.png"}])
    loader = build_train_loader(toy.small_cfg(tmp_path, DATALOADER__NUM_WORKERS=workers), seed=0)
    with pytest.raises(OvsegError) as caught:
        next(iter(loader))
    assert str(caught.value) == "there is no image gone.png"


def test_test_loader(dataset, tmp_path):
    cfg = toy.small_cfg(tmp_path, INPUT__MIN_SIZE_TEST=40, SOLVER__TEST_IMS_PER_BATCH=4, DATALOADER__NUM_WORKERS=1)
    batches = list(build_test_loader(cfg, toy.DATASET, outputs=("label_map",)))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    samples = [sample for batch in batches for sample in batch]
    assert [Path(sample["file_name"]).name for sample in samples] == [f"{i}.png" for i in range(10)]
    for sample in samples:
        assert sample["image"].shape == (3, 40, 48) and sample["image"].dtype == torch.uint8
        assert (sample["height"], sample["width"]) == (20, 24)
        assert sample["outputs"] == ("label_map",)
        assert sample["meta"] == {"dataset_name": toy.DATASET}


def test_test_mapper_needs_no_labels(dataset, tmp_path):
    mapper = SemSegTestMapper(toy.small_cfg(tmp_path), toy.DATASET, ("sem_seg",))
    assert mapper({"file_name": dataset[0]["file_name"]})["height"] == 20


def test_empty_and_impossible(dataset, tmp_path):
    with pytest.raises(OvsegError, match="IMS_PER_BATCH = 0"):
        build_train_loader(toy.small_cfg(tmp_path, SOLVER__IMS_PER_BATCH=0), seed=0)
    with pytest.raises(OvsegError, match="SAMPLER_TRAIN"):
        build_train_loader(toy.small_cfg(tmp_path, DATALOADER__SAMPLER_TRAIN="RepeatFactorTrainingSampler"), seed=0)
    with pytest.raises(OvsegError, match="RANDOM_FLIP"):
        build_train_loader(toy.small_cfg(tmp_path, INPUT__RANDOM_FLIP="both"), seed=0)
    with pytest.raises(OvsegError, match=r"DATASETS\.TRAIN is empty"):
        build_train_loader(toy.small_cfg(tmp_path, DATASETS__TRAIN="()"), seed=0)
    toy.register([])
    with pytest.raises(OvsegError, match="is empty"):
        build_train_loader(toy.small_cfg(tmp_path), seed=0)
