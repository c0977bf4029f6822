"""SimBaseline against the numbers of the original: stages, all variants, losses, prompt training, the rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import Instances
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ovseg.adaptation.prompt_tuning import PromptTuner
from ovseg.checkpoint import load_model, load_weights, save_safetensors
from ovseg.evaluation.confusion import confusion_matrix, scores_from_confusion
from ovseg.evaluation.oracle import label_weights
from ovseg.evaluation.proposals import segment_intersections
from ovseg.meta_arch.simbaseline import text_adapter
from ovseg.naming.crops import expand_boxes, mask_boxes
from ovseg.proposals import criterion
from ovseg.proposals.matcher import match
from ovseg.vocabulary import Vocabulary
from tests.parity.fixture import prompt_state

CLIP = "MODEL.CLIP_ADAPTER."
REGION = f"{CLIP}REGION_CLIP_ADAPTER."
WEIGHT, THRESHOLD, PROMPTS = f"{CLIP}CLIP_ENSEMBLE_WEIGHT", f"{CLIP}MASK_THR", f"{CLIP}PROMPT_LEARNER"
AMPLIFIED = 1e-3  # tolerance where the weight amplifies small probabilities
NORM_TOLERANCE = 1e-3
IMAGES = (0, 1)
# keys of a variant, and whether its data set has a list of seen names
VARIANTS = {
    "cross": ((), False),
    "flag": ((), True),
    "clip_only_w0": ((WEIGHT, 0.0), False),
    "w1": ((WEIGHT, 1.0), True),
    "no_ensemble": ((f"{CLIP}CLIP_ENSEMBLE", False), False),
    "learnable": ((PROMPTS, "learnable"), True),
    "other_fill_expand": ((f"{CLIP}MASK_FILL", "zero", f"{CLIP}MASK_EXPAND_RATIO", 1.6), False),
    "matting": ((f"{CLIP}MASK_MATTING", True), False),
    "native_size": ((f"{CLIP}REGION_RESIZED", False), False),
    "native_size_ok": ((f"{CLIP}REGION_RESIZED", False, THRESHOLD, 0.3), False),
    "separate": ((f"{CLIP}SEPERATE_ADAPTER", True, PROMPTS, "predefined"), True),
    "no_valid": ((THRESHOLD, 1.0), True),
    "no_valid_w0": ((THRESHOLD, 1.0, WEIGHT, 0.0), True),
}


@pytest.fixture(scope="module")
def parity(simbaseline_parity):
    return simbaseline_parity


@pytest.fixture(scope="module")
def models(parity):
    """Return the function that builds the model of a variant, and keeps it."""
    built = {}

    def model_of(variant):
        if variant not in built:
            built[variant] = parity.model(*VARIANTS[variant][0])
        return built[variant]

    return model_of


def text_rows(parity, *opts, names="test", state=None):
    adapter = parity.model(*opts, state=state).clip_adapter
    words = Vocabulary.from_class_names(parity.names(names))
    with torch.no_grad():
        return adapter.text_matrix(words.texts), adapter, words


def test_text(parity):
    rows, adapter, words = text_rows(parity)
    parity.check("text/vild", rows)
    tokens = [adapter.text.tokenize([t.format(name) for t in adapter.text.templates]) for name in words.texts]
    parity.check("text/tokens_vild", torch.stack(tokens).int())
    parity.check("text/train_vild", text_rows(parity, names="train")[0])
    for prompts in ("imagenet", "predefined", "learnable"):
        parity.check(f"text/{prompts}", text_rows(parity, PROMPTS, prompts)[0])
    shape = (PROMPTS, "learnable", f"{CLIP}PROMPT_SHAPE", [3, 2])
    state = prompt_state(parity.weights, parity.extra)
    parity.check("text/learnable_shape2", text_rows(parity, *shape, state=state)[0])


@pytest.mark.parametrize("image", IMAGES)
def test_stages(parity, models, image):
    model, request = models("cross"), parity.request(image)
    views = model.views([request])
    height, width = views.images[0].shape[1:]
    padded = F.pad(model.proposer.normalize(views.images[0]), (0, -width % 32, 0, -height % 32))[None]
    with torch.no_grad():
        features = model.proposer.backbone(padded)
        for name, feature in features.items():
            thin = feature[0, :, ::2, ::2] if name == "res2" else feature[0]
            parity.check(f"img{image}/backbone/{name}", thin)
        mask_features, _ = model.sem_seg_head.pixel_decoder(features)
        parity.check(f"img{image}/mask_features_s2", mask_features[0, :, ::2, ::2])
        embeddings, masks = model.sem_seg_head(features)[-1]
        parity.check(f"img{image}/pred_masks", masks[0])
        parity.check(f"img{image}/pred_embed", embeddings[0])
        (found,) = model.proposer(views)
    text = model.clip_adapter.text_matrix(model.words_of(request).texts)
    parity.check(f"img{image}/class_logits", model.clip_adapter.similarity(embeddings[0], text))
    probabilities = found.probabilities
    parity.check(f"img{image}/mask_prob_s2", probabilities[:, ::2, ::2])
    binary = probabilities > model.mask_namer.mask_threshold
    parity.check(f"img{image}/mask_area", binary.flatten(1).sum(1))
    valid = binary.flatten(1).any(1)
    parity.check(f"img{image}/valid", valid)
    boxes = expand_boxes(mask_boxes(binary[valid]), 1.0, height, width)
    parity.check(f"img{image}/boxes", boxes.int())


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_variant(parity, models, variant, image):
    model, prefix = models(variant), f"img{image}/{variant}"
    failed = bool(parity.behaviour[f"exception/{variant}/img{image}"])  # of the original: nothing is recorded
    assert failed != (f"{prefix}/fused" in parity.outputs)
    request = parity.request(image, seen=VARIANTS[variant][1])
    with torch.no_grad():
        views, words = model.views([request]), model.words_of(request)
        masks = model.proposer(views)
        scores = [namer(views, masks, [words])[0] for namer in model.namers]
        fused = model.fuse(scores, None, model.seen_of(request, words))
        result = model([request])[0]["sem_seg"]
        alone = len(scores) == 2 and model.fuse.weight <= 0
        parity.check_recorded(f"{prefix}/fused", fused[scores[1].seen] if alone else fused, AMPLIFIED)
        parity.check_recorded(f"{prefix}/sem_seg", result, AMPLIFIED)
        parity.check_recorded(f"{prefix}/sem_seg_s3", result[:, ::3, ::3], AMPLIFIED)
        if len(scores) == 2:
            check_crops(parity, model, prefix, views, masks[0].probabilities[scores[1].seen], words)
        text = model.clip_adapter.text_matrix(words.texts)
        parity.check_recorded(f"{prefix}/class_logits", model.clip_adapter.similarity(masks[0].embeddings, text))
    assert result.isfinite().all()
    assert result.shape[0] == 5


def check_crops(parity, model, prefix, views, probabilities, words):
    namer = model.mask_namer
    (features,) = namer.features(views, [(0, probabilities)])
    adapter = namer.clip_adapter
    parity.check_recorded(f"{prefix}/clip_feat", features / features.norm(dim=1, keepdim=True))
    parity.check_recorded(f"{prefix}/clip_logits", adapter.similarity(features, adapter.text_matrix(words.texts)))
    if f"{prefix}/crops_mean" in parity.outputs:
        crops = torch.cat([rows[0] for rows in namer.inputs(views, 0, probabilities)])
        parity.check_recorded(f"{prefix}/crops_mean", crops.mean((2, 3)))
        parity.check_recorded(f"{prefix}/crops_stride16", crops[..., ::16, ::16])


def test_seen_words_make_a_difference(parity, models):
    """The list of the request, that of metadata, and no list, which means that all words are unseen."""
    model = models("cross")
    with torch.no_grad():
        unseen, seen = (model([parity.request(0, seen=seen)])[0]["sem_seg"] for seen in (False, True))
        none = model([parity.request(0) | {"seen": [False] * 5}])[0]["sem_seg"]
    assert torch.equal(unseen, none)
    assert not torch.equal(unseen, seen)


def test_batch(parity, models):
    model = models("cross")
    with torch.no_grad():
        requests = [parity.request(image) for image in IMAGES]
        results = model(requests)
        found = model.proposer(model.views(requests))
        text = model.clip_adapter.text_matrix(model.words_of(requests[0]).texts)
        parity.check("batch/class_logits_last", model.clip_adapter.similarity(found[1].embeddings, text))
    for image, result in enumerate(results):
        parity.check(f"batch/sem_seg_s3_{image}", result["sem_seg"][:, ::3, ::3], AMPLIFIED)


def batch(parity, empty_first=False):
    requests = []
    for index in IMAGES:
        image = torch.from_numpy(parity.inputs[f"train/image{index}"]).permute(2, 0, 1)
        instances = Instances(image.shape[1:])
        keep = slice(0, 0) if empty_first and index == 0 else slice(None)
        instances.gt_classes = torch.from_numpy(parity.inputs[f"train/gt_classes{index}"])[keep]
        instances.gt_masks = torch.from_numpy(parity.inputs[f"train/gt_masks{index}"]).bool()[keep]
        requests.append({"image": image, "instances": instances, "class_names": parity.names("train")})
    return requests


def later_of_equals(class_logits, mask_logits, gt_classes, gt_masks, **options):
    """Match, but prefer the later of two queries with equal masks: in the last layer, rounding decides otherwise."""
    matches = match(class_logits, mask_logits, gt_classes, gt_masks, **options)
    for masks, (queries, _) in zip(mask_logits.detach(), matches, strict=True):
        equal = torch.cdist(masks.flatten(1), masks.flatten(1), p=torch.inf) < 1e-4
        for place, query in enumerate(queries.tolist()):
            twin = int(equal[query].nonzero().max())
            queries[place] = query if twin in queries else twin
    return matches


@pytest.mark.parametrize(
    ("case", "opts"),
    [
        ("train", ()),
        ("train_learnable", (PROMPTS, "learnable")),
        ("train_eos0", ("MODEL.MASK_FORMER.NO_OBJECT_WEIGHT", 0.0)),
        ("train_empty_gt0", ()),
    ],
)
def test_training(parity, monkeypatch, case, opts):
    monkeypatch.setattr(criterion, "match", later_of_equals)
    model = parity.model(*opts).train()
    # the backward pass of PyTorch's fast attention on CPUs is inexact where queries are almost equal, as they are here
    with sdpa_kernel(SDPBackend.MATH):
        losses = model(batch(parity, empty_first=case == "train_empty_gt0"))
    assert len(losses) == 9
    weights = {"loss_ce": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}
    for name, loss in losses.items():
        parity.check(f"{case}/loss_weighted/{name}", loss)
        if case == "train":
            parity.check(f"train/loss_raw/{name}", loss / weights["_".join(name.split("_")[:2])])
    total = sum(losses.values())
    total.backward()
    if case == "train_empty_gt0":
        return
    parity.check(f"{case}/loss_total", total)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    norms = {name: p.grad.norm() for name, p in trained.items() if p.grad is not None}
    everything = torch.stack(list(norms.values())).norm()
    parity.check(f"{case}/grad_norm_total", everything, NORM_TOLERANCE)
    if case == "train_eos0":
        return
    names = parity.outputs[f"{case}/grad_names"]
    assert set(trained) == set(names)
    rows = zip(names, parity.outputs[f"{case}/grad_norms"], parity.outputs[f"{case}/grad_reliable"], strict=True)
    for name, norm, reliable in rows:
        if reliable:
            assert norms[name].item() == pytest.approx(norm, rel=NORM_TOLERANCE), name
        elif norm == -1:
            assert name not in norms


def test_predictions_and_matching(parity):
    model = parity.model().train()
    requests = batch(parity)
    with torch.no_grad():
        predictions, size = model.proposer.predict(model.views(requests))
        logits_of = model.namers[0].class_logits(model.training_words(model.views(requests)))
    truth = [request["instances"] for request in requests]
    gt_masks = [F.pad(t.gt_masks, (0, size[1] - t.gt_masks.shape[2], 0, size[0] - t.gt_masks.shape[1])) for t in truth]
    for layer, (embeddings, masks) in enumerate(predictions):
        which = "final" if layer == len(predictions) - 1 else f"aux{layer}"
        logits = logits_of(embeddings)
        parity.check(f"train/{which}/class_logits", logits)
        if which == "final":
            parity.check("train/final/pred_masks_s2", masks[..., ::2, ::2])
        classes = [t.gt_classes for t in truth]
        matches = later_of_equals(logits, masks, classes, gt_masks, mask_weight=20.0, dice_weight=1.0)
        for image, (queries, targets) in enumerate(matches):
            parity.check(f"train/match/{which}/img{image}/query", queries)
            parity.check(f"train/match/{which}/img{image}/target", targets)


def test_nothing_to_match_with_ignored_queries(parity):
    """The mean over no query at all is 0 here, not NaN."""
    model = parity.model("MODEL.MASK_FORMER.NO_OBJECT_WEIGHT", 0.0).train()
    losses = model(batch(parity, empty_first=True)[:1])
    assert all(loss == 0 for loss in losses.values())


def test_prompt_training(parity):
    cfg = parity.config(PROMPTS, "learnable", f"{CLIP}CLIP_WEIGHTS", "none")
    tuner = PromptTuner(text_adapter(cfg), Vocabulary.from_class_names(parity.names("train"))).train()
    own = tuner.state_dict()
    tuner.load_state_dict({name: parity.weights[name].to(own[name].dtype) for name in own})
    assert [name for name, p in tuner.named_parameters() if p.requires_grad] == parity.behaviour[
        "prompt_train/trainable"
    ]
    images, masks = (
        torch.from_numpy(parity.inputs[f"prompt_train/{name}_lowres"]).repeat_interleave(16, 1).repeat_interleave(16, 2)
        for name in ("image", "mask")
    )
    images, classes = images.permute(0, 3, 1, 2), torch.from_numpy(parity.inputs["prompt_train/gt_class"])
    parity.check("prompt_train/clip_input_stride16", tuner.inputs(images, masks)[..., ::16, ::16])
    features = tuner.image_features(images, masks)
    parity.check("prompt_train/image_feat", features / features.norm(dim=1, keepdim=True))
    parity.check("prompt_train/logits", tuner.logits(features))
    (loss,) = tuner((images, masks, classes)).values()
    parity.check("prompt_train/loss_cls", loss)
    loss.backward()
    parity.check("prompt_train/grad_prefix_prompt", tuner.clip_adapter.prompt_learner.prefix_prompt.grad, AMPLIFIED)


@pytest.mark.parametrize(
    ("case", "weight", "seen"),
    [("cross", 0.8, False), ("flag", 0.8, True), ("no_clip", 1.5, True), ("clip_only", -1.0, True)],
)
def test_per_pixel(parity, case, weight, seen):
    model = parity.per_pixel_model(WEIGHT, weight)
    with torch.no_grad():
        result = model([parity.request(0, seen=seen)])[0]["sem_seg"]
    parity.check(f"per_pixel/{case}/sem_seg_s3", result[:, ::3, ::3])


def test_per_pixel_training(parity):
    model = parity.per_pixel_model().train()
    requests = batch(parity)
    for index, request in enumerate(requests):
        request["sem_seg"] = torch.from_numpy(parity.inputs[f"train/label_map{index}"]).long()
    (loss,) = model(requests).values()
    parity.check("per_pixel/loss_sem_seg", loss)
    for request in requests:
        del request["sem_seg"]  # the mapper of this package gives masks
    assert model(requests)["loss_sem_seg"] == loss
    loss.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert all(name.startswith(("backbone.", "sem_seg_head.")) for name in trained)
    assert "sem_seg_head.predictor.weight" in trained


def test_oracle_is_soft_iou(parity):
    """The oracle of SimBaseline is TEST.ORACLE_LABEL soft_iou; it paints with K + 1 classes."""
    truth = torch.from_numpy(parity.inputs["train/gt_masks0"]).bool()
    classes = torch.from_numpy(parity.inputs["train/gt_classes0"])
    logits = torch.from_numpy(parity.outputs["img0/pred_masks"])
    soft = F.interpolate(logits[None], truth.shape[1:], mode="bilinear", align_corners=False)[0].sigmoid()
    labels = torch.zeros(truth.shape[1:], dtype=torch.long)
    for number, mask in enumerate(truth):
        labels[mask] = number
    counted = truth.any(0)
    overlaps = segment_intersections(soft.gt(0.5)[:, counted], labels[counted])
    # pixels of proposals outside all segments count in the union, as no segment is ignored here
    union = soft.gt(0.5).flatten(1).sum(1)[:, None] + truth.flatten(1).sum(1) - overlaps
    weights = torch.zeros(len(soft), len(parity.names("train")) + 1, dtype=soft.dtype)
    weights[:, classes] = label_weights(overlaps, overlaps / union, "soft_iou").to(soft.dtype)
    scores = torch.einsum("qk,qhw->khw", weights, soft)
    parity.check("oracle/sem_seg_s2", scores[:, ::2, ::2])


def test_evaluation(parity):
    names = [name.strip() for name in parity.names("test")]
    conf = sum(
        confusion_matrix(pred, gt, len(names), 255)
        for pred, gt in zip(parity.inputs["eval/pred"], parity.inputs["eval/gt"], strict=True)
    )
    parity.check("eval/conf_matrix", torch.from_numpy(conf))
    base = np.flatnonzero(parity.inputs["trainable_flag"]).tolist()
    scores = scores_from_confusion(conf, names, {"base": base})
    values = [scores[str(name)] for name in parity.outputs["eval/result_names"]]
    np.testing.assert_allclose(values, parity.outputs["eval/result_values"], rtol=1e-9)


def test_call_contract(parity, tmp_path):
    """The weight file loads by its published names, whole and into the original's names of architecture and head."""
    path = tmp_path / "weights.safetensors"
    save_safetensors(parity.weights, path)
    cfg = parity.config(PROMPTS, "learnable", "MODEL.WEIGHTS", path)
    cfg.MODEL.META_ARCHITECTURE = "ZeroShotMaskFormer"
    model = load_model(cfg, complete=True).eval()
    report = load_weights(model, path, complete=True)
    assert not report.missing and not report.unexpected
    with torch.no_grad():
        result = model([parity.request(0, seen=True)])[0]["sem_seg"]
    parity.check("img0/learnable/sem_seg_s3", result[:, ::3, ::3], AMPLIFIED)
