"""SCAN against the numbers of the original.

The reduced copy has neither the original CLIP's tower nor the lightweight transformer: what they gave is played back.
"""

from __future__ import annotations

import functools
import random

import pytest
import torch
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.clip.adapter import unit
from ovseg.clip.vit import WholeImages, foreground_patches, look_at_whole, squash
from ovseg.engine.solver import build_optimizer
from ovseg.meta_arch.pixel_scores import render_scores
from ovseg.naming import MaskedCrops
from ovseg.naming.contextual_shift import draw, draw_patches, encode_shifted, shifted_blocks, whole_images
from ovseg.naming.crops import crop_masks, has_pixel

RUNS = ("run0", "run1")
PLAIN = ("A", "B", "C_log", "D_cliponly", "F_noreplace")
DEMO = ("demo_multi", "demo_single")
NORM_TOLERANCE = 1e-3  # of gradients, relative
DEPTHS = (2, 3, 4)  # SELECT_ORI_CLIP_ID


class Recorded(nn.Module):
    """Module that returns its recorded output for any input."""

    def __init__(self, output: Tensor):
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        return self.output.view(x.shape)


def whole_image(scan_parity, run: str) -> WholeImages:
    """Return the recorded tokens of whole images; the reduced copy has patch tokens of one run, and zeros otherwise."""

    def read(name: str) -> Tensor:
        name = f"{run}/oriclip/{name}"
        return torch.from_numpy(scan_parity.outputs[name]) if name in scan_parity.outputs else torch.zeros(49, 1, 64)

    patches = [read(str(depth))[:, 0].T.unflatten(1, (7, 7)) for depth in DEPTHS]
    class_tokens = torch.cat([read(f"{depth}_cls_token") for depth in range(5)])
    return WholeImages(torch.stack(patches)[None], class_tokens, read("final_cls_token"))


@functools.cache
def model_for(scan_parity, run: str, architecture: str):
    model = scan_parity.model("MODEL.META_ARCHITECTURE", architecture, "MODEL.CLIP_ADAPTER.REPLACE_SEED", -1)
    scan_parity.play_back(model, run)
    if scan_parity.reduced:
        model.clip_adapter.encode_whole = lambda images, divisibility: whole_image(scan_parity, run)
        calibrated = Recorded(torch.from_numpy(scan_parity.outputs[f"{run}/cls/after_light"]))
        model.proposer.refine.lightweight_transformer = calibrated
    return model


def model_with(scan_parity, run: str, setting: str):
    """Return the model with the values of a setting; tests/meta_arch tests the configuration keys."""
    values = scan_parity.case["settings"][setting]
    model = model_for(scan_parity, run, "SCANDEMO" if setting in DEMO else "SCAN")
    crops = model.mask_namer
    model.parts = (*model.parts[:2], crops) if values["CLIP_ENSEMBLE"] else model.parts[:2]
    model.fuse.weight = values["CLIP_ENSEMBLE_WEIGHT"]
    model.mask_threshold = crops.mask_threshold = values["MASK_THR"]
    crops.replace_ratio = values["REPLACE_RATIO"]
    return model


def request(scan_parity, run: str, setting: str) -> dict:
    values = scan_parity.case["settings"][setting]
    asked = scan_parity.request(int(run[-1]))
    names = {"class_names": values["class_names"]} if "class_names" in values else {}
    meta = {"meta": {"dataset_name": values["dataset_name"]}} if "dataset_name" in values else {}
    return asked | names | meta


def seed(scan_parity, setting: str) -> None:
    random.seed(scan_parity.case["settings"][setting]["python_random_seed"])


@pytest.mark.parametrize("run", RUNS)
@torch.no_grad()
def test_whole_image(scan_parity, run):
    model = scan_parity.model("MODEL.SELECT_ORI_CLIP_ID", "[0, 1, 2, 3, 4]", "MODEL.FREQUENCY_SIGMA", "[1, 1, 1, 1, 1]")
    adapter = model.clip_adapter
    views = model.views([scan_parity.request(int(run[-1]))])
    squashed = squash(views.images, views.divisibility, 224, adapter.pixel_mean[0], adapter.pixel_std[0])
    scan_parity.check(f"{run}/clip_input_sub8", squashed[..., ::8, ::8])
    scan_parity.check(f"{run}/clip_input_sum", squashed.double().sum((2, 3)))
    if scan_parity.reduced:
        return
    seen = whole_images(views, adapter)
    for depth in range(5):
        scan_parity.check(f"{run}/oriclip/{depth}", seen.patches[:, depth].flatten(2).permute(2, 0, 1))
        scan_parity.check(f"{run}/oriclip/{depth}_cls_token", seen.class_tokens[depth][None])
    scan_parity.check(f"{run}/oriclip/final_cls_token", seen.features)


@pytest.mark.parametrize("run", RUNS)
@torch.no_grad()
def test_calibration(scan_parity, run):
    model, seen = scan_parity.model(), whole_image(scan_parity, run)
    if not seen.patches.any():
        pytest.skip("the reduced copy has the original CLIP's patches of one run only")
    text = model.clip_adapter.text_matrix(scan_parity.names("class_names"))
    scan_parity.check(f"{run}/text_features", text)
    enhanced = model.LFM(seen.patches)
    for level in range(3):
        scan_parity.check(f"{run}/lfm/{level}", enhanced[:, level])
    memory = model.oriclip_mlp(enhanced.flatten(3).transpose(2, 3).flatten(1, 2))
    scan_parity.check(f"{run}/oriclip_mlp", memory)
    embeddings = torch.from_numpy(scan_parity.outputs[f"{run}/pred/logits_raw"])
    fused = model.fusion_decoder(embeddings, memory)
    scan_parity.check(f"{run}/cls/after_fusion", fused)
    with_image = fused + model.learnable_weight * unit(seen.features)[:, None]
    scan_parity.check(f"{run}/cls/light_in", with_image[0])
    if scan_parity.reduced:
        calibrated = torch.from_numpy(scan_parity.outputs[f"{run}/cls/after_light"])[None]
    else:
        views = model.views([scan_parity.request(int(run[-1]))])
        views.once("whole images", lambda: seen)
        calibrated = model.proposer.refine(embeddings, views)
        scan_parity.check(f"{run}/cls/after_light", calibrated[0])
    scan_parity.check(f"{run}/cls/sim_logits", model.clip_adapter.similarity(calibrated, text))


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("setting", PLAIN + DEMO)
@torch.no_grad()
def test_setting(scan_parity, monkeypatch, run, setting):
    if scan_parity.reduced and run == "run1" and setting in ("B", "D_cliponly", "F_noreplace"):
        pytest.skip("the full recording has these of both images")
    model, asked, place = model_with(scan_parity, run, setting), request(scan_parity, run, setting), f"{run}/{setting}"
    adapter, namer, features = model.clip_adapter, model.mask_namer, []
    encode = namer.features
    monkeypatch.setattr(namer, "features", lambda *given: features.extend(encode(*given)) or features)
    seed(scan_parity, setting)
    scores = model([asked])[0]["sem_seg"]
    scan_parity.check(f"{place}/img0/sem_seg", scores)
    assert len(scores) == len(scan_parity.case["settings"][setting].get("effective_class_names", asked["class_names"]))

    masks, words = model.proposer(model.views([asked]))[0].probabilities, model.words_of(asked)
    text = adapter.text_matrix(words.texts, words.templates)
    if setting in DEMO:
        scan_parity.check(f"{place}/text_features", text)
        embeddings = torch.from_numpy(scan_parity.outputs[f"{run}/cls/after_light"])[None]
        scan_parity.check(f"{place}/sim_logits", adapter.similarity(embeddings, text))
    valid = has_pixel(masks, namer.mask_threshold)
    scan_parity.check(f"{place}/img0/valid", valid)
    scan_parity.check(f"{place}/img0/clip_features", unit(features[0]))
    scan_parity.check(f"{place}/img0/clip_logits", adapter.similarity(features[0], text))
    shown = torch.cat([crop_masks(*cut, 224) for cut in namer.cuts(masks[valid])])
    check_draws(scan_parity, f"{place}/img0", adapter.clip_model.visual, shown, setting, len(namer.replace_blocks))


def check_draws(scan_parity, place: str, visual, masks: Tensor, setting: str, layers: int) -> None:
    """Compare the number of background patches of each region and the drawn numbers, padded with -1."""
    background = (~foreground_patches(visual, masks)).sum(1)
    scan_parity.check(f"{place}/n_background", background)
    ratio = scan_parity.case["settings"][setting]["REPLACE_RATIO"]
    seed(scan_parity, setting)
    picks = draw(background.tolist(), ratio, layers, random)
    most = max(1, *(len(numbers) for of_layer in picks for numbers in of_layer))
    padded = [[numbers + [-1] * (most - len(numbers)) for numbers in of_layer] for of_layer in picks]
    scan_parity.check(f"{place}/picked", torch.tensor(padded))


@pytest.mark.parametrize("run", RUNS)
@torch.no_grad()
def test_crops_and_their_tokens(scan_parity, run):
    model = model_with(scan_parity, run, "A")
    views, namer = model.views([request(scan_parity, run, "A")]), model.mask_namer
    masks = model.proposer(views)[0].probabilities
    masks = masks[has_pixel(masks, namer.mask_threshold)]
    crops, shown = map(torch.cat, zip(*MaskedCrops.inputs(namer, views, 0, masks), strict=True))
    place, visual = f"{run}/A/img0", model.clip_adapter.clip_model.visual
    scan_parity.check(f"{place}/region_mean", crops.mean((2, 3)))
    scan_parity.check(f"{place}/region_std", crops.std((2, 3), correction=0))
    scan_parity.check(f"{place}/region0_sub4", crops[0, :, ::4, ::4])
    scan_parity.check(f"{place}/patch_fg", foreground_patches(visual, shown).byte())
    seed(scan_parity, "A")
    drawn = namer.draw(masks, random)
    tokens = {}
    hooks = [  # input of the next block
        visual.transformer.resblocks[depth].ln_1.register_forward_pre_hook(
            lambda norm, given, depth=depth: tokens.update({depth: given[0]})
        )
        for depth in namer.replace_blocks
    ]
    class_tokens = whole_images(views, model.clip_adapter).class_tokens
    encode_shifted(visual, crops[:4], drawn[:, :4], class_tokens, namer.replace_blocks)
    for hook in hooks:
        hook.remove()
    for depth, given in tokens.items():
        scan_parity.check(f"{place}/tokens_after_replace{depth}", given)
    assert set(tokens) == {1, 3}


@pytest.mark.parametrize("run", RUNS)
@torch.no_grad()
def test_raw_logits_that_the_original_renders_without_clip(scan_parity, run):
    """CLIP_ENSEMBLE False gives class probabilities, as in OVSeg; the original renders logits."""
    model = model_with(scan_parity, run, "E_noclip")
    asked = request(scan_parity, run, "E_noclip")
    masks = model.proposer(model.views([asked]))[0].probabilities
    logits = torch.from_numpy(scan_parity.outputs[f"{run}/cls/sim_logits"])[0]
    size = (asked["height"], asked["width"])
    scan_parity.check(f"{run}/E_noclip/img0/sem_seg", render_scores(logits, masks, size, 64))
    expected = render_scores(logits.softmax(-1)[:, :-1], masks, size, 64)
    torch.testing.assert_close(model([asked])[0]["sem_seg"], expected, rtol=1e-3, atol=1e-3)


def training_batch(scan_parity) -> list[dict]:
    requests = []
    for index in (0, 1):
        label = torch.from_numpy(scan_parity.inputs[f"train/label{index}"])
        instances = Instances(label.shape)
        instances.gt_classes = label.unique()[label.unique() != 255].long()
        instances.gt_masks = label[None] == instances.gt_classes[:, None, None]
        image = torch.from_numpy(scan_parity.inputs[f"train/image{index}"]).permute(2, 0, 1)
        requests.append({"image": image, "instances": instances, "class_names": scan_parity.names("train_class_names")})
    return requests


@pytest.fixture(scope="module")
def step(scan_parity):
    """Return the model after one backward pass, and its losses."""
    if scan_parity.reduced:
        pytest.skip("the reduced copy lacks the weights that training needs: set SCAN_PARITY")
    model = scan_parity.model().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torch.manual_seed(scan_parity.case["settings"]["train"]["torch_seed"])
    losses = model(training_batch(scan_parity))
    sum(losses.values()).backward()
    return model, losses


def test_losses(scan_parity, step):
    _, losses = step
    names = [str(name) for name in scan_parity.outputs["train/loss_names"]]
    assert set(losses) == set(names)
    scan_parity.check("train/losses_weighted", torch.stack([losses[name] for name in names]))
    scan_parity.check("train/total", sum(losses.values()))


def test_logits_of_all_layers(scan_parity, step):
    model, _ = step
    with torch.no_grad():
        predictions, _ = model.proposer.predict(model.views(training_batch(scan_parity)))
        text = model.clip_adapter.text_matrix(scan_parity.names("train_class_names"))
        scan_parity.check("train/pred_masks", predictions[-1][1])
        names = [f"train/aux{i}_sim_logits" for i in range(4)] + ["train/sim_logits"]
        for name, (embeddings, _) in zip(names, predictions, strict=True):
            scan_parity.check(name, model.clip_adapter.similarity(embeddings, text))


def test_gradients(scan_parity, step):
    model, _ = step
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    names = [str(name) for name in scan_parity.outputs["train/grad_names"]]
    assert set(gradients) == set(names)
    for name, expected in zip(names, scan_parity.outputs["train/grad_norms"], strict=True):
        norm = 0.0 if gradients[name] is None else gradients[name].norm().item()
        assert norm == pytest.approx(expected, rel=NORM_TOLERANCE, abs=1e-5), name
    for layer in model.lightweight_transformer.layers:  # queries and keys have no effect for a sequence of one
        assert not layer.self_attn.in_proj_weight.grad[:64].any()
        assert layer.self_attn.in_proj_weight.grad[64:].any()


def test_one_step_lowers_the_loss(scan_parity, step):
    model, losses = step
    optimizer = build_optimizer(scan_parity.config("SOLVER.BASE_LR", 1e-4), model)
    optimizer.step()
    torch.manual_seed(scan_parity.case["settings"]["train"]["torch_seed"])
    assert sum(model(training_batch(scan_parity)).values()) < sum(losses.values())


def test_fine_tuning_forward(scan_parity):
    """In the fine-tuning of CS-CLIP, each crop has the context of its own image."""
    model = scan_parity.model()
    adapter, settings = model.clip_adapter, scan_parity.case["settings"]["cs"]
    visual = adapter.clip_model.visual.requires_grad_(True)
    enlarge = lambda name: torch.from_numpy(scan_parity.inputs[name]).float().repeat_interleave(16, -1)  # noqa: E731
    crops, images, masks = (
        enlarge(f"cs/{name}_lowres").repeat_interleave(16, -2) for name in ("crop", "original", "mask")
    )
    masks = masks[:, None]
    blocks = shifted_blocks(settings["REPLACE_LAYER"], visual)
    check_draws(scan_parity, "cs", visual, masks, "cs", len(blocks))
    if scan_parity.reduced:
        return
    crops, images = ((x - adapter.pixel_mean) / adapter.pixel_std for x in (crops, images))
    seen = look_at_whole(adapter.original_clip, images, (0,))
    random.seed(settings["python_random_seed"])
    drawn = draw_patches(visual, masks, settings["REPLACE_RATIO"], len(blocks), random)
    features = unit(encode_shifted(visual, crops, drawn, seen.class_tokens, blocks))
    captions = [str(caption) for caption in scan_parity.inputs["cs/captions"]]
    text = unit(adapter.clip_model.encode_text(adapter.text.tokenize(captions)))
    scan_parity.check("cs/image_features", features)
    scan_parity.check("cs/text_features", text)
    logits, labels = adapter.clip_model.logit_scale.exp() * features @ text.T, torch.arange(4)
    loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    scan_parity.check("cs/loss", loss)
    loss.backward()
    scan_parity.check("cs/grad_norm_conv1", visual.conv1.weight.grad.norm(), NORM_TOLERANCE)
    scan_parity.check("cs/grad_norm_proj", visual.proj.grad.norm(), NORM_TOLERANCE)
