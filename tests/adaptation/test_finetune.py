"""Fine-tuning runs of a tiny CLIP: what trains, kill and resume, processes, and what is refused."""

from __future__ import annotations

import json
import math
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import SafetensorError

from ovseg.adaptation import context as context_module
from ovseg.adaptation import crops as crops_module
from ovseg.adaptation.crops import TrainingCrops, filled, random_window, squash
from ovseg.adaptation.finetune import checkpoint_folder, finetune, read_pairs
from ovseg.adaptation.recipe import SHIFT, Recipe, read_recipe
from ovseg.adaptation.tuned_clip import build_optimizer, clip_flags, load_for_tuning
from ovseg.checkpoint.state_dicts import read_checkpoint, read_state_dict
from ovseg.clip.model import CONFIG, find_clip
from ovseg.clip.preprocessing import OPENAI, Preprocessing
from ovseg.clip.vit import encode_masked_image
from ovseg.data.sampler import StreamBatchSampler
from ovseg.engine import metrics
from ovseg.engine.launch import World, launch
from ovseg.engine.schedules import WarmupCosineLR
from ovseg.errors import OvsegError, argument
from ovseg.naming.crops import crop_regions, mask_boxes
from tests.adaptation import tiny
from tests.processes import CONTEXT, run_processes
from tools import finetune_clip

CONFIGS = Path(__file__).parents[2] / "configs" / "adaptation"
pytestmark = pytest.mark.usefixtures("one_thread")


def test_full_trains_the_image_tower_and_the_scale_alone(inputs, finished):
    changed = tiny.changed(inputs / "clip.safetensors", finished / "last.pt")
    own = read_state_dict(inputs / "clip.safetensors")
    assert changed == {name for name in own if name.startswith("visual.")} | {"logit_scale"}
    content = torch.load(finished / "epoch_2.pt", weights_only=True)
    assert content["epoch"] == 2 and content["name"] == str(inputs / "clip.json")
    assert content["state_dict"].keys() == own.keys(), "open_clip's names, and no prompts where there were none"
    lines = tiny.metrics(finished)
    assert [m["epoch"] for m in lines if "val/top1" in m] == [0, 1, 2]
    assert {"loss", "lr", "pairs_per_second", "waiting", "memory_gib"} <= lines[1].keys()
    assert any((finished / "tensorboard").iterdir())


def test_loss_falls_and_names_are_learnt(inputs, tmp_path):
    options = {"epochs": 12, "equal_nouns": "ignore", "precision": "bf16", "lr": 3e-3, "val": str(inputs / "val")}
    finetune(tiny.make_job(inputs, tmp_path / "run", checkpoint_activations=True, micro_batch=3, **options))
    losses = [m["loss"] for m in tiny.metrics(tmp_path / "run") if "loss" in m]
    tops = [m["val/top1"] for m in tiny.metrics(tmp_path / "run") if "val/top1" in m]
    assert losses[-1] < 0.6 * losses[0]
    assert max(tops[1:]) >= 75 and tops[0] < 75
    best = read_checkpoint(tmp_path / "run" / "last.pt")["best_epoch"]
    assert tops[best] == max(tops[1:])
    assert not tiny.changed(tmp_path / "run" / f"epoch_{best}.pt", tmp_path / "run" / "best.safetensors")


def test_mask_prompts_alone_then_the_tower_around_them(inputs, finished, tmp_path):
    finetune(tiny.make_job(inputs, tmp_path / "mpt", "mask-prompt", clip=str(finished / "best.safetensors"), lr=0.02))
    changed = tiny.changed(finished / "best.safetensors", tmp_path / "mpt" / "best.safetensors")
    assert changed == {"visual.mask_embedding", "logit_scale"}
    prompts = read_state_dict(tmp_path / "mpt" / "best.safetensors")["visual.mask_embedding"]
    assert prompts.shape == (2, 16, 32)

    again = tiny.make_job(inputs, tmp_path / "ft", clip=str(tmp_path / "mpt" / "last.pt"), epochs=1)
    finetune(again)
    changed = tiny.changed(tmp_path / "mpt" / "last.pt", tmp_path / "ft" / "last.pt")
    assert "visual.mask_embedding" not in changed and "visual.conv1.weight" in changed
    with pytest.raises(OvsegError, match=r"have depth 2, not 3: leave --depth out"):
        finetune(tiny.make_job(inputs, tmp_path / "no", "mask-prompt", clip=again.clip, depth=3, depth_asked=True))
    assert not (tmp_path / "no" / "metrics.jsonl").exists()


def test_fresh_prompts_have_the_published_spread(inputs):
    job = tiny.make_job(inputs, inputs, "mask-prompt", depth=3)
    prompts = load_for_tuning(job.architecture, job.clip, job.tune, job.recipe, depth_asked=False).trained
    assert list(prompts) == ["logit_scale", "visual.mask_embedding"]
    assert prompts["visual.mask_embedding"].std().item() == pytest.approx(0.02, rel=0.1)


def test_killed_in_the_middle_of_writing_and_resumed(inputs, finished, tmp_path):
    """First within the second checkpoint (step 4), after resuming within last.pt at an epoch's end."""
    output = tmp_path / "run"

    def run_until_killed(writes: int, resume: bool) -> None:
        assert run_processes(tiny.finetune_and_die, (inputs, output, writes, resume)) == [-signal.SIGKILL]

    def step() -> int:
        return torch.load(output / "last.pt", weights_only=True)["step"]

    run_until_killed(1, resume=False)
    assert step() == 2 and len(list(output.glob(".last.*.tmp.pt"))) == 1
    run_until_killed(2, resume=True)  # last.pt at 4, epoch_1.pt, then dies in last.pt at 5
    assert step() == 4 and (output / "epoch_1.pt").exists()
    finetune(tiny.make_job(inputs, output, val=str(inputs / "val"), resume=True, workers=1))
    assert step() == 10 and not list(output.glob(".*tmp*"))
    tiny.assert_same_run(output, finished)
    finetune(tiny.make_job(inputs, output, val=str(inputs / "val"), resume=True))  # complete: nothing to do
    tiny.assert_same_run(output, finished)


def test_two_processes_train_as_one(inputs, finished, finished_shift, tmp_path):
    job = tiny.make_job(inputs, tmp_path / "two", val=str(inputs / "val"))
    shift = tiny.make_job(inputs, tmp_path / "two_shift", SHIFT, val=str(inputs / "val"))
    launch(tiny.finetune_on_one_thread, World(processes_here=2), (job, shift))
    for two, one in ((job.output, finished), (shift.output, finished_shift)):
        ours, theirs = (read_state_dict(folder / "last.pt") for folder in (two, one))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)  # Adam divides by tiny second moments
        a, b = ([m["loss"] for m in tiny.metrics(folder) if "loss" in m] for folder in (two, one))
        assert a == pytest.approx(b, abs=1e-4)


def hold(folder, ready):
    with checkpoint_folder(folder).owned():
        ready.set()
        time.sleep(60)


def test_one_folder_for_one_run(inputs, finished, tmp_path):
    with pytest.raises(OvsegError, match="holds a run already: resume it with --resume"):
        finetune(tiny.make_job(inputs, finished))
    with pytest.raises(OvsegError, match=r"has batch_size 4, not 2: --resume needs the same"):
        finetune(tiny.make_job(inputs, finished, val=str(inputs / "val"), resume=True, batch_size=2))
    ready = CONTEXT.Event()
    other = CONTEXT.Process(target=hold, args=(tmp_path, ready))
    other.start()
    assert ready.wait(60)
    with pytest.raises(OvsegError, match="another run is writing to"), checkpoint_folder(tmp_path).owned():
        pass
    other.kill()
    other.join()
    with checkpoint_folder(tmp_path).owned():
        pass


@pytest.mark.parametrize("part", ["checkpoint", "safetensors", "metrics"])
def test_disk_full_is_explained_and_resumable(inputs, finished, tmp_path, monkeypatch, part):
    output = tmp_path / "run"
    full = OSError(28, "No space left on device")

    class FullDisk:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            raise full

        def __getattr__(self, name):
            return getattr(self.file, name)

    def fail(*_args, **_kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        if part == "checkpoint":
            save = torch.save
            patch.setattr(torch, "save", lambda content, file: save(content, FullDisk(file)))
        elif part == "safetensors":
            patch.setattr("ovseg.checkpoint.saving.save_file", fail)
        else:
            patch.setattr(metrics.json, "dumps", lambda _: (_ for _ in ()).throw(full))
        with pytest.raises(OvsegError, match=r"disk full while writing .*: free some space and run again"):
            finetune(tiny.make_job(inputs, output, val=str(inputs / "val")))
    finetune(tiny.make_job(inputs, output, val=str(inputs / "val"), resume=True))
    tiny.assert_same_run(output, finished)


def test_clip_of_another_size(inputs, tmp_path):
    architecture, _ = tiny.write_clip(tmp_path / "wide", width=48)
    job = replace(tiny.make_job(inputs, tmp_path / "run"), architecture=architecture)
    with pytest.raises(OvsegError, match=r"does not hold the weights of .*make --architecture and --clip agree"):
        finetune(job)


def test_too_few_pairs_and_too_long_a_warm_up(inputs, tmp_path):
    with pytest.raises(OvsegError, match="22 pairs do not fill one batch of 64"):
        finetune(tiny.make_job(inputs, tmp_path, batch_size=64))
    with pytest.raises(OvsegError, match="warmup is 10 steps, but the whole run has 10"):
        finetune(tiny.make_job(inputs, tmp_path, warmup=10))
    with pytest.raises(OvsegError, match=r"--val .* holds no crops"):
        finetune(tiny.make_job(inputs, tmp_path / "run", val=str(tmp_path / "none")))


GREY = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.5, 1.0), "bilinear", "squash")


@pytest.mark.parametrize("preprocessing", [OPENAI, GREY])
def test_crops_are_those_of_inference(preprocessing):
    image, mask = tiny.disc(np.random.default_rng(0), (10, 200, 30))
    mean, std = (255 * torch.tensor(v).view(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    pixels, masks = torch.from_numpy(image).permute(2, 0, 1).float(), torch.from_numpy(mask)[None]
    boxes = mask_boxes(masks).long()
    expected = crop_regions(pixels, masks.float(), boxes, 32, mean, std, mean, preprocessing.interpolation)
    x0, y0, x1, y1 = boxes[0].tolist()
    parts = filled(image[y0:y1, x0:x1], mask[y0:y1, x0:x1], preprocessing.fill, preprocessing)
    crop, inside = squash(*parts, (0, 0, y1 - y0, x1 - x0), 32, preprocessing.interpolation)
    torch.testing.assert_close(crop[None], expected[0], rtol=0, atol=1e-4)
    assert torch.equal(inside[None].float(), expected[1])


def test_a_run_prepares_pixels_as_its_clip_wants_them(inputs, tmp_path, monkeypatch):
    """Crops, crops of the check and whole images; and what is written says how."""
    seen, plain = set(), crops_module.normalised
    for module in (crops_module, context_module):
        monkeypatch.setattr(module, "normalised", lambda pixels, how: seen.add(how) or plain(pixels, how))
    clip = json.loads((inputs / "clip.json").read_text())
    (tmp_path / "grey.json").write_text(json.dumps({"model_cfg": clip, "preprocess_cfg": asdict(GREY)}))
    job = tiny.make_job(inputs, tmp_path / "run", SHIFT, epochs=1, val=str(inputs / "val"))
    finetune(replace(job, architecture=str(tmp_path / "grey.json")))
    assert seen == {GREY}
    assert json.loads((job.output / CONFIG).read_text())["model_cfg"] == clip
    assert yaml.safe_load((job.output / "recipe.yaml").read_text())["fill"] == [127.5] * 3
    best = str(job.output / "best.safetensors")
    assert find_clip(str(inputs / "clip.json"), best).preprocessing == GREY  # next to the weights
    with pytest.raises(OvsegError, match=r"check --clip; did you mean best.safetensors\?"):
        finetune(replace(job, output=tmp_path / "other", clip=f"{best}s"))


def test_mask_travels_with_its_crop(inputs):
    """Away from the mask the crop has the fill's colour, within it the noun's, whatever the augmentation."""
    pairs, texts = read_pairs([str(inputs / "pairs")])
    crops = TrainingCrops(pairs, torch.arange(len(texts)), 32, Recipe(scale=(0.3, 0.5)))
    seen = 0
    for index in range(8):
        crop, mask, number = crops[0, index]
        assert number == index and mask.shape == (1, 32, 32)
        near = torch.nn.functional.max_pool2d(mask.float(), 9, 1, 4)[0] > 0  # bicubic resizing spreads 2 source pixels
        assert (crop[:, ~near].abs() < 1e-4).all()
        seen += int((~near).sum())
        assert crop[:, mask[0] == 1].abs().mean() > 0.2
        assert torch.equal(crop, crops[0, index][0]), "the same at any time"
    assert seen > 100
    assert not torch.equal(crops[0, 0][0], crops[1, 0][0]), "another epoch, another crop"


def test_ratio_of_the_crop_keeps_slim_ones_whole():
    torch.manual_seed(0)
    for recipe, share in ((Recipe(), 0.4), (Recipe(ratio_of="crop"), 0.85)):
        areas = []
        for _ in range(50):
            top, left, height, width = random_window(200, 50, recipe)
            assert 0 <= top <= 200 - height and 0 <= left <= 50 - width and height and width
            areas.append(height * width / 10000)
        assert (min(areas) > share) == (recipe.ratio_of == "crop")
    assert random_window(1, 1, Recipe(ratio_of="crop")) == (0, 0, 1, 1)


def test_order_does_not_depend_on_processes_or_on_where_it_starts():
    whole = list(StreamBatchSampler(10, 4, 0, epochs=3))
    assert len(whole) == 6 and whole[0][0][0] == 0 and whole[-1][0][0] == 2
    assert len({index for batch in whole[:2] for _, index in batch}) == 8
    assert list(StreamBatchSampler(10, 4, 0, start=12, epochs=3)) == whole[3:]
    halves = [list(StreamBatchSampler(10, 4, 0, 0, rank, 2, epochs=3)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_checkpointed_prompts_give_the_same_gradients(inputs):
    job = tiny.make_job(inputs, inputs, "mask-prompt")
    crops, masks = torch.randn(2, 3, 32, 32), torch.zeros(2, 1, 32, 32)
    masks[:, :, 8:20] = 1
    results = []
    for recipe in (job.recipe, replace(job.recipe, checkpoint_activations=True)):
        tuned = load_for_tuning(job.architecture, job.clip, job.tune, recipe, depth_asked=False)
        features = encode_masked_image(tuned.model.visual, crops, masks)
        features.square().sum().backward()
        results.append((features.detach(), tuned.model.visual.mask_embedding.grad))
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)


def test_optimiser_and_schedule(inputs):
    job = tiny.make_job(inputs, inputs, weight_decay=0.3)
    tuned = load_for_tuning(job.architecture, job.clip, job.tune, job.recipe, depth_asked=False)
    names = {id(parameter): name for name, parameter in tuned.trained.items()}
    without, decayed = (
        {names[id(p)] for p in group["params"]} for group in build_optimizer(tuned, job.recipe).param_groups
    )
    assert {"logit_scale", "visual.class_embedding", "visual.ln_post.weight"} <= without
    assert {"visual.proj", "visual.positional_embedding", "visual.conv1.weight"} <= decayed
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, rates = WarmupCosineLR(optimizer, 4, 12), []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[8] == pytest.approx(0.5) and rates[11] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))


def test_recipes(tmp_path):
    for name in ("ovseg_paper", "ovseg_scripts"):
        full, prompts = (Recipe(**read_recipe(CONFIGS / f"{name}.yaml", mode)) for mode in ("full", "mask-prompt"))
        assert (full.lr, full.weight_decay, prompts.weight_decay) == (5e-6, 0.2, 0.0)
        assert prompts.lr == {"ovseg_paper": 0.02, "ovseg_scripts": 0.05}[name]
    path = tmp_path / "recipe.yaml"
    path.write_text("lr: 1e-4\nfull:\n  epochs: 7\nmask-prompt: {epochs: 9}\n")
    assert read_recipe(path, "full") == {"lr": 1e-4, "epochs": 7}
    for text, message in (
        ("batchsize: 4", "unknown key batchsize .* did you mean batch_size?"),
        ("full: {warm_up: 4}", "unknown key warm_up .*full; did you mean warmup?"),
        ("lr: fast", "lr in .* is 'fast'"),
        ("epochs: 1.5", "whole number"),
        ("epochs: .inf", "whole number"),
        ("fill: [1, 2]", "a list of 3 numbers"),
        ("equal_nouns: maybe", "choose one of negatives, ignore"),
        ("lr: !!python/object/apply:eval ['1']", "not plain YAML"),
    ):
        path.write_text(text)
        with pytest.raises(OvsegError, match=message):
            read_recipe(path, "full")


def test_flags_override_the_recipe(inputs, tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setattr("ovseg.engine.launch.launch", lambda main, world, args: jobs.append((world, *args)))
    flags = ["--lr", "0.5", "--scale", "0.5", "1", "--checkpoint-activations", "--device", "cpu", "--num-gpus", "2"]
    paths = ["--architecture", "a", "--clip", "b", "--pairs", "c", "d", "--output", str(tmp_path)]
    recipe = str(CONFIGS / "ovseg_scripts.yaml")
    finetune_clip.main([*paths, "--tune", "mask-prompt", "--recipe", recipe, *flags])
    world, job = jobs[0]
    assert world.size == 2 and not world.cuda and job.pairs == ("c", "d") and job.depth_asked
    assert (job.recipe.lr, job.recipe.scale, job.recipe.fill) == (0.5, (0.5, 1.0), (124.0, 116.0, 103.0))
    assert job.recipe.checkpoint_activations and job.recipe.weight_decay == 0


def test_errors_of_clip_name_the_flags():
    with pytest.raises(OvsegError, match=r"^--depth 0 does not fit --init$"), clip_flags("--init"):
        raise OvsegError(f"{argument('depth')} 0 does not fit {argument('weights')}")
    assert str(OvsegError(f"{argument('depth')} is 0")) == "depth is 0"
