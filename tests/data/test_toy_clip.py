"""Training of the toy world's CLIP, with a CLIP of a few thousand weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from ovseg.errors import OvsegError
from ovseg.toy import CLASS_NAMES, STUFF, make_scene
from ovseg.toy.clip import training
from ovseg.toy.clip.batches import PairSampler, ViewRecipe, load_views, views
from ovseg.toy.clip.training import Recipe, TrainingRun
from ovseg.toy.clip.zero_shot import thing_crops

VIEWS = ViewRecipe(margin=(1.1, 1.6), close_ups=1, alone=0.5, patches=1, captions=3)
RECIPE = Recipe(steps=4, text_steps=2, batch_size=4, lr=1e-3, weight_decay=0.1, warmup=2, checkpoint_every=1, seed=0)


@pytest.fixture(scope="module")
def images_and_captions() -> tuple[Tensor, list[list[str]]]:
    return load_views(0, 4, VIEWS)


def new_run(folder: Path) -> TrainingRun:
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
    text = {"context_length": 48, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
    return TrainingRun(CLIP(8, vision, text), RECIPE, folder, {"about": "a test"})


def new_sampler(images_and_captions: tuple[Tensor, list[list[str]]]) -> PairSampler:
    return PairSampler(*images_and_captions, SimpleTokenizer(context_length=48), 32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, images_and_captions) -> TrainingRun:
    run = new_run(tmp_path_factory.mktemp("whole"))
    run.train(new_sampler(images_and_captions))
    return run


def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path, images_and_captions, whole, monkeypatch):
    assert [entry["step"] for entry in whole.log["steps"]] == [1, 2, 3, 4]
    killed = new_run(tmp_path / "killed")
    loss, calls = training.contrastive_loss, []

    def die_at_the_fourth(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(*args)

    monkeypatch.setattr(training, "contrastive_loss", die_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        killed.train(new_sampler(images_and_captions))
    monkeypatch.undo()
    resumed = new_run(tmp_path / "killed")
    resumed.resume()
    assert resumed.step == 3
    resumed.train(new_sampler(images_and_captions))
    assert resumed.log["steps"] == whole.log["steps"]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_the_text_tower_is_locked_in_time(tmp_path, whole):
    steps = {name: int(whole.optimizer.state[p]["step"]) for name, p in whole.model.named_parameters()}
    for name, taken in steps.items():
        expected = RECIPE.steps if name.startswith("visual.") or name == "logit_scale" else RECIPE.text_steps
        assert taken == expected, name
    trained, fresh = (run.model.transformer.resblocks[0].mlp.c_fc.weight for run in (whole, new_run(tmp_path)))
    assert not torch.equal(trained, fresh)


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path):
    with pytest.raises(OvsegError, match=r"no .*last.pth to resume from"):
        new_run(tmp_path).resume()


def test_views_say_what_they_show(images_and_captions):
    images, captions = images_and_captions
    again = [view for seed in range(4) for view in views(seed, VIEWS)]
    assert len(images) == len(captions) == len(again) > 4
    for image, texts, (drawn, written) in zip(images, captions, again, strict=True):
        assert torch.equal(image, torch.from_numpy(drawn).permute(2, 0, 1)) and texts == list(written)
    named = new_sampler(images_and_captions).named
    assert torch.allclose(named.sum(dim=1), torch.ones(len(named)))
    scene = make_scene(0)
    there = {*scene.stuff, *(thing.name for thing in scene.things)}
    assert {CLASS_NAMES[k] for k in named[0].nonzero().flatten()} == there


def test_patches_show_grounds_only(images_and_captions):
    patches = [texts for _, texts in views(1, ViewRecipe(patches=3, captions=1))][1:]
    assert patches and all(any(ground in texts[0] for ground in STUFF) for texts in patches)
    assert not any(name in texts[0] for texts in patches for name in CLASS_NAMES if " " in name)


def test_crops_of_things_are_masked_with_the_mean_colour():
    scene = make_scene(0)
    masked, classes = thing_crops([scene], 32, masked=True)
    plain, _ = thing_crops([scene], 32, masked=False)
    assert [CLASS_NAMES[k] for k in classes] == [thing.name for thing in scene.things]
    changed = (masked - plain).abs().amax(dim=1) > 0.05
    assert 0.05 < changed.float().mean() < 0.8  # the background, and it alone
    assert np.isclose(masked.flatten(2).abs().amin(), 0, atol=1e-3)  # the mean colour is 0 once normalised
