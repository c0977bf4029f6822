from __future__ import annotations

import json
from pathlib import Path

import evaluation_standin as standin
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from torch.nn import functional as F

from ovseg.checkpoint import load_weights
from ovseg.config import load_cfg
from ovseg.errors import OvsegError
from ovseg.evaluation import runner
from ovseg.evaluation.confusion import confusion_matrix, scores_from_confusion
from ovseg.evaluation.ground_truth import GroundTruth
from ovseg.evaluation.oracle import (
    label_weights,
    name_by_overlap,
    paint_segments,
    present_segments,
)
from ovseg.evaluation.proposals import ious_of, segment_intersections
from ovseg.proposals.given_masks import resize_masks
from tests.tiny_model import make_tiny_model

CLASSES = 7


@pytest.fixture(scope="module")
def recorded():
    with np.load(Path(__file__).parents[1] / "data" / "oracle.npz") as file:
        arrays = {name.removeprefix("oracle_"): torch.from_numpy(file[name]) for name in file.files}
    arrays["truth"] = torch.where(arrays["gt"] == 255, CLASSES, arrays["gt"])
    return arrays


def miou(labels, gt):
    conf = confusion_matrix(labels.numpy(), gt.numpy(), CLASSES, 255)
    return scores_from_confusion(conf, [str(k) for k in range(CLASSES)])["mIoU"]


def test_true_masks_named_by_pooled_features(recorded):
    """The recorded protocol pools features where ours shows crops; masks, painting and score are the same."""
    classes, segments = present_segments(recorded["truth"], CLASSES)
    pooled = torch.einsum("dhw,nhw->nd", recorded["features"], segments.float())
    names = (F.normalize(pooled, dim=1) @ F.normalize(recorded["words"], dim=1).T).argmax(1)
    labels = paint_segments(classes, segments, names)
    counted = recorded["gt"] != 255
    assert torch.equal(labels[counted], recorded["gtmask_prediction"][counted])
    assert (recorded["gtmask_prediction"][~counted] == -1).all()
    assert miou(labels, recorded["gt"]) == pytest.approx(float(recorded["gtmask_miou"]), abs=1e-9)


def test_overlaps_and_labels_as_recorded(recorded):
    counted = recorded["truth"] < CLASSES
    segments = recorded["truth"][counted]
    overlaps = segment_intersections((recorded["mask_logits"] > 0)[:, counted], segments)
    ious = ious_of(overlaps, segments)  # classes 0 .. 6, as class 6 is there
    torch.testing.assert_close(ious, recorded["iou"], rtol=0, atol=1e-9)
    weights = label_weights(overlaps, ious, "iou")
    labels = torch.where(weights.any(1), weights.argmax(1), -1)
    assert labels.tolist() == recorded["label"].tolist()
    soft = label_weights(overlaps, ious, "soft_iou")
    torch.testing.assert_close(soft.sum(1), (recorded["label"] >= 0).double())
    for how, expected in ((weights, "hard_scores"), (soft, "soft_scores")):
        scores = torch.einsum("qk,qhw->khw", how, recorded["mask_logits"].sigmoid())
        torch.testing.assert_close(scores.float(), recorded[expected], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("how", "name"), [("iou", "hard"), ("soft_iou", "soft")])
def test_predicted_masks_named_by_overlap_as_recorded(recorded, how, name):
    labels = name_by_overlap(recorded["mask_logits"].sigmoid(), recorded["truth"], CLASSES, how)
    assert torch.equal(labels, recorded[f"{name}_prediction"])
    assert miou(labels, recorded["gt"]) == pytest.approx(float(recorded[f"{name}_miou"]), abs=1e-9)


def test_intersection_prefers_the_larger_segment():
    truth = torch.ones(10, 10, dtype=torch.int64)
    truth[:, :2] = 0
    mask = torch.zeros(1, 10, 10)
    mask[0, :, :2] = 1
    mask[0, :3, 2:] = 1  # 20 pixels of class 0, 24 of class 1
    assert (name_by_overlap(mask, truth, 2, "iou")[mask[0] > 0] == 0).all()
    assert (name_by_overlap(mask, truth, 2, "intersection")[mask[0] > 0] == 1).all()
    with pytest.raises(OvsegError, match="ORACLE_LABEL is 'best'; choose one of iou, intersection, soft_iou"):
        name_by_overlap(mask, truth, 2, "best")


@pytest.mark.parametrize("how", ["iou", "intersection", "soft_iou"])
def test_true_masks_under_true_names_are_perfect(recorded, how):
    _, segments = present_segments(recorded["truth"], CLASSES)
    assert miou(name_by_overlap(segments.double(), recorded["truth"], CLASSES, how), recorded["gt"]) == 100


def test_nothing_to_name():
    ignored = torch.full((4, 5), 3)
    assert not name_by_overlap(torch.rand(2, 4, 5), ignored, 3).any()
    assert not name_by_overlap(torch.zeros(2, 4, 5), torch.ones(4, 5, dtype=torch.int64), 3).any()
    classes, segments = present_segments(ignored, 3)
    assert segments.shape == (0, 4, 5)
    assert not paint_segments(classes, segments, classes).any()


def test_resizing_loses_no_segment():
    segments = torch.zeros(2, 40, 40, dtype=torch.bool)
    segments[0, 20:] = True
    segments[1, 3, 5] = True  # between the samples
    small = resize_masks(segments, (8, 8))
    assert small[0, 4:].all() and not small[0, :4].any()
    assert small[1].nonzero().tolist() == [[0, 1]]
    assert resize_masks(segments, (80, 60)).flatten(1).any(1).all()


class Named(standin.StandIn):
    """Names a mask by its mean grey level; proposes quarters of the image, softly."""

    mask_namer = "itself"  # a model without one is refused

    def name_masks(self, request, masks):
        image = request["image"].float().mean(0)
        levels = torch.stack([image[mask].median() for mask in masks])
        return -(levels[:, None] - torch.arange(len(standin.CLASSES)) * standin.STEP).abs()

    def _one(self, sample):
        if sample["outputs"] != ("soft_proposals",):
            return super()._one(sample)
        height, width = sample["image"].shape[1:]
        masks = torch.full((4, height, width), 0.1)
        for index, (rows, columns) in enumerate((r, c) for r in (0, 1) for c in (0, 1)):
            masks[index, rows * height // 2 :, columns * width // 2 :] = 0.9 + index / 100
        return {"soft_proposals": masks}


def results(folder, *opts):
    cfg = standin.configuration(folder, *opts)
    scores = runner.evaluate_all(cfg, Named())[standin.NAME]
    written = json.loads((folder / "inference" / standin.NAME / "results.json").read_text())
    return scores, written


def test_oracle_masks_in_an_evaluation(data_folder, capsys):
    scores, written = results(data_folder / "masks", "TEST.ORACLE", "masks")
    assert written["oracle"] == {"oracle": "masks", "names": "CLIP alone", "crops": "masked"}
    assert "WITH AN ORACLE, not a result of the model alone" in capsys.readouterr().out
    assert scores["proposals"]["recall@0.5"] == 100
    plain, written = results(data_folder / "plain")
    assert written["oracle"] is None
    assert "ORACLE" not in capsys.readouterr().out
    assert scores["sem_seg"]["pACC"] > plain["sem_seg"]["pACC"] + 5  # lies in a part of a segment are outvoted


@pytest.mark.parametrize("how", ["iou", "intersection", "soft_iou"])
def test_oracle_labels_in_an_evaluation(data_folder, how):
    scores, written = results(data_folder / how, "TEST.ORACLE", "labels", "TEST.ORACLE_LABEL", how)
    assert written["oracle"] == {"oracle": "labels", "masks": "predicted", "label": how}
    assert 0 < scores["sem_seg"]["mIoU"] < 100
    assert scores["proposals"]["segments"] > 0


def test_what_does_not_go_together(data_folder):
    with pytest.raises(OvsegError, match="ORACLE is 'mask'; choose one of none, masks, labels, words"):
        results(data_folder, "TEST.ORACLE", "mask")
    with pytest.raises(OvsegError, match="ORACLE masks is defined for one plain view"):
        results(data_folder, "TEST.ORACLE", "masks", "TEST.AUG.ENABLED", True)
    with pytest.raises(OvsegError, match="StandIn cannot name masks"):
        runner.evaluate_all(standin.configuration(data_folder, "TEST.ORACLE", "masks"), standin.StandIn())


def test_the_real_model_under_both_oracles(data_folder, tmp_path):
    config, weights = make_tiny_model(tmp_path)
    opts = ["DATASETS.TEST", (standin.NAME,), "DATALOADER.NUM_WORKERS", 0]
    cfg = load_cfg(config, [*opts, "MODEL.CLIP_ADAPTER.TEXT_TEMPLATES", "predefined"])
    model = build_model(cfg)
    load_weights(model, weights)
    scores = {}
    for oracle, crops in (("masks", True), ("masks", False), ("labels", True)):
        cfg.merge_from_list(["TEST.ORACLE", oracle, "MODEL.CLIP_ADAPTER.MASK_CROPS", crops])
        cfg.OUTPUT_DIR = str(tmp_path / f"{oracle}{crops}")
        model.clip_adapter.mask_crops = crops
        scores[oracle, crops] = runner.evaluate_all(cfg, model)[standin.NAME]["sem_seg"]
    assert scores["labels", True]["mIoU"] > scores["masks", True]["mIoU"]
    assert scores["masks", True] != scores["masks", False]
    written = json.loads((tmp_path / "masksFalse" / "inference" / standin.NAME / "results.json").read_text())
    assert written["oracle"]["crops"] == "with background"


class Words(Named):
    """Labels each pixel with the last of its words; records the words."""

    def forward(self, batched_inputs):
        self.requests.extend(batched_inputs)
        sizes = [(sample["height"], sample["width"]) for sample in batched_inputs]
        last = [len(sample["class_names"]) - 1 for sample in batched_inputs]
        maps = [torch.full(size, index) for size, index in zip(sizes, last, strict=True)]
        return [{"label_map": labels, "proposals": labels[None] >= 0} for labels in maps]


def test_oracle_words_asks_the_classes_of_each_image(data_folder):
    truth = GroundTruth(standin.NAME)
    cfg = standin.configuration(data_folder, "TEST.ORACLE", "words")
    model = Words()
    scores = runner.evaluate_all(cfg, model)[standin.NAME]["sem_seg"]
    written = json.loads((data_folder / "inference" / standin.NAME / "results.json").read_text())
    assert written["oracle"]["oracle"] == "words" and len(written["oracle"]) == 2
    right = total = 0
    for record, request in zip(DatasetCatalog.get(standin.NAME), model.requests, strict=True):
        labels, _ = truth.labels(record)
        counted = labels[labels != truth.ignore_label]
        present = np.unique(counted)
        assert not request["add_others"]
        assert request["class_names"] == [truth.class_names[k] for k in present]
        right, total = right + (counted == present[-1]).sum(), total + counted.size
    assert scores["pACC"] == pytest.approx(100 * right / total)
