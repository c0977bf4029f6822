"""OpenSeg: a small one with random weights and the CLIP of the toy world; no matching, no "no object"."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from torch.nn import functional as F

from ovseg.checkpoint import load_weights, save_safetensors
from ovseg.config import load_cfg
from ovseg.errors import OvsegError
from ovseg.evaluation.grounding import present_only
from ovseg.evaluation.oracle_model import OracleMasks
from ovseg.meta_arch.pixel_scores import MaskSum, TextMaximum
from ovseg.proposals.class_agnostic import dice
from ovseg.vocabulary import Vocabulary

CONFIG = Path(__file__).parents[2] / "configs" / "toy" / "openseg_toy.yaml"
CANVAS, QUERIES = 64, 7
WORDS = ["red circle", "blue square", "green ring", "grass"]


def make(*opts):
    settings = {
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
        "MODEL.RESNETS.NORM": "FrozenBN",  # images of a batch do not depend on each other
        "MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR": "none",
        "MODEL.OPENSEG.CANVAS": CANVAS,
        "MODEL.OPENSEG.NUM_PROPOSALS": QUERIES,
        "MODEL.OPENSEG.NUM_BLOCKS": 2,
        "MODEL.OPENSEG.MASK_LOGIT_SCALE": 1.0,  # masks of random weights differ
    }
    torch.manual_seed(4)
    return build_model(load_cfg(CONFIG, [*(item for pair in settings.items() for item in pair), *opts]))


@pytest.fixture(scope="module")
def built():
    return make()


@pytest.fixture
def model(built):
    """Return the model in evaluation mode without gradients."""
    built.zero_grad(set_to_none=True)
    return built.eval()


def image_of(height=CANVAS, width=CANVAS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.rand(1, 3, 4, 4, generator=generator)
    image = F.interpolate(blocks, (height, width), mode="nearest")[0] * 200
    return image + 55 * torch.rand(3, height, width, generator=generator)


def masks_of(height, width, number, seed=0):
    masks = torch.zeros(number, height, width, dtype=torch.bool)
    for index, mask in enumerate(masks):
        top, left = (index * 11 + seed * 5) % (height // 2), (index * 17 + seed * 3) % (width // 2)
        mask[top : top + height // 3, left : left + width // 2] = True
    return masks


def sample(seed=0, size=(CANVAS, CANVAS), masks=3, words=("red circle", "grass")):
    instances = Instances(size, gt_masks=masks_of(*size, masks, seed))
    return {"image": image_of(*size, seed), "instances": instances, "caption_words": list(words)}


def batch():
    return [sample(0), sample(1, (48, CANVAS), 2, ("blue square",)), sample(2, words=("green ring", "sky", "red ring"))]


def losses_of(model, samples):
    model.train()
    return model(samples)


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def moved(found, prefix):
    return any(name.startswith(prefix) and grad.abs().sum() > 0 for name, grad in found.items())


# --- training


def test_both_losses_are_always_there_and_train(model):
    usual = batch()
    without_masks = [{**one, "instances": one["instances"][:0]} for one in usual]
    without_captions = [{**one, "caption_words": []} for one in usual]
    neither = [{**one, "caption_words": []} for one in without_masks]
    for samples, zero in (
        (usual, ()),
        (without_masks, ("loss_segmentation",)),
        (without_captions, ("loss_grounding",)),
        (neither, ("loss_grounding", "loss_segmentation")),
    ):
        losses = losses_of(model, samples)
        assert set(losses) == {"loss_grounding", "loss_segmentation"}
        assert {name for name, loss in losses.items() if loss == 0} == set(zero)
        found = gradients(model, sum(losses.values()))
        assert all(grad.isfinite().all() for grad in found.values())
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert set(found) == trained  # with zeros: DistributedDataParallel waits for every parameter
        assert any(grad.abs().sum() > 0 for grad in found.values()) == (len(zero) < 2)


def test_a_temperature_at_its_bound_still_trains(model):
    namer, bound = model.namers[0], model.namers[0].tau_min
    before = namer.log_scale.detach().clone()
    with torch.no_grad():
        namer.log_scale.fill_(10.0)
    found = gradients(model, losses_of(model, batch())["loss_grounding"])
    assert namer.tau.item() == pytest.approx(bound) and found["log_scale"] != 0
    with torch.no_grad():
        namer.log_scale.copy_(before)


def test_words_of_captions_are_encoded_once_and_alone(model, monkeypatch):
    namer, asked = model.namers[0], []
    encode = namer.clip_adapter.text_rows
    monkeypatch.setattr(namer.clip_adapter, "text_rows", lambda words: asked.append(tuple(words)) or encode(words))
    namer._rows.clear()
    losses_of(model, batch())
    words = {word for one in batch() for word in one["caption_words"]}
    assert sorted(asked) == [(word,) for word in sorted(words)]
    losses_of(model, batch())
    assert len(asked) == len(words)


def test_one_image_without_masks_or_words_leaves_its_loss_alone(model):
    samples = batch()
    samples[1] = sample(1, (48, CANVAS), 0, ())
    both = losses_of(model, samples)
    rest = losses_of(model, [samples[0], samples[2]])
    for name, loss in both.items():
        torch.testing.assert_close(loss, rest[name], rtol=1e-4, atol=1e-5)


def test_the_kind_of_masks_does_not_matter_and_classes_are_not_read(model):
    usual = losses_of(model, batch())
    changed = batch()
    for one in changed:
        masks = one["instances"].gt_masks
        one["instances"] = Instances(
            masks.shape[1:], gt_masks=BitMasks(masks), gt_classes=torch.full((len(masks),), 999)
        )
    for name, loss in losses_of(model, changed).items():
        assert torch.equal(loss, usual[name])


def test_masks_that_win_no_label_have_no_gradient_from_labels(model):
    samples = [sample(0, masks=2)]
    losses = losses_of(model, samples)
    views = model.views(samples)
    logits = model.proposer.mask_logits(views)[0].detach().sigmoid()
    labels = samples[0]["instances"].gt_masks[:, 2::4, 2::4]
    winners = set(dice(logits, labels).argmax(0).tolist())
    of_labels = gradients(model, losses["loss_segmentation"])["queries"]
    assert {index for index in range(QUERIES) if of_labels[index].abs().sum() > 0} == winners
    words = [sample(0), sample(1)]
    of_words = gradients(model, losses_of(model, words)["loss_grounding"])["queries"]
    assert (of_words.abs().sum(1) > 0).all()


def test_captions_train_masks_but_not_the_text_tower(model):
    losses = losses_of(model, batch())
    by_words = gradients(model, losses["loss_grounding"])
    for prefix in ("backbone.", "pyramid.", "mask_branch.", "semantic_branch.", "blocks.", "position.", "log_scale"):
        assert moved(by_words, prefix), prefix
    by_masks = gradients(model, losses_of(model, batch())["loss_segmentation"])
    assert moved(by_masks, "mask_branch.") and not moved(by_masks, "semantic_branch.")
    assert not any(name.startswith("clip_adapter") for name in (*by_words, *by_masks))
    assert not any(p.requires_grad for name, p in model.named_parameters() if name.startswith("clip_adapter"))


def test_order_of_proposals_and_of_the_batch_is_free(model):
    expected = losses_of(model, batch())
    shuffled = losses_of(model, [batch()[index] for index in (2, 0, 1)])
    for name, loss in shuffled.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-4, atol=1e-5)
    request = {"image": image_of(50, 40), "class_names": WORDS}
    with torch.no_grad():
        before = model.eval()([request])[0]["sem_seg"]
        kept = model.queries.data.clone()
        model.queries.data = kept.flip(0)
        try:
            torch.testing.assert_close(model([request])[0]["sem_seg"], before, rtol=1e-4, atol=1e-5)
            for name, loss in losses_of(model, batch()).items():
                torch.testing.assert_close(loss, expected[name], rtol=1e-4, atol=1e-5)
        finally:
            model.queries.data = kept


def test_order_and_repetition_of_words_is_free(model):
    expected = losses_of(model, batch())["loss_grounding"]
    changed = batch()
    changed[2]["caption_words"] = ["red ring", "green ring", "red ring", "sky"]
    torch.testing.assert_close(losses_of(model, changed)["loss_grounding"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("words", ["grass", ["red circle", ""], [3]])
def test_captions_that_are_no_words(model, words):
    with pytest.raises(OvsegError, match="caption_words is"):
        losses_of(model, [{**sample(0), "caption_words": words}])


def test_labels_of_an_image_larger_than_the_canvas(model):
    """They are those of the image scaled down to the canvas."""
    large = sample(0, (2 * CANVAS, 2 * CANVAS))
    losses = losses_of(model, [large, sample(1)])
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    wrong = {**large, "instances": sample(0)["instances"]}
    with pytest.raises(OvsegError, match="both must be of one size"):
        losses_of(model, [wrong])


def test_mixed_precision_is_finite_and_close(model):
    expected = losses_of(model, batch())
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(model, batch())
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected[name].item(), rel=0.15), name
    assert all(grad.isfinite().all() for grad in gradients(model, sum(losses.values())).values())
    request = {"image": image_of(50, 40), "class_names": WORDS}
    with torch.no_grad():
        full = model.eval()([request])[0]["sem_seg"]
        with torch.autocast("cpu", torch.bfloat16):
            half = model([request])[0]["sem_seg"]
    assert (half - full).abs().max() < 0.1 * full.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pooled_sums_do_not_overflow(model, dtype):
    views, namer = model.views([sample(0)]), model.namers[0]
    side = CANVAS // 4
    pixels = torch.full((1, namer.clip_adapter.embed_dim, side, side), 3e4, dtype=dtype)  # the sum is 8e6
    views.once(("pixel embeddings", id(namer)), lambda: pixels)
    weights = torch.ones(1, 2, side, side, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        regions = namer.regions(views, weights)
    assert regions.dtype == torch.float32
    torch.testing.assert_close(regions, pixels[..., :1, 0].float().mT.expand(1, 2, -1) * side**2)


# --- evaluation


def ask(model, **request):
    with torch.no_grad():
        return model.eval()([{"class_names": WORDS, **request}])[0]


@pytest.mark.parametrize("size", [(64, 64), (40, 64), (33, 21), (130, 90)])
def test_outputs_of_any_size(model, size):
    outputs = ("sem_seg", "label_map", "proposals", "soft_proposals")
    found = ask(model, image=image_of(*size), outputs=outputs, height=75, width=51)
    assert found["sem_seg"].shape == (len(WORDS), 75, 51) and found["sem_seg"].dtype == torch.float32
    assert torch.equal(found["label_map"], found["sem_seg"].argmax(0))
    assert found["proposals"].shape == found["soft_proposals"].shape == (model.num_proposals, 75, 51)
    assert torch.equal(found["proposals"], found["soft_proposals"] > 0.5)
    assert model.num_proposals == QUERIES


def test_scores_are_cosines_times_masks(model):
    """Equation 6, from the parts of the model."""
    request = {"image": image_of(48, 40), "class_names": WORDS, "outputs": ("sem_seg", "soft_proposals")}
    found = ask(model, **request)
    with torch.no_grad():
        views, namer = model.views([request]), model.namers[0]
        logits = model.proposer.mask_logits(views)
        inside = torch.zeros(CANVAS // 4, CANVAS // 4)
        inside[:12, :10] = 1
        regions = torch.einsum("nhw,dhw->nd", logits[0].sigmoid() * inside, namer.pixels(views)[0])
        text = namer.clip_adapter.text_rows(WORDS)
        cosines = F.normalize(regions, dim=1) @ F.normalize(text, dim=1).T
        masks = F.interpolate(logits, (CANVAS, CANVAS), mode="bilinear")[0, :, :48, :40].sigmoid()
    torch.testing.assert_close(found["soft_proposals"], masks)
    torch.testing.assert_close(found["sem_seg"], torch.einsum("nk,nhw->khw", cosines, masks), rtol=1e-4, atol=1e-5)


def test_an_image_larger_than_the_canvas_is_scaled_down(model):
    image = image_of(2 * CANVAS, CANVAS)
    small = F.interpolate(image[None], (CANVAS, CANVAS // 2), mode="bilinear", antialias=True)[0]
    expected = ask(model, image=small, height=2 * CANVAS, width=CANVAS)["sem_seg"]
    found = ask(model, image=image)["sem_seg"]
    assert found.shape[1:] == image.shape[1:]
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()  # whatever the filter


def test_images_of_a_batch_do_not_depend_on_each_other(model):
    requests = [
        {"image": image_of(*size, seed), "class_names": WORDS} for seed, size in enumerate([(64, 40), (31, 64)])
    ]
    with torch.no_grad():
        together = model([*requests])
    for request, found in zip(requests, together, strict=True):
        torch.testing.assert_close(found["sem_seg"], ask(model, **request)["sem_seg"], rtol=1e-4, atol=1e-5)


def test_the_score_of_a_word_does_not_depend_on_other_words(model):
    assert model.scores_are_independent
    image = image_of(50, 40)
    together = ask(model, image=image)["sem_seg"]
    for index in ((0,), (2, 1), (3, 0, 2)):
        alone = ask(model, image=image, class_names=[WORDS[i] for i in index])["sem_seg"]
        torch.testing.assert_close(alone, together[list(index)], rtol=1e-4, atol=1e-5)
    labels = torch.arange(50 * 40).reshape(50, 40) % 2 * 3  # classes 0 and 3: one pass is enough
    of_two = ask(model, image=image, class_names=[WORDS[0], WORDS[3]], outputs=("label_map",))["label_map"]
    one_pass = present_only(together, labels, 255).argmax(0)
    assert (one_pass != of_two * 3).float().mean() < 0.005  # ties of rounding


def test_constants_of_the_cosines_and_granularity_are_no_independent_scores(model):
    model.granularity = 0.5
    try:
        assert not model.scores_are_independent
    finally:
        model.granularity = None


def test_synonyms_by_region_and_by_pixel():
    names = [("red circle", "red disc"), "grass", ("blue square", "sky", "water")]
    texts = ["red circle", "red disc", "grass", "blue square", "sky", "water"]
    by_region, by_pixel = make(), make("MODEL.OPENSEG.SYNONYM_MAX", "pixel")
    by_pixel.load_state_dict(by_region.state_dict())
    outputs = ("sem_seg", "label_map", "explanations")
    request = {"image": image_of(50, 40), "height": 60, "width": 48, "outputs": outputs}
    maps = ask(by_region, **{**request, "class_names": texts})["sem_seg"]
    expected = torch.stack([maps[:2].amax(0), maps[2], maps[3:].amax(0)])
    found, region = (ask(model, **request, class_names=names) for model in (by_pixel, by_region))
    torch.testing.assert_close(found["sem_seg"], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found["label_map"], found["sem_seg"].argmax(0))
    assert (region["sem_seg"] >= expected - 1e-5).all()  # a sum of maxima
    torch.testing.assert_close(found["explanations"], region["explanations"], equal_nan=True)
    by_pixel.render.class_chunk_size = 1  # texts of a word in several chunks
    chunked = ask(by_pixel, **request, class_names=names)
    torch.testing.assert_close(chunked["sem_seg"], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(chunked["label_map"], chunked["sem_seg"].argmax(0))
    coarse = ask(by_pixel, **request, class_names=names, granularity=1.0)
    assert coarse["sem_seg"].shape == found["sem_seg"].shape
    by_pixel.seen_bias = 0.5
    biased = ask(by_pixel, **request, class_names=names, seen=[True, False, False])["sem_seg"]
    torch.testing.assert_close(biased, expected - torch.tensor([0.5, 0, 0])[:, None, None], rtol=1e-4, atol=1e-5)


def test_maximum_over_texts_after_the_sum_over_masks():
    torch.manual_seed(0)
    words = Vocabulary.from_words([("a", "b", "c"), "d", ("e", "f")])
    scores, masks = torch.randn(5, 6), torch.rand(5, 8, 9)
    of_texts = torch.einsum("ns,nhw->shw", scores, masks)
    expected = torch.stack([of_texts[:3].amax(0), of_texts[3], of_texts[4:].amax(0)])
    for chunk in (1, 2, 64):
        render = TextMaximum(chunk)
        found = render(scores, masks, words, (8, 9), ("sem_seg", "label_map"))
        torch.testing.assert_close(found["sem_seg"], expected)
        assert torch.equal(found["label_map"], expected.argmax(0))
        torch.testing.assert_close(found["score_map"], expected.amax(0))
    by_mask = MaskSum()(render.of_words(scores, words), masks, words, (8, 9), ("sem_seg",))["sem_seg"]
    assert (by_mask - expected).min() > -1e-5 and (by_mask - expected).max() > 0.1


# --- ablations with the same weights


@pytest.fixture(scope="module")
def per_pixel(built):
    return filled("none", built)


@pytest.fixture(scope="module")
def true_masks(built):
    return filled("gt", built)


def filled(kind, built):
    model = make("MODEL.OPENSEG.TEST_PROPOSALS", kind)
    assert list(model.state_dict()) == list(built.state_dict())
    model.load_state_dict(built.state_dict())
    return model


def test_ablations_train_as_the_model(model, per_pixel, true_masks):
    expected = losses_of(model, batch())
    for other in (per_pixel, true_masks):
        for name, loss in losses_of(other, batch()).items():
            torch.testing.assert_close(loss, expected[name])


def test_pixels_without_masks(model, per_pixel):
    request = {"image": image_of(48, 40), "class_names": WORDS, "outputs": ("sem_seg", "label_map")}
    found = ask(per_pixel, **request)
    assert per_pixel.scores_are_independent
    with torch.no_grad():
        pixels = model.namers[0].pixels(model.eval().views([request]))[0]
        text = F.normalize(model.namers[0].clip_adapter.text_rows(WORDS), dim=1)
        cosines = torch.einsum("dhw,kd->khw", F.normalize(pixels, dim=0), text)
        expected = F.interpolate(cosines[None], (CANVAS, CANVAS), mode="bilinear")[0, :, :48, :40]
    torch.testing.assert_close(found["sem_seg"], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found["label_map"], found["sem_seg"].argmax(0))
    assert ask(per_pixel, image=image_of(130, 90))["sem_seg"].shape == (len(WORDS), 130, 90)
    names = [(WORDS[0], WORDS[1]), WORDS[2]]
    best = ask(per_pixel, image=request["image"], class_names=names)["sem_seg"]
    torch.testing.assert_close(best[1], found["sem_seg"][2], rtol=1e-4, atol=1e-5)
    assert (best[0] <= found["sem_seg"][:2].amax(0).max() + 1e-5).all()
    with pytest.raises(OvsegError, match="no masks"):
        ask(per_pixel, image=request["image"], outputs=("proposals",))


@pytest.mark.parametrize("scale", [1, 2])
def test_true_masks_are_those_of_the_oracle(model, true_masks, scale):
    labels = torch.full((CANVAS * scale, 48 * scale), 255)
    labels[: 20 * scale], labels[20 * scale : 44 * scale, : 16 * scale], labels[44 * scale :] = 2, 0, 3
    request = {"image": image_of(*labels.shape), "class_names": WORDS, "file_name": "scene.png", "sem_seg": labels}
    outputs = ("label_map", "proposals", "sem_seg")
    found = ask(true_masks, **request, outputs=outputs)
    truth = SimpleNamespace(
        labels=lambda request: (labels.numpy(), "labels.png"), class_names=tuple(WORDS), ignore_label=255
    )
    for either in (model, true_masks):
        oracle = OracleMasks(either.eval(), truth)
        with torch.no_grad():
            answer = oracle([request])[0]
        counted = labels != 255
        same = (found["label_map"] == answer["label_map"])[counted].float().mean().item()
        assert same == 1
    assert torch.equal(found["proposals"], labels == torch.tensor([0, 2, 3])[:, None, None])
    assert not found["sem_seg"][:, 24 * scale, -1].any()  # no mask is there
    with pytest.raises(OvsegError, match="GroundTruth needs labels"):
        ask(true_masks, image=image_of())


def test_names_of_true_masks_come_from_the_pixels_inside(model):
    """A mask whose sides are multiples of the stride has the sum of its own places."""
    request, mask = {"image": image_of(), "class_names": WORDS}, torch.zeros(1, CANVAS, CANVAS, dtype=torch.bool)
    mask[0, 8:24, 16:40] = True
    with torch.no_grad():
        found = model.name_masks(request, mask)
        namer = model.namers[0]
        region = namer.pixels(model.views([request]))[0, :, 2:6, 4:10].sum((1, 2))
        expected = F.cosine_similarity(region[None], namer.clip_adapter.text_rows(WORDS), dim=1)
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)


def test_the_two_forms_of_positions():
    separable = make("MODEL.OPENSEG.POS_EMBED", "separable", "MODEL.OPENSEG.SELF_ATTN", True)
    assert sum(value.numel() for name, value in separable.state_dict().items() if name.startswith("position")) == (
        2 * 64 * CANVAS // 4
    )
    assert np.isfinite(ask(separable, image=image_of(40, 64))["sem_seg"].numpy()).all()
    assert all(loss.isfinite() for loss in losses_of(separable, batch()).values())


@pytest.mark.parametrize("form", ["full", "separable"])
def test_weights_of_another_canvas(form, built, tmp_path):
    small = built if form == "full" else make("MODEL.OPENSEG.POS_EMBED", form)
    save_safetensors(small.state_dict(), tmp_path / "small.safetensors")
    same, large = (make("MODEL.OPENSEG.POS_EMBED", form, "MODEL.OPENSEG.CANVAS", side) for side in (CANVAS, 96))
    for model in (same, large):
        load_weights(model, tmp_path / "small.safetensors", complete=True)
    request = {"image": image_of(50, 40)}
    torch.testing.assert_close(ask(same, **request)["sem_seg"], ask(small, **request)["sem_seg"], rtol=1e-5, atol=1e-6)
    assert torch.equal(same.position((16, 16)), small.position((16, 16)))
    assert ask(large, image=image_of(96, 80))["sem_seg"].shape == (len(WORDS), 96, 80)
    expected = F.interpolate(small.position((16, 16))[None], (24, 24), mode="bilinear")[0]
    torch.testing.assert_close(large.position((24, 24)), expected)
