"""Mode contextual-shift: what is drawn and seen, what trains, resuming, and the original's recorded step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovseg.adaptation.context import CropsInContext
from ovseg.adaptation.contrastive import contrastive_loss, encode_in_parts
from ovseg.adaptation.crops import TrainingCrops, filled, normalised, squash, unlike_fill
from ovseg.adaptation.finetune import finetune, read_pairs
from ovseg.adaptation.fusion import fuse_files
from ovseg.adaptation.recipe import SHIFT, Recipe, read_recipe
from ovseg.adaptation.tuned_clip import ORIGINAL, load_for_tuning
from ovseg.checkpoint import save_safetensors
from ovseg.checkpoint.state_dicts import bare_clip_names, read_state_dict
from ovseg.clip.vit import foreground_patches
from ovseg.engine.checkpoints import CheckpointFolder
from ovseg.errors import OvsegError
from ovseg.naming.contextual_shift import drawn_patches
from tests.adaptation import tiny
from tests.parity.fixture import load_scan
from tools import finetune_clip

CONFIGS = Path(__file__).parents[2] / "configs" / "adaptation"
WRAPPED, OF_ORIGINAL = "module.clip_model.", f"module.{ORIGINAL}"
pytestmark = pytest.mark.usefixtures("one_thread")


def load(inputs, **options):
    job = tiny.make_job(inputs, inputs, SHIFT, **options)
    return load_for_tuning(job.architecture, job.clip, job.tune, job.recipe, depth_asked=False)


def test_saved_as_scans_wrapper_and_fused_into_scan(inputs, finished_shift, tmp_path):
    before = read_state_dict(inputs / "clip.safetensors")
    state = torch.load(finished_shift / "epoch_2.pt", weights_only=True)["state_dict"]
    assert {n for n in state if n.startswith(WRAPPED)} == {WRAPPED + n for n in before}
    original = {n.removeprefix(OF_ORIGINAL): t for n, t in state.items() if n.startswith(OF_ORIGINAL)}
    assert len(state) == len(before) + len(original)
    for name, tensor in before.items():
        visual = name.startswith("visual.")
        assert torch.equal(state[WRAPPED + name], tensor) != (visual or name == "logit_scale"), name
        assert not visual or torch.equal(original.pop(name.removeprefix("visual.")), tensor)
    assert not original

    segmenter = {f"clip_adapter.clip_model.{name}": tensor for name, tensor in before.items()}
    segmenter |= {f"clip_adapter.original_clip.{n[7:]}": t for n, t in before.items() if n.startswith("visual.")}
    torch.save({"model": {**segmenter, "oriclip_mlp.fc1.bias": torch.ones(2)}}, tmp_path / "Seg_model.pth")
    report = fuse_files(finished_shift / "epoch_2.pt", tmp_path / "Seg_model.pth", tmp_path / "SCAN.pth")
    assert len(report.replaced) == len(before) and not report.added and not report.unknown and not report.settings
    assert len(report.ignored) == sum(name.startswith("visual.") for name in before)
    fused = torch.load(tmp_path / "SCAN.pth", weights_only=True)["model"]
    assert fused.keys() == segmenter.keys() | {"oriclip_mlp.fc1.bias"}
    for name, tensor in fused.items():
        if name.startswith("clip_adapter.clip_model."):
            assert torch.equal(tensor, state[f"module.{name.removeprefix('clip_adapter.')}"])
        elif name in segmenter:
            assert torch.equal(tensor, segmenter[name])


def test_best_is_a_plain_clip(inputs, finished_shift):
    best = read_state_dict(finished_shift / "best.safetensors")
    assert best.keys() == read_state_dict(inputs / "clip.safetensors").keys()
    epoch = int(torch.load(finished_shift / "last.pt", weights_only=True)["best_epoch"])
    chosen = bare_clip_names(read_state_dict(finished_shift / f"epoch_{epoch}.pt"))
    assert all(torch.equal(best[name], tensor) for name, tensor in chosen.items())
    assert [line["val/crops"] for line in tiny.metrics(finished_shift) if "val/crops" in line] == [8, 8, 8]


def test_stopped_and_resumed(inputs, finished_shift, tmp_path, monkeypatch):
    """The original tower comes from the checkpoint, whatever --clip says by then."""
    job = tiny.make_job(inputs, tmp_path / "run", SHIFT, val=str(inputs / "val"))
    with monkeypatch.context() as patch:
        save = CheckpointFolder.save

        def stop_at_the_second(folder, name, content):
            save(folder, name, content)
            if content.get("step") == 4:
                raise KeyboardInterrupt

        patch.setattr(CheckpointFolder, "save", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            finetune(job)
    with pytest.raises(OvsegError, match=r"has replace_ratio 0.5, not 0.2: --resume needs the same"):
        finetune(replace(job, resume=True, recipe=replace(job.recipe, replace_ratio=0.2)))
    finetune(replace(job, resume=True, clip="nowhere.pt", recipe=replace(job.recipe, workers=1)))
    tiny.assert_same_run(job.output, finished_shift)


def test_a_new_run_keeps_the_original_of_an_earlier_one(inputs, finished_shift):
    before = read_state_dict(inputs / "clip.safetensors")
    tuned = load(inputs, clip=str(finished_shift / "epoch_1.pt"))
    assert torch.equal(tuned.shift.original.proj, before["visual.proj"])
    assert not torch.equal(tuned.model.visual.proj, before["visual.proj"])


@pytest.mark.parametrize("options", [{"micro_batch": 3}, {"precision": "bf16"}, {"checkpoint_activations": True}])
def test_ways_to_save_memory(inputs, finished_shift, tmp_path, options):
    finetune(tiny.make_job(inputs, tmp_path / "run", SHIFT, epochs=1, **options))
    ours, theirs = (next(m["loss"] for m in tiny.metrics(f) if "loss" in m) for f in (tmp_path / "run", finished_shift))
    assert ours == pytest.approx(theirs, abs=0.02 if "precision" in options else 1e-5)


@pytest.fixture(scope="module")
def tuned(inputs):
    return load(inputs, replace_layers=(1, 2))


@pytest.fixture(scope="module")
def items(inputs, tuned):
    """Crops of all pairs in context; ``asked``: the images that were looked at."""
    pairs, texts = read_pairs([str(inputs / "small")])
    crops = TrainingCrops(pairs, torch.arange(len(texts)), 32, Recipe(mask_from="colour"))
    asked = []

    def look(paths):
        asked.extend(paths)
        return tuned.shift.look(torch.stack([whole(path) for path in paths]))

    items = CropsInContext(crops, tuned.shift, [inputs / "images" / f"{k // 2}.jpg" for k in range(len(texts))], look)
    items.asked = asked
    return items


def whole(path):
    pixels = Image.open(path).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    return torch.from_numpy(normalised(np.asarray(pixels)).transpose(2, 0, 1))


def test_each_crop_gets_its_own_image_and_its_own_draws(inputs, tuned, items):
    assert items.asked == [inputs / "images" / f"{k}.jpg" for k in range(11)], "each once"
    for key in ((0, 4), (0, 5), (1, 4)):
        crop, drawn, tokens, number = items[key]
        plain, mask, _ = items.crops[key]
        assert torch.equal(crop, plain) and number == key[1]
        torch.testing.assert_close(tokens, tuned.shift.look(whole(inputs / "images" / "2.jpg")[None])[0])
        foreground = foreground_patches(tuned.model.visual, mask[None].float())[0]
        assert drawn.shape == (2, 16) and not (drawn & foreground).any()
        assert drawn.sum(1).tolist() == [int((~foreground).sum()) // 2] * 2
        assert torch.equal(drawn, items[key][1]), "the same at any time"
    assert not torch.equal(items[0, 4][1], items[1, 4][1]), "another epoch, other draws"


@torch.no_grad()
def test_encoding_by_hand(inputs, tuned, items):
    """Block by block with open_clip's own embedding; the third block, which is not asked for, changes nothing."""
    crops, drawn, tokens, _ = (torch.stack(parts) for parts in zip(*(items[0, k] for k in (0, 7, 12)), strict=True))
    visual, original = tuned.model.visual, tuned.shift.original
    assert drawn.any()
    for row, image in enumerate(("0.jpg", "3.jpg", "6.jpg")):
        x, context = visual._embeds(crops[row : row + 1]), original._embeds(whole(inputs / "images" / image)[None])
        for number, (block, frozen) in enumerate(
            zip(visual.transformer.resblocks, original.transformer.resblocks, strict=True), 1
        ):
            x, context = block(x), frozen(context)
            for patch in drawn[row, number - 1].nonzero()[:, 0].tolist() if number < 3 else ():
                x[0, 1 + patch] = context[0, 0]
        expected = visual.ln_post(x)[:, 0] @ visual.proj
        torch.testing.assert_close(tuned.encode(crops, drawn, tokens)[row], expected[0], rtol=0, atol=1e-5)


def test_masks_of_validation_are_drawn_for_each_picture(tuned):
    masks = torch.zeros(3, 1, 32, 32, dtype=torch.uint8)
    masks[:, :, :8, :8] = 1
    crops = [(torch.zeros(3, 3, 32, 32), masks, torch.arange(3))] * 2
    items = CropsInContext(crops, tuned.shift, [Path("a"), Path("b")], lambda paths: torch.randn(2, 2, 32))
    _, drawn, tokens, labels = items[1]
    assert drawn.shape == (3, 2, 16) and drawn.sum(2).unique().tolist() == [7]  # half of 15
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn, items[0][1])
    assert all(torch.equal(tokens[k], items.tokens[1]) for k in range(3)) and labels.tolist() == [0, 1, 2]
    broken = OvsegError("no such image")
    assert CropsInContext([broken], tuned.shift, [Path("a")], lambda _: torch.zeros(1, 2, 32))[0] is broken


def test_mask_by_the_fills_colour():
    """Wider than the mask resized, by at most what bicubic resizing spreads; the fill's own colour is background."""
    fill = (124, 116, 103)
    image, mask = tiny.disc(np.random.default_rng(0), (10, 200, 30))
    crop, inside = squash(*filled(image, mask, fill), (0, 0, *mask.shape), 64)
    wider = unlike_fill(crop, fill)
    assert wider.dtype == torch.uint8 and wider.shape == inside.shape
    assert (wider >= inside).all() and inside.sum() < wider.sum()
    near = torch.nn.functional.max_pool2d(inside.float(), 15, 1, 7)
    assert (near >= wider).all()
    image[mask] = fill
    assert not unlike_fill(squash(*filled(image, mask, fill), (0, 0, *mask.shape), 64)[0], fill).any()


def test_what_is_refused(inputs, tmp_path):
    job = tiny.make_job(inputs, tmp_path / "run", SHIFT)
    for change, message in (
        ({"image_root": None}, "shows CLIP the whole images of the crops too: give their folder as --image-root"),
        ({"image_root": "nowhere"}, "--image-root nowhere is no folder"),
        (
            {"image_root": str(inputs / "val")},
            r"whole image of pair 000000000_000 of .*00000.tar is not there \(.*0.jpg\)",
        ),
        ({"val": str(inputs / "val"), "val_image_root": None}, "give their folder as --val-image-root"),
        ({"recipe": replace(job.recipe, replace_layers=(7, 9))}, "--replace-layers 7 9: the image tower has 3 blocks"),
        ({"recipe": replace(job.recipe, replace_layers=(0, 1))}, "--replace-layers has 0: blocks are numbered from 1"),
        ({"recipe": replace(job.recipe, replace_ratio=1.5)}, "replace_ratio is 1.5: give a number from 0 to 1"),
    ):
        with pytest.raises(OvsegError, match=message):
            finetune(replace(job, **change))
    with_prompts = {**read_state_dict(inputs / "clip.safetensors"), "visual.mask_embedding": torch.ones(1, 16, 32)}
    save_safetensors(with_prompts, tmp_path / "prompts.safetensors")
    with pytest.raises(OvsegError, match="has no use for mask prompts"):
        load(inputs, clip=str(tmp_path / "prompts.safetensors"))
    torch.save({f"module.{n}": t for n, t in with_prompts.items()}, tmp_path / "prompts.pt")
    with pytest.raises(OvsegError, match="has no use for mask prompts"):
        load(inputs, clip=str(tmp_path / "prompts.pt"))


def test_a_resnet_has_no_patches(tmp_path):
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "patch_size": None}
    tiny.write_clip(tmp_path, **vision)
    with pytest.raises(OvsegError, match="needs a plain CLIP vision transformer, not a ModifiedResNet"):
        load(tmp_path)


def test_quick_gelu_can_be_forced(inputs, tmp_path):
    architecture = tmp_path / "gelu.json"
    architecture.write_text((inputs / "clip.json").read_text().replace('"quick_gelu": true', '"quick_gelu": false'))
    for force in (False, True):
        recipe = Recipe(force_quick_gelu=force).of_mode(SHIFT)
        clip = str(inputs / "clip.safetensors")
        tuned = load_for_tuning(str(architecture), clip, SHIFT, recipe, depth_asked=False)
        for visual in (tuned.model.visual, tuned.shift.original):
            assert type(visual.transformer.resblocks[0].mlp.gelu).__name__ == ("QuickGELU" if force else "GELU")


def test_recipes():
    paper = Recipe(**read_recipe(CONFIGS / "scan_paper.yaml", SHIFT)).of_mode(SHIFT)
    assert (paper.lr, paper.weight_decay, paper.warmup, paper.batch_size, paper.epochs) == (5e-6, 0.2, 100, 256, 10)
    assert (paper.replace_ratio, paper.replace_layers, paper.mask_from) == (0.15, (1, 3, 5, 7, 9), "colour")
    published = Recipe().of_mode(SHIFT)
    assert all(
        getattr(paper, key) == getattr(published, key) for key in ("replace_ratio", "replace_layers", "mask_from")
    )
    toy = Recipe(**read_recipe(CONFIGS / "scan_toy.yaml", SHIFT))
    full = Recipe(**read_recipe(CONFIGS / "toy.yaml", "full"))
    assert replace(toy, replace_layers=full.replace_layers) == full, "the same budget"


def test_flags(tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setattr("ovseg.engine.launch.launch", lambda main, world, args: jobs.append(args[0]))
    paths = ["--architecture", "a", "--clip", "b", "--pairs", "c", "--output", str(tmp_path)]
    flags = [
        "--image-root",
        "images",
        "--val-image-root",
        "others",
        "--replace-layers",
        "2",
        "4",
        "--replace-ratio",
        "0",
    ]
    finetune_clip.main([*paths, "--tune", SHIFT, "--device", "cpu", *flags])
    assert (jobs[0].image_root, jobs[0].val_image_root) == ("images", "others")
    assert jobs[0].recipe == replace(Recipe().of_mode(SHIFT), replace_layers=(2, 4), replace_ratio=0.0)


def test_the_originals_step(tmp_path):
    """Loss and gradients of a recorded step, with its draws; the reduced copy lacks the original tower."""
    recorded = load_scan()
    towers = {"clip_adapter.clip_model.": WRAPPED, "clip_adapter.original_clip.": OF_ORIGINAL}
    state = {
        wrapper + name.removeprefix(prefix): tensor.float()
        for prefix, wrapper in towers.items()
        for name, tensor in recorded.weights.items()
        if name.startswith(prefix)
    }
    torch.save({"state_dict": state}, tmp_path / "clip.pt")
    recipe = Recipe().of_mode(SHIFT)
    architecture = str(recorded.folder / "clip.json")
    tuned = load_for_tuning(architecture, str(tmp_path / "clip.pt"), SHIFT, recipe, depth_asked=False)

    crops, images, masks = (
        np.kron(recorded.inputs[f"cs/{name}_lowres"], np.ones((16, 16), np.uint8))
        for name in ("crop", "original", "mask")
    )
    crops, images = (
        torch.from_numpy(normalised(pixels.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)) for pixels in (crops, images)
    )
    if recorded.reduced:
        tokens = torch.from_numpy(np.load(recorded.folder / "tuning_context.npz")["cs/class_tokens"])
    else:
        tokens = tuned.shift.look(images)
    foreground = foreground_patches(tuned.model.visual, torch.from_numpy(masks)[:, None].float())
    recorded.check("cs/n_background", (~foreground).sum(1))
    picks = [[[n for n in row if n >= 0] for row in layer] for layer in recorded.outputs["cs/picked"].tolist()]
    assert [len(row) for row in picks[0]] == [int(0.15 * n) for n in (~foreground).sum(1).tolist()]
    inputs = (crops, drawn_patches(foreground, picks).transpose(0, 1), tokens)

    recorded.check("cs/image_features", torch.nn.functional.normalize(tuned.encode(*inputs), dim=-1))
    texts = torch.from_numpy(recorded.outputs["cs/text_features"])
    captions = recorded.inputs["cs/captions"].tolist()
    ids = torch.tensor([captions.index(caption) for caption in captions])
    features = encode_in_parts(tuned.encode, inputs, 3)
    loss = contrastive_loss(features, texts, tuned.model.logit_scale, ids)
    loss.backward()
    recorded.check("cs/loss", loss.detach())
    visual = tuned.model.visual
    recorded.check("cs/grad_norm_conv1", visual.conv1.weight.grad.norm(), 1e-3)
    recorded.check("cs/grad_norm_proj", visual.proj.grad.norm(), 1e-3)
    assert all(parameter.grad is None for parameter in tuned.shift.original.parameters())
