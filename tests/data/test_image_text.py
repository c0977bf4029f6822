"""The loader of image-text pairs: what a sample holds, its draws, resuming, and rows that cannot be used."""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ovseg.config import get_cfg
from ovseg.data.cc12m import make_shards
from ovseg.data.image_text import ImageTextDataset, ImageTextLoader, image_text_loader
from ovseg.data.image_text_mapper import MEAN, ImageTextMapper, build_augmentation
from ovseg.data.image_text_rows import RecordRows
from ovseg.data.loader import build_train_loader
from ovseg.data.sampler import StreamBatchSampler, seeded
from ovseg.data.shared_entities import SharedEntities
from ovseg.errors import OvsegError
from ovseg.toy import CLASS_NAMES, make_scene
from ovseg.vocabulary.entities import EntityFinder, PhraseFinder
from ovseg.vocabulary.templates import get_templates
from ovseg.vocabulary.wordpiece import SPECIAL

CC12M = Path(__file__).parent / "miniatures/conceptual_captions/cc12m"
TOY_TOKENS = Path(__file__).parents[2] / "configs/toy/ovsegmentor_vocab.txt"

SIDE = 16


def tokenize(texts, length):
    """Characters as tokens."""
    ids = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = torch.tensor([ord(letter) for letter in text[:length]])
    return ids, (ids > 0).long()


def text_of(tokens):
    return "".join(map(chr, tokens["input_ids"][tokens["attention_mask"] > 0].tolist()))


@pytest.fixture
def records(tmp_path):
    """Six images; the last one is damaged."""
    captions = ["a dog on grass", "a dog. a cat.", "a red car", "the cat", "the car is near a cat", "a dog"]
    found = []
    for index, caption in enumerate(captions):
        path = tmp_path / f"{index}.png"
        Image.new("RGB", (24, 20), (10 * index, 0, 200)).save(path)
        found.append({"file_name": str(path), "captions": [caption]})
    path.write_bytes(path.read_bytes()[:40])
    return found


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.INPUT.IMG_AUG.IMG_SIZE = cfg.MODEL.OVSEGMENTOR.IMG_ENCODER.IMG_SIZE = SIDE
    cfg.INPUT.TEXT_AUG.MAX_SEQ_LEN = 40
    cfg.MODEL.OVSEGMENTOR.USE_ENTITYLOSS = cfg.MODEL.OVSEGMENTOR.USE_MASKLOSS = True
    return cfg


def loader(cfg, records, start=0, rank=0, world_size=1, workers=0):
    rows = RecordRows(records, EntityFinder(), True, "these")
    stream = {"start": start, "rank": rank, "world_size": world_size}
    sampler = StreamBatchSampler(len(rows), min(4, len(rows)), 7, **stream, drop_last=True)
    return ImageTextLoader(ImageTextDataset(rows, ImageTextMapper(cfg, tokenize), 7), sampler, workers)


def take(batches, count):
    iterator = iter(batches)
    return [next(iterator) for _ in range(count)]


def same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            same(value, other[key])
        else:
            assert value == other[key] if isinstance(value, list) else torch.equal(value, other[key])


def test_a_sample_holds_two_images_and_four_texts(cfg, records):
    cfg.INPUT.TEXT_AUG.TEMPLATES = "simple"
    rows = RecordRows(records[:-1], EntityFinder(), True, "these")
    sample = ImageTextMapper(cfg, tokenize)(rows, 1)
    assert sample.keys() == {"image", "cross_image", "caption", "question", "answer", "cross_entity"}
    assert sample["image"].shape == sample["cross_image"].shape == (3, SIDE, SIDE)
    assert text_of(sample["caption"]) == "a dog. a cat."
    assert text_of(sample["question"]) == "a [MASK] a [MASK]"
    assert text_of(sample["answer"]) == "a photo of a dog and cat"
    assert text_of(sample["cross_entity"]) in ("A photo of dog", "A photo of cat")
    assert sample["caption"]["input_ids"].shape == (40,) and sample["caption"]["input_ids"].dtype == torch.int64


def test_only_what_the_losses_read(cfg, records):
    cfg.MODEL.OVSEGMENTOR.USE_ENTITYLOSS = cfg.MODEL.OVSEGMENTOR.USE_MASKLOSS = False
    rows = RecordRows(records, EntityFinder(), False, "these")
    assert ImageTextMapper(cfg, tokenize)(rows, 0).keys() == {"image", "caption"}


def test_words_for_the_multi_label_loss(cfg, records):
    cfg.MODEL.OVSEGMENTOR.USE_ENTITYLOSS = cfg.MODEL.OVSEGMENTOR.USE_MASKLOSS = False
    cfg.MODEL.OVSEGMENTOR.MULTI_LABEL = cfg.INPUT.TEXT_AUG.MULTI_LABEL = 2
    cfg.INPUT.TEXT_AUG.TEMPLATES = "simple"
    for kind, index, expected in (
        ("noun", 0, {"a photo of a dog.", "a photo of a grass."}),
        ("entity", 1, {"a photo of a dog.", "a photo of a cat."}),
        ("entity", 2, {"a photo of a car."}),  # twice
    ):
        cfg.INPUT.TEXT_AUG.WORD_TYPE = kind
        rows = RecordRows(records, EntityFinder(), False, "these")
        labels = ImageTextMapper(cfg, tokenize)(rows, index)["labels"]
        assert labels["input_ids"].shape == labels["attention_mask"].shape == (2, 40)
        texts = [text_of({key: tokens[label] for key, tokens in labels.items()}) for label in range(2)]
        assert set(texts) == expected
    rows = RecordRows([{**records[0], "captions": ["of the"]}], EntityFinder(), False, "these")
    labels = ImageTextMapper(cfg, tokenize)(rows, 0)["labels"]
    assert text_of({key: tokens[1] for key, tokens in labels.items()}) == "of the"
    cfg.MODEL.OVSEGMENTOR.MULTI_LABEL = 3
    with pytest.raises(OvsegError, match=r"INPUT\.TEXT_AUG\.MULTI_LABEL is 2"):
        ImageTextMapper(cfg, tokenize)


def test_samples_depend_on_their_position_alone(cfg, records):
    whole = take(loader(cfg, records), 4)
    for first, second in zip(take(loader(cfg, records, start=8), 2), whole[2:], strict=True):
        for one, other in zip(first, second, strict=True):
            same(one, other)
    halves = [take(loader(cfg, records, rank=rank, world_size=2), 1)[0] for rank in (0, 1)]
    for one, other in zip([*halves[0], *halves[1]], whole[0], strict=True):
        same(one, other)
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    same(loader(cfg, records).dataset[0, 1], loader(cfg, records).dataset[0, 1])
    assert torch.equal(torch.random.get_rng_state(), state[0]) and (np.random.get_state()[1] == state[1]).all()


def test_worker_processes_give_the_same_samples(cfg, records):
    for first, second in zip(take(loader(cfg, records), 2), take(loader(cfg, records, workers=1), 2), strict=True):
        for one, other in zip(first, second, strict=True):
            same(one, other)


def test_damaged_images_are_skipped_counted_and_named(cfg, records, caplog):
    batches = loader(cfg, records)
    with caplog.at_level(logging.WARNING):
        assert all(len(batch) == 4 for batch in take(batches, 6))
    named = [record.getMessage() for record in caplog.records]
    assert batches.skipped == len(named) >= 4  # 24 samples of 6 rows, and the partners
    assert all("5.png" in message and "skipped" in message for message in named)


def test_images_whose_name_no_file_can_have_are_skipped(cfg, records, caplog):
    records[0]["file_name"] = records[0]["file_name"].replace("0.png", "x" * 300 + ".png")
    with caplog.at_level(logging.WARNING):
        assert all(len(batch) == 4 for batch in take(loader(cfg, records), 3))
    assert any("there is no image" in record.getMessage() and "xxx" in record.getMessage() for record in caplog.records)


def test_damaged_images_alone_end_the_training(cfg, records):
    with pytest.raises(OvsegError, match=r"none of 32 rows .*5\.png.*DATASETS.IMAGE_TEXT"):
        take(loader(cfg, records[-1:]), 1)


def test_the_loader_of_a_configuration(cfg, tmp_path):
    cfg.DATASETS.TRAIN, cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = (), 3, 0
    with pytest.raises(OvsegError, match=r"IMAGE_TEXT\.FILE is empty"):
        image_text_loader(cfg, seed=0, tokenize=tokenize)
    cfg.DATASETS.IMAGE_TEXT.FILE = str(CC12M / "cc12m_filtered_subset_pair.csv")
    cfg.DATASETS.IMAGE_TEXT.ROOT = str(CC12M / "images")
    cfg.MODEL.OVSEGMENTOR.TEXT_ENCODER.VOCAB = str(TOY_TOKENS)
    batches = build_train_loader_of(cfg)
    (batch,) = take(batches, 1)
    assert len(batch) == 3 and len(batches.dataset) == 5 and batches.skipped == 0
    assert batch[0]["question"]["input_ids"].shape == (40,) and (batch[0]["caption"]["input_ids"][0] == 101).all()
    make_shards(CC12M / "cc12m_filtered_subset_pair.csv", CC12M / "images", tmp_path)
    cfg.DATASETS.IMAGE_TEXT.FILE = str(tmp_path)
    for one, other in zip(take(build_train_loader_of(cfg), 1)[0], batch, strict=True):  # partners are drawn otherwise
        same(one["caption"], other["caption"])
        assert torch.equal(one["image"], other["image"])


def build_train_loader_of(cfg):
    cfg.MODEL.META_ARCHITECTURE = "OVSegmentor"
    return build_train_loader(cfg, seed=5)


def test_no_batch_holds_a_pair_twice(cfg, records):
    cfg.DATASETS.IMAGE_TEXT.FILE = str(CC12M / "cc12m_filtered_subset_pair.csv")  # five rows
    cfg.DATASETS.IMAGE_TEXT.ROOT = str(CC12M / "images")
    cfg.MODEL.OVSEGMENTOR.TEXT_ENCODER.VOCAB, cfg.SOLVER.IMS_PER_BATCH = str(TOY_TOKENS), 3
    sampler = build_train_loader_of(cfg).batch_sampler
    for keys in take(sampler, 20):
        assert len({row for _, row in keys}) == 3
    cfg.SOLVER.IMS_PER_BATCH = 6
    with pytest.raises(OvsegError, match=r"SOLVER\.IMS_PER_BATCH is 6, but there are 5 image-text pairs: lower it"):
        build_train_loader_of(cfg)


def test_tokens_of_the_toy_world():
    tokens = TOY_TOKENS.read_text().splitlines()
    assert [tokens.index(token) for token in SPECIAL] == [0, 100, 101, 102, 103]
    texts = [*get_templates("full"), *CLASS_NAMES, *(text for seed in range(4) for text in make_scene(seed).captions)]
    assert not set(re.findall("[a-z]+", " ".join(texts).lower())) - set(tokens)


def test_pairs_of_the_toy_world():
    finder = PhraseFinder(CLASS_NAMES)
    for text in make_scene(3).captions:
        question, entities = finder.mask(text)
        assert entities and question.count("[MASK]") >= len(entities)
        assert not any(entity in question for entity in entities)


def test_rows_without_captions_or_entities_are_left_out(records):
    rows = RecordRows(
        [*records, {"file_name": "x"}, {"file_name": "y", "captions": ["nothing"]}], EntityFinder(), True, ""
    )
    assert (len(rows), rows.left_out) == (6, 2)
    with pytest.raises(OvsegError, match=r"TEXT_AUG\.ENTITIES"):
        RecordRows(records, PhraseFinder(["zebra"]), True, "")
    with pytest.raises(OvsegError, match="has captions"):
        RecordRows([{"file_name": "x", "captions": [" "]}], EntityFinder(), False, "")
    with pytest.raises(OvsegError, match="give a list"):
        RecordRows([{"file_name": "x", "captions": "a dog"}], EntityFinder(), False, "")


def test_partners_share_an_entity_evenly():
    shared = SharedEntities([["dog"], ["dog", "cat"], [], ["cat"], ["dog"]])
    rng = np.random.default_rng(0)
    drawn = Counter(shared.draw(1, rng) for _ in range(1200))
    assert drawn.keys() == {(0, "dog"), (1, "dog"), (4, "dog"), (1, "cat"), (3, "cat")}
    assert abs(drawn[3, "cat"] - 300) < 60 and abs(drawn[0, "dog"] - 200) < 50
    assert shared.draw(2, rng) is None and len(shared) == 5
    assert len(SharedEntities([])) == 0


def test_both_augmentations(cfg):
    image = Image.fromarray(np.full((40, 30, 3), 90, np.uint8))
    torch.manual_seed(0)
    with seeded(0):  # timm draws from Python's generator, which other tests leave in any state
        strong = [build_augmentation(cfg)(image) for _ in range(30)]
    assert all(pixels.shape == (3, SIDE, SIDE) and pixels.dtype == torch.float32 for pixels in strong)
    assert sum((pixels < 0).any().item() for pixels in strong) in range(2, 16)  # noise around the mean in a quarter
    cfg.INPUT.IMG_AUG.DEIT_AUG = False
    weak = build_augmentation(cfg)(image)
    assert weak.dtype == torch.uint8 and (weak == 90).all()


def test_a_draw_that_pillow_refuses_is_repeated(cfg):
    draws = []

    def step(image):
        draws.append(image)
        return ImageOps.posterize(image, 0 if len(draws) < 3 else 4)

    augment = build_augmentation(cfg)
    augment.steps.transforms = [step]
    assert augment(Image.new("RGB", (SIDE, SIDE))).shape == (3, SIDE, SIDE) and len(draws) == 3
    augment.steps.transforms = [lambda image: ImageOps.posterize(image, 0)]
    with pytest.raises(ValueError, match="bits"):
        augment(Image.new("RGB", (SIDE, SIDE)))


def test_erasing_by_the_mean_colour(cfg):
    own = cfg.INPUT.IMG_AUG
    own.RE_PROB, own.RE_MODE, own.AUTO_AUGMENT, own.COLOR_JITTER = 1.0, "const", "", 0.0
    pixels = build_augmentation(cfg)(Image.fromarray(np.full((40, 30, 3), 7, np.uint8)))
    erased = pixels[:, (pixels != 7).any(0)]
    torch.testing.assert_close(erased, 255 * torch.tensor(MEAN)[:, None].expand_as(erased))
    assert erased.numel() and (pixels == 7).any()


def test_options_that_cannot_work(cfg):
    cfg.INPUT.IMG_AUG.AUTO_AUGMENT = "no-such-policy"
    with pytest.raises(OvsegError, match="AUTO_AUGMENT"):
        build_augmentation(cfg)
    cfg.INPUT.IMG_AUG.IMG_SIZE = 32
    with pytest.raises(OvsegError, match=r"IMG_ENCODER\.IMG_SIZE"):
        build_augmentation(cfg)


def test_exif_is_ignored_unless_asked_for(cfg, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    rows = RecordRows([{"file_name": str(tmp_path / "turned.png"), "captions": ["a dog"]}], EntityFinder(), False, "")
    first_rows = {}
    for exif in (False, True):
        mapper = ImageTextMapper(augment=lambda image: torch.from_numpy(np.array(image)), tokenize=tokenize, exif=exif)
        first_rows[exif] = mapper(rows, 0)["image"][0, :, 0].unique().tolist()
    assert first_rows == {False: [255], True: [0, 255]}
