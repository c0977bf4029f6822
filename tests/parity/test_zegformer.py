"""ZegFormer against the numbers of the original."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from detectron2.structures import Instances
from torch.nn import functional as F

from ovseg.clip.adapter import unit
from ovseg.evaluation.confusion import confusion_matrix, scores_from_confusion
from ovseg.naming.aligned_crops import inclusive_boxes
from ovseg.proposals.matcher import match
from ovseg.vocabulary.templates import get_templates

STYLE = "MODEL.CLIP_CLS_STYLE"
FUSE, FUSE_ALL = "MODEL.MASK_FORMER.ENSEMBLING", "MODEL.MASK_FORMER.ENSEMBLING_ALL_CLS"
GAMMA = ("MODEL.MASK_FORMER.GZERO_CALIBRATE", -1)
CROPS = "MODEL.SEM_SEG_HEAD.CLIP_CLASSIFICATION"
VARIANTS = {
    "main": (),
    "no_calibration": GAMMA,
    "mask": (STYLE, "mask"),
    "crop": (STYLE, "crop"),
    "all_cls": (FUSE, False, FUSE_ALL, True, *GAMMA),
    "clip_only": (FUSE, False, *GAMMA),
    "no_clip": (CROPS, False, FUSE, False),
    "post_first": ("MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE", True),
    "no_split": (),
}
TRAIN = (CROPS, False, FUSE, False, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3)
SCORES = 1e-3  # tolerance of class scores (the recording's README)


@pytest.fixture(scope="module")
def models(zegformer):
    """Return the function settings -> model, which builds each model once."""
    return functools.cache(zegformer.model)


@pytest.fixture(scope="module")
def model(models):
    return models()


@pytest.mark.parametrize("which", ["train", "test"])
def test_text(zegformer, model, which):
    text, names = model.clip_adapter.text, zegformer.names(which)
    zegformer.check(f"text/{which}", text(names))
    zegformer.check(f"text/{which}_clip_branch", text(names, get_templates("zegformer_crops")))
    for templates in ("single", "imagenet") if which == "test" else ():
        zegformer.check(f"text/{templates}_test", text(names, get_templates(templates)))
        by_key = zegformer.model("MODEL.PROMPT_ENSEMBLE_TYPE", templates).clip_adapter.text(names)
        assert torch.equal(by_key, text(names, get_templates(templates)))


def test_templates_and_words(zegformer, model):
    assert list(get_templates("imagenet_select")) == zegformer.case["templates_train"]
    assert len(set(get_templates("zegformer_crops"))) == zegformer.case["number_of_clip_branch_templates"]
    request = zegformer.request(0)
    seen = model.seen_of(request, model.words_of(request))
    zegformer.check("index/seen", seen.nonzero()[:, 0])
    zegformer.check("index/unseen", (~seen).nonzero()[:, 0])


@pytest.mark.parametrize("image", [0, 1])
def test_stages(zegformer, model, image):
    request = zegformer.request(image)
    views, network, words = model.views([request]), model.proposer, model.words_of(request)
    height, width = views.images[0].shape[1:]
    padded = F.pad(network.normalize(views.images[0]), (0, -width % 32, 0, -height % 32))[None]
    with torch.no_grad():
        features = network.backbone(padded)
        for name, feature in features.items():
            step = 2 if name == "res2" else 1
            zegformer.check(f"img{image}/backbone/{name}", feature[0, ..., ::step, ::step])
        mask_features, _ = model.sem_seg_head.pixel_decoder(features)
        zegformer.check(f"img{image}/mask_features_s2", mask_features[0, :, ::2, ::2])
        (masks,) = network(views)
        zegformer.check(f"img{image}/pred_masks", masks.logits)
        zegformer.check(f"img{image}/pred_embed", masks.embeddings)
        zegformer.check(f"img{image}/class_logits", model.namers[0].class_logits(words)(masks.embeddings))
        canvas = F.interpolate(masks.logits[None], views.canvas, mode="bilinear", align_corners=False)[0]
        binary = canvas.sigmoid() > 0.5
        zegformer.check(f"img{image}/mask_area", binary.flatten(1).sum(1))
        boxes = inclusive_boxes(binary)
        assert torch.equal(boxes, torch.from_numpy(zegformer.outputs[f"img{image}/boxes"]))


@pytest.mark.parametrize("image", [0, 1])
@pytest.mark.parametrize("variant", ["main", "mask", "crop", "clip_only"])
def test_crops(zegformer, models, image, variant):
    model, name = models(*VARIANTS[variant]), f"img{image}/{variant}"
    request = zegformer.request(image)
    views, words, namer = model.views([request]), model.words_of(request), model.namers[1]
    with torch.no_grad():
        (masks,) = model.proposer(views)
        crops = torch.cat([few for (few,) in namer.inputs(views, 0, masks.logits)])
        (features,) = namer.features(views, [(0, masks.logits)])
        if variant == "clip_only":
            zegformer.check(f"{name}/class_scores", namer.logits(features, masks.embeddings, words), SCORES)
            return
        zegformer.check(f"{name}/clip_input_stride16", crops[..., ::16, ::16])
        zegformer.check(f"{name}/clip_input_mean", crops.mean((2, 3)))
        zegformer.check(f"{name}/clip_feat", features)
        text = model.clip_adapter.text(words.texts, get_templates("zegformer_crops"))
        logits = model.clip_adapter.clip_model.logit_scale.exp() * unit(features) @ text.T
        torch.testing.assert_close(namer.logits(features, masks.embeddings, words)[:, :-1], logits)


@pytest.mark.parametrize("image", [0, 1])
@pytest.mark.parametrize("variant", VARIANTS)
def test_result(zegformer, models, image, variant):
    model = models(*VARIANTS[variant])
    request = zegformer.request(image, split=variant != "no_split")
    with torch.no_grad():
        (result,) = model([request | {"outputs": ("sem_seg", "explanations")}])
        name = f"img{image}/{variant}"
        if variant == "main" and image == 0:
            zegformer.check(f"{name}/sem_seg", result["sem_seg"])
        else:
            zegformer.check(f"{name}/sem_seg_s3", result["sem_seg"][:, ::3, ::3])
        if variant not in ("no_clip", "clip_only"):
            views = model.views([request])
            masks, words = model.proposer(views), [model.words_of(request)]
            scores = [namer(views, masks, words)[0] for namer in model.namers]
            fused = model.fuse(scores, None, model.seen_of(request, words[0]))
            zegformer.check(f"{name}/class_scores", fused, SCORES)


def test_scores_depend_on_the_padding_as_in_the_original(zegformer, model):
    with torch.no_grad():
        results = model([zegformer.request(image) for image in (0, 1)])
    for image, result in enumerate(results):
        zegformer.check(f"batch/sem_seg_s3_{image}", result["sem_seg"][:, ::3, ::3])
        alone = model([zegformer.request(image)])[0]["sem_seg"]
        assert not torch.allclose(alone, result["sem_seg"], rtol=1e-3)


def batch(zegformer, empty_first: bool = False) -> list[dict]:
    requests = []
    for index in (0, 1):
        image = torch.from_numpy(zegformer.inputs[f"train/image{index}"]).permute(2, 0, 1)
        instances = Instances(image.shape[1:])
        keep = slice(0, 0) if empty_first and index == 0 else slice(None)
        instances.gt_classes = torch.from_numpy(zegformer.inputs[f"train/gt_classes{index}"])[keep]
        instances.gt_masks = torch.from_numpy(zegformer.inputs[f"train/gt_masks{index}"]).bool()[keep]
        requests.append({"image": image, "instances": instances, "class_names": zegformer.names("train")})
    return requests


@pytest.fixture(scope="module")
def trained(zegformer):
    model = zegformer.model(*TRAIN).train()
    return model, model(batch(zegformer))


def test_losses(zegformer, trained):
    _, losses = trained
    weights = {"loss_ce": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}
    assert len(losses) == 9
    for name, loss in losses.items():
        zegformer.check(f"train/loss_weighted/{name}", loss)
        zegformer.check(f"train/loss_raw/{name}", loss / weights["_".join(name.split("_")[:2])])
    zegformer.check("train/loss_total", sum(losses.values()))


def test_predictions_and_matching(zegformer, trained):
    model, _ = trained
    requests = batch(zegformer)
    views = model.views(requests)
    with torch.no_grad():
        logits_of = model.namers[0].class_logits(model.training_words(views))
        predictions, size = model.proposer.predict(views)
    truth = [request["instances"] for request in requests]
    gt_masks = [F.pad(t.gt_masks, (0, size[1] - t.gt_masks.shape[2], 0, size[0] - t.gt_masks.shape[1])) for t in truth]
    for layer, (embeddings, masks) in enumerate(predictions):
        name, logits = "final" if layer == len(predictions) - 1 else f"aux{layer}", logits_of(embeddings)
        zegformer.check(f"train/{name}/class_logits", logits)
        matches = match(logits, masks, [t.gt_classes for t in truth], gt_masks, mask_weight=20.0, dice_weight=1.0)
        for image, (queries, targets) in enumerate(matches):
            zegformer.check(f"train/match/{name}/img{image}/query", queries)
            zegformer.check(f"train/match/{name}/img{image}/target", targets)


def test_gradients(zegformer):
    """Compare in double precision, which the recorded norms have; the network's float32 differs by up to 5e-3."""
    model = zegformer.model(*TRAIN).train().double()
    model.criterion.float()
    sum(model(batch(zegformer)).values()).backward()
    norms = {name: p.grad.norm() for name, p in model.named_parameters() if p.requires_grad}
    names, expected, reliable = (zegformer.outputs[f"train/grad_{part}"] for part in ("names", "norms", "reliable"))
    assert set(norms) == set(names)  # CLIP and the scale do not train
    for name, norm, usable in zip(names, expected, reliable, strict=True):
        if usable:
            assert norms[name].item() == pytest.approx(norm, rel=1e-4), name
    assert reliable.sum() > 100
    total = torch.stack(list(norms.values())).norm()
    assert total.item() == pytest.approx(float(zegformer.outputs["train/grad_norm_total"]), rel=1e-4)


def test_image_without_masks(zegformer):
    losses = zegformer.model(*TRAIN).train()(batch(zegformer, empty_first=True))
    for name, loss in losses.items():
        zegformer.check(f"train_empty_gt0/loss_weighted/{name}", loss)


def test_metric(zegformer):
    """Ours gives the original's values; its other names are those of the same scores, or means over the splits."""
    names, unseen = zegformer.names("test"), zegformer.names("unseen")
    pairs = zip(zegformer.inputs["eval/pred"], zegformer.inputs["eval/gt"], strict=True)
    confusion = sum(confusion_matrix(pred, gt, len(names), 255) for pred, gt in pairs)
    zegformer.check("eval/conf_matrix", confusion)
    seen = [index for index, name in enumerate(names) if name not in unseen]
    ours = scores_from_confusion(confusion, names, {"base": seen})
    split = {"seen_IoU": "mIoU-base", "unseen_IoU": "mIoU-unbase", "seen_acc": "mIoU-base", "unseen_acc": "mIoU-unbase"}
    expected = dict(zip(zegformer.outputs["eval/result_names"], zegformer.outputs["eval/result_values"], strict=True))
    for name, value in expected.items():
        assert ours[split.get(name, name)] == pytest.approx(value, abs=1e-9), name
    a, b = expected["seen_IoU"], expected["unseen_IoU"]
    assert ours["hIoU-base"] == pytest.approx(2 * a * b / (a + b))


def test_metric_of_a_class_without_ground_truth(zegformer):
    """The original's means over a split are NaN; ours leave the class out, as its mean over all classes does."""
    confusion = np.zeros((4, 4), dtype=np.int64)
    confusion[0, 0], confusion[1, 1], confusion[0, 1] = 6, 2, 2
    scores = scores_from_confusion(confusion, ["a", "b", "c"], {"base": [0, 2]})
    assert scores["mIoU-base"] == pytest.approx(75) and scores["mIoU-unbase"] == pytest.approx(50)
    assert scores["hIoU-base"] == pytest.approx(60)
