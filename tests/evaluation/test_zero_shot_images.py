"""Zero-shot classification of whole images: what is read, counted and refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ovseg.config import get_cfg
from ovseg.errors import OvsegError
from ovseg.evaluation.runner import check_evaluation, evaluate_all, evaluates
from ovseg.evaluation.zero_shot import LabelledImages, zero_shot_classification

COLORS = ["red", "green", "blue", "red", "blue"]
LABELS = [0, 1, 2, 0, 1]  # the last one is wrong


class MeanColor(nn.Module):
    """Its features are the mean color of images, its words those of three colors."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.scorer = nn.Module()
        self.scorer.proposer = nn.Module()
        self.scorer.proposer.normalise = lambda images: images / 255
        self.sizes, self.asked = [], None

    def class_embeddings(self, names, templates):
        self.asked = (list(names), templates)
        return torch.eye(3)

    def encode_image(self, images):
        self.sizes.append(tuple(images.shape))
        return {"image_emb": 3 * images.mean((2, 3))}


@pytest.fixture
def cfg(tmp_path):
    for index, color in enumerate(COLORS):
        pixels = np.zeros((40, 60, 3), np.uint8)
        pixels[..., ["red", "green", "blue"].index(color)] = 200
        pixels[:, :4] = pixels[:, -4:] = (90, 220, 255)  # outside the centre
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    names = ["red", "green", "blue"]
    rows = [f"{index}.png,{label},{names[label]}" for index, label in enumerate(LABELS)]
    (tmp_path / "val.csv").write_text("\n".join(["image_id,label,label_name", *rows]) + "\n")
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "OVSegmentor"
    cfg.OUTPUT_DIR, cfg.DATALOADER.NUM_WORKERS, cfg.INPUT.IMG_AUG.IMG_SIZE = str(tmp_path / "out"), 0, 28
    cfg.TEST.TASKS = ["cls"]
    cfg.TEST.ZERO_SHOT.FILE, cfg.TEST.ZERO_SHOT.NAMES = str(tmp_path / "val.csv"), ""
    cfg.TEST.ZERO_SHOT.BATCH = 2
    return cfg


def test_accuracies_are_counted_and_written(cfg, tmp_path):
    model = MeanColor().train()
    assert zero_shot_classification(cfg, model, iteration=7) == {"top1": 80.0, "top5": 100.0}
    assert model.training and model.sizes == [(2, 3, 28, 28), (2, 3, 28, 28), (1, 3, 28, 28)]
    assert model.asked == (["red", "green", "blue"], "subset")
    record = json.loads((tmp_path / "out" / "inference" / "zero_shot" / "results.json").read_text())
    assert record["results"] == {"top1": 80.0, "top5": 100.0} and record["iteration"] == 7
    assert (record["num_images"], record["num_classes"]) == (5, 3)


def test_it_is_part_of_an_evaluation(cfg):
    check_evaluation(cfg)
    assert evaluates(cfg)
    assert dict(evaluate_all(cfg, MeanColor())) == {"zero_shot": {"top1": 80.0, "top5": 100.0}}
    cfg.TEST.TASKS = ["seg"]
    assert not evaluates(cfg), "no data set"


def test_the_centre_of_an_image(cfg, tmp_path):
    image, label = LabelledImages(cfg.TEST.ZERO_SHOT.FILE, tmp_path, 28)[0]
    assert (image.shape, image.dtype, label) == ((3, 28, 28), torch.uint8, 0)
    assert image[0].min() == 200 and not image[1:].any(), "the shorter side is 32 before the crop"


def test_names(cfg, tmp_path):
    images = LabelledImages(cfg.TEST.ZERO_SHOT.FILE, tmp_path, 28)
    imagenet = images.class_names("imagenet")
    assert len(imagenet) == 1000 and imagenet[0] == "tench"
    (tmp_path / "names.txt").write_text("scarlet\nlime\n")
    with pytest.raises(OvsegError, match=r"has the label 2, but TEST\.ZERO_SHOT\.NAMES .*names\.txt' has 2 classes"):
        images.class_names(str(tmp_path / "names.txt"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image_id,caption\n0.png,a\n", r"val\.csv has no column label: its first line holds 'image_id', 'caption'"),
        ("image_id,label,label_name\n0.png,cat,cat\n", "is no whole number"),
        ("image_id,label,label_name\n", "has no rows"),
        ("image_id,label,label_name\n0.png,1,cat\n", r"has no row of class 0, so no name: set TEST\.ZERO_SHOT\.NAMES"),
    ],
)
def test_tables_that_cannot_be_used(cfg, tmp_path, table, message):
    (tmp_path / "val.csv").write_text(table)
    with pytest.raises(OvsegError, match=message):
        check_evaluation(cfg)


def test_a_name_that_no_file_can_have(cfg, tmp_path):
    (tmp_path / "val.csv").write_text(f"image_id,label,label_name\n{'x' * 300}.png,0,red\n")
    with pytest.raises(OvsegError, match=r"there is no image .*xxx\.png: correct TEST\.ZERO_SHOT\.ROOT"):
        zero_shot_classification(cfg, MeanColor())


def test_settings_that_cannot_work(cfg, tmp_path):
    (tmp_path / "3.png").unlink()
    with pytest.raises(OvsegError, match=r"there is no image .*3\.png: correct TEST\.ZERO_SHOT\.ROOT"):
        zero_shot_classification(cfg, MeanColor())
    cfg.TEST.ZERO_SHOT.FILE = ""
    with pytest.raises(OvsegError, match=r"has cls, but TEST\.ZERO_SHOT\.FILE is empty: name a table .* \[seg\]"):
        check_evaluation(cfg)
    cfg.MODEL.META_ARCHITECTURE = "OVSeg"
    with pytest.raises(OvsegError, match=r"OVSeg classifies no whole images: set it to \[seg\]"):
        check_evaluation(cfg)
    cfg.TEST.TASKS, cfg.TEST.SAVE_BEST = ["seg"], ["top1"]
    with pytest.raises(OvsegError, match=r"SAVE_BEST is \['top1'\]: give scores of seg, or add cls to TEST\.TASKS"):
        check_evaluation(cfg)
