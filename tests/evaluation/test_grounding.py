"""Grounding mIoU and mIoU: words of each image, second pass and exact restriction, resume, thresholds, records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import evaluation_standin as standin
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torch import nn

from ovseg.checkpoint import load_model
from ovseg.config import get_cfg, load_cfg
from ovseg.data.protocol import protocol_of
from ovseg.errors import OvsegError
from ovseg.evaluation import runner
from ovseg.evaluation.ground_truth import GroundTruth
from ovseg.evaluation.grounding import PresentWords
from ovseg.evaluation.record import read_record
from ovseg.toy import make_scene
from ovseg.vocabulary import Vocabulary

ROOT = Path(__file__).parents[2]


class Levels(nn.Module):
    """Scores the words of a request by nearness to the grey level of their class, as cosines or with a softmax."""

    def __init__(self, softmax: bool) -> None:
        super().__init__()
        self.scores_are_independent = not softmax
        self.softmax = softmax
        self.requests: list[dict] = []

    def forward(self, batched_inputs):
        self.requests.extend(batched_inputs)
        return [self.one(sample) for sample in batched_inputs]

    def one(self, sample):
        words = getattr(sample["class_names"], "names", sample["class_names"])
        known = [name.strip() for name in standin.CLASSES]
        names = [(word if isinstance(word, str) else word[0]).removeprefix("a ") for word in words]
        levels = torch.tensor([known.index(name) if name in known else 0 for name in names]).view(-1, 1, 1)
        scores = -(sample["image"].float().mean(0) / standin.STEP - levels).abs()
        scores = nn.functional.interpolate(scores[None], (sample["height"], sample["width"]), mode="bilinear")[0]
        scores = scores.softmax(0) if self.softmax else scores
        best, labels = scores.max(0)
        answer = {"sem_seg": scores, "label_map": labels, "score_map": best, "proposals": labels[None] >= 0}
        return {name: answer[name] for name in (*sample["outputs"], "score_map")}


def evaluated(folder, model, *opts):
    cfg = standin.configuration(folder, "TEST.GROUNDING_MIOU", True, *opts)
    scores = runner.evaluate_all(cfg, model)[standin.NAME]
    return scores, json.loads((folder / "inference" / standin.NAME / "results.json").read_text())


def by_hand(data_folder):
    """Return the mean over the classes of the IoU with the nearest level among the classes of each image."""
    truth = GroundTruth(standin.NAME)
    intersection, union = np.zeros(5), np.zeros(5)
    for record in DatasetCatalog.get(standin.NAME):
        labels, _ = truth.labels(record)
        grey = np.asarray(Image.open(record["file_name"]))[..., 0] / standin.STEP
        present = np.unique(labels[labels != 255])
        predicted = present[np.abs(grey[None] - present[:, None, None]).argmin(0)]
        for k in range(5):
            mine, true = (predicted == k) & (labels != 255), labels == k
            intersection[k] += (mine & true).sum()
            union[k] += (mine | true).sum()
    return 100 * (intersection[union > 0] / union[union > 0]).mean()


@pytest.mark.parametrize("softmax", [False, True])
def test_the_words_of_each_image(data_folder, softmax, capsys):
    model = Levels(softmax)
    scores, record = evaluated(data_folder / "grounded", model)
    plain = runner.evaluate_all(standin.configuration(data_folder / "plain"), Levels(softmax))[standin.NAME]
    assert scores["sem_seg"] == pytest.approx(plain["sem_seg"], nan_ok=True, abs=0, rel=0)
    assert scores["grounding"]["Grounding-mIoU"] == pytest.approx(by_hand(data_folder))
    assert scores["grounding"]["Grounding-mIoU"] > scores["sem_seg"]["mIoU"]
    assert {"Grounding-mIoU-base", "Grounding-mIoU-novel", "Grounding-pACC"} <= scores["grounding"].keys()
    assert not any(name.endswith(("-union", "-gt")) for name in scores["grounding"])
    assert len(model.requests) == standin.NUM_IMAGES * (2 if softmax else 1)
    how = "second pass with these words" if softmax else "argmax over independent scores"
    assert record["grounding"] == {"words": "of the classes of each image", "how": how}
    assert record["protocol"]["words"] == "all" and record["denominators"] == {"union": 5, "ground_truth": 4}
    printed = capsys.readouterr().out
    assert "Grounding-mIoU" in printed and how in printed


def test_both_ways_are_equal(data_folder):
    truth, protocol = GroundTruth(standin.NAME), protocol_of(standin.NAME)
    for sample in DatasetCatalog.get(standin.NAME):
        image = torch.from_numpy(np.array(Image.open(sample["file_name"]))).permute(2, 0, 1)
        request = {**sample, "image": image, "class_names": protocol.vocabulary, "outputs": ("label_map", "sem_seg")}
        model = Levels(softmax=False)
        first = model([request])
        exact, again = (PresentWords(model, truth, protocol, way)([request], first)[0] for way in (True, False))
        assert torch.equal(exact["label_map"], again["label_map"])
        assert torch.equal(exact["score_map"], again["score_map"])
        assert not torch.equal(exact["label_map"], first[0]["label_map"]) or (first[0]["label_map"] < 4).all()


def test_what_is_known_of_all_words_is_given_for_some(data_folder):
    model = Levels(softmax=True)
    MetadataCatalog.get(standin.NAME).set(trainable_flag=[1, 0, 1, 0, 1])
    evaluated(data_folder / "out", model)
    for every, some in zip(model.requests[::2], model.requests[1::2], strict=True):
        flags = dict(zip(every["class_names"].names, every["seen"], strict=True))
        assert some["seen"] == [flags[name] for name in some["class_names"]]
        assert not some["add_others"] and some["outputs"] == ("label_map",)


def test_an_interrupted_evaluation_resumes(data_folder):
    class Tired(Levels):
        def one(self, sample):
            if sample["file_name"].endswith("4.png"):
                raise KeyboardInterrupt
            return super().one(sample)

    whole, _ = evaluated(data_folder / "whole", Levels(True))
    with pytest.raises(KeyboardInterrupt):
        evaluated(data_folder / "cut", Tired(True))
    cfg = standin.configuration(data_folder / "cut", "TEST.GROUNDING_MIOU", True)
    model = Levels(True)
    again = runner.evaluate_all(cfg, model, resume=True)[standin.NAME]
    assert len(model.requests) == 2 * 3
    assert again["grounding"] == pytest.approx(whole["grounding"], nan_ok=True, abs=0, rel=0)


def test_with_views_and_with_true_masks(data_folder):
    options = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (24, 48), "TEST.PROPOSAL_RECALL", False)
    scores, _ = evaluated(data_folder / "views", Levels(True), *options)
    assert scores["grounding"]["Grounding-mIoU"] > scores["sem_seg"]["mIoU"]

    class Namer(Levels):
        mask_namer = "itself"

        def name_masks(self, request, masks):
            scores = self.one({**request, "outputs": ("sem_seg",)})["sem_seg"]
            return torch.stack([scores[:, mask].median(1).values for mask in masks])

    scores, record = evaluated(data_folder / "masks", Namer(False), "TEST.ORACLE", "masks")
    assert record["grounding"]["how"].startswith("second pass")
    assert scores["grounding"]["Grounding-mIoU"] == 100  # blocks that lie are outvoted


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("TEST.DENSE_CRF", True), "not defined with a CRF"),
        (("TEST.ORACLE", "labels"), "TEST.ORACLE labels leaves it no words to restrict"),
        (("TEST.ORACLE", "words"), "TEST.ORACLE words leaves it no words to restrict"),
    ],
)
def test_what_does_not_go_together(data_folder, opts, message):
    with pytest.raises(OvsegError, match=message):
        evaluated(data_folder, Levels(True), *opts)


@pytest.fixture
def background(data_folder):
    """The same data set with its first class for background."""
    classes = ["background", *standin.CLASSES[1:]]
    MetadataCatalog.remove(standin.NAME)
    MetadataCatalog.get(standin.NAME).set(stuff_classes=classes, ignore_label=255, evaluator_type="sem_seg")
    return data_folder


def test_background_by_a_threshold(background):
    options = ("TEST.BACKGROUND_THRESHOLD", -0.5, "TEST.PROPOSAL_RECALL", False)
    scores, record = evaluated(background / "out", Levels(False), *options)
    assert record["protocol"]["background"] == "threshold" and record["protocol"]["num_words"] == 4
    assert record["background_threshold"] == -0.5 and record["protocol"]["tag"] == f"{standin.NAME}-t"
    assert scores["sem_seg"]["IoU-background"] > 50  # its pixels are a level away from the next word
    assert scores["grounding"]["Grounding-mIoU"] > scores["sem_seg"]["mIoU"]
    nothing, _ = evaluated(background / "all", Levels(False), "TEST.BACKGROUND_THRESHOLD", -9)
    assert nothing["sem_seg"]["IoU-background"] == 0
    again, _ = evaluated(background / "second", Levels(True), "TEST.BACKGROUND_THRESHOLD", 2)
    assert again["sem_seg"]["ACC-background"] == 100 and again["sem_seg"]["ACC-bus"] == 0
    assert again["grounding"]["Grounding-ACC-background"] == 100
    for opts, message in (
        (("TEST.ORACLE", "masks"), "TEST.ORACLE masks gives masks of background, too"),
        (("TEST.DENSE_CRF", True, "TEST.GROUNDING_MIOU", False), "which a CRF replaces"),
        (("TEST.BACKGROUND_THRESHOLD", "high"), "TEST.BACKGROUND_THRESHOLD"),
    ):
        with pytest.raises(OvsegError, match=message):
            evaluated(background, Levels(True), *options, *opts)


def test_images_without_and_with_nothing_but_background(background):
    """Background competes only where it is a class of the image, and alone where it is the only one."""
    truth, protocol = GroundTruth(standin.NAME), protocol_of(standin.NAME, threshold=0.5)
    sample = DatasetCatalog.get(standin.NAME)[0]
    height, width = truth.labels(sample)[0].shape
    for classes, expected in (([0], 0), ([1, 2], 2), ([0, 2], 0)):
        labels = np.resize(np.array(classes, dtype=np.uint8), (height, width))
        truth.labels = lambda sample, labels=labels: (labels, "drawn")
        request = {**sample, "image": torch.full((3, height, width), 2.2 * standin.STEP), "outputs": ("label_map",)}
        request["class_names"] = protocol.vocabulary
        answer = PresentWords(Levels(False), truth, replace(protocol, threshold=0.5))([request], [])[0]
        found = protocol.classes_of(answer["label_map"].numpy(), answer["score_map"].numpy())
        assert np.unique(found).tolist() == [expected]


def test_synonyms_of_pixels_are_more_words(data_folder):
    """A model that renders each text by itself; the class of the best text of a pixel counts."""
    names = [name.strip() for name in standin.CLASSES]
    MetadataCatalog.get(standin.NAME).set(vocabulary=Vocabulary.from_words([(name, f"a {name}") for name in names]))
    model = Levels(False)
    options = ("TEST.VOCABULARY", "synonyms", "TEST.SYNONYMS", "pixel")
    scores, record = evaluated(data_folder / "pixel", model, *options)
    assert record["protocol"]["synonyms"] == "pixel" and record["protocol"]["num_words"] == 10
    assert model.requests[0]["class_names"].names[:3] == ("sky", "a sky", "striped cat")
    reference, _ = evaluated(data_folder / "plain", Levels(False))
    assert scores["sem_seg"]["mIoU"] == reference["sem_seg"]["mIoU"]
    assert scores["grounding"]["Grounding-mIoU"] == reference["grounding"]["Grounding-mIoU"]


def test_a_record_of_grounding_is_read_again(data_folder):
    evaluated(data_folder / "out", Levels(True))
    record = read_record(data_folder / "out" / "inference" / standin.NAME / "results.json", complete=True)
    assert record["results"]["grounding"]["Grounding-mIoU"] > 0


def test_default_keys():
    test = get_cfg().TEST
    assert (test.GROUNDING_MIOU, test.SYNONYMS, test.BACKGROUND_THRESHOLD) == (False, "region", None)


@pytest.mark.parametrize("keys", [(), ("MODEL.DENSE.PD_THRESH", 0.5), ("MODEL.DENSE.KS_THRESH", 1.0)])
def test_dense_clip_needs_no_second_pass(keys):
    """The cosines of pixels are those of a second pass; refined scores are not, and say so."""
    scene, name = make_scene(8), "toy_sem_seg_val"
    cfg = load_cfg(ROOT / "configs" / "toy" / "ovseg_toy.yaml", ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", *keys])
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "DenseCLIP", "MODEL.DENSE.MODE", "value"])
    cfg.merge_from_list(["MODEL.CLIP_ADAPTER.MASK_PROMPT_FWD", False])
    cfg.MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR = "none"
    model, protocol = load_model(cfg, complete=True).eval(), protocol_of(name)
    assert model.scores_are_independent == (not keys)
    truth = GroundTruth(name)
    truth.labels = lambda sample: (scene.labels, "drawn")
    image = torch.from_numpy(scene.image).permute(2, 0, 1)
    request = {"image": image, "class_names": protocol.vocabulary, "outputs": ("label_map", "sem_seg")}
    first = model([request])
    exact, again = (PresentWords(model, truth, protocol, way)([request], first)[0] for way in (True, False))
    assert set(np.unique(again["label_map"])) <= set(np.unique(scene.labels))
    if not keys:
        torch.testing.assert_close(exact["score_map"], again["score_map"], rtol=0, atol=1e-6)
        assert (exact["label_map"] == again["label_map"]).float().mean() > 0.9999  # all but ties within rounding
