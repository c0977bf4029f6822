from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from safetensors import safe_open
from safetensors.torch import save_file

from ovseg.adaptation.fusion import compare, fuse, fuse_files
from ovseg.checkpoint.loading import CLIP_PREFIX, load_model, load_weights
from ovseg.checkpoint.state_dicts import MASK_PROMPT_DEPTH, MASK_PROMPT_FWD, read_checkpoint, read_state_dict
from ovseg.config import load_cfg
from ovseg.errors import OvsegError
from tests.tiny_model import make_tiny_model

ROOT = Path(__file__).parents[2]
FWD = MASK_PROMPT_FWD


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def segmenter(tiny):
    return read_state_dict(tiny[1])


@pytest.fixture
def adapted(segmenter):
    """A fine-tuned CLIP with mask prompts of depth 1, as the tiny configuration wants."""
    torch.manual_seed(1)
    return {
        name.removeprefix(CLIP_PREFIX): torch.randn_like(tensor) / 4
        for name, tensor in segmenter.items()
        if name.startswith(CLIP_PREFIX)
    }


def without_clip(state):
    return {name: tensor for name, tensor in state.items() if not name.startswith(CLIP_PREFIX)}


@pytest.mark.parametrize("prefix", ["", "module.", "clip_model.", "module.clip_model.", "clip_adapter.clip_model."])
def test_every_wrapping_is_unwrapped(segmenter, adapted, prefix):
    fused, report = fuse(segmenter, {prefix + name: tensor for name, tensor in adapted.items()})
    assert fused.keys() == segmenter.keys()
    for name, tensor in fused.items():
        clip_name = name.removeprefix(CLIP_PREFIX)
        assert tensor is (adapted[clip_name] if name.startswith(CLIP_PREFIX) else segmenter[name])
    assert set(report.replaced) == {CLIP_PREFIX + name for name in adapted}
    assert set(report.untouched) == without_clip(segmenter).keys()
    assert not report.added and not report.unknown
    assert report.settings == {FWD: True, MASK_PROMPT_DEPTH: 1}


def test_scans_wrapper_has_a_second_tower_that_stays_out(segmenter, adapted):
    clip = {f"module.clip_model.{name}": tensor for name, tensor in adapted.items()}
    leftovers = {"module.original_clip_visual.proj", "module.clip_model.visual.cxt_decoder.w"}
    clip |= {name: torch.ones(2) for name in (*leftovers, "module.head.w", "module.clip_model.visual.extra")}
    fused, report = fuse(segmenter, clip)
    assert fused.keys() == segmenter.keys()
    assert set(report.ignored) == {"module.original_clip_visual.proj", "visual.cxt_decoder.w"}
    assert set(report.unknown) == {"module.head.w", "visual.extra"}
    assert "2 ignored in the CLIP file" in str(report) and "2 unknown in the CLIP file" in str(report)


@pytest.mark.parametrize("sign", ["clip_adapter.original_clip.proj", "oriclip_mlp.fc1.bias"])
def test_scan_keeps_its_original_tower_and_has_no_prompts(segmenter, adapted, sign):
    del segmenter[CLIP_PREFIX + "visual.mask_embedding"]
    original = torch.ones(2)
    fused, report = fuse(segmenter | {sign: original}, adapted)
    assert fused[sign] is original and sign in report.untouched
    assert report.unknown == ("visual.mask_embedding",) and report.settings == {}
    assert FWD not in str(report)
    assert ("1 of these the original CLIP's" in str(report)) == ("original_clip" in sign)


def test_a_segmenter_without_clip_gets_one(segmenter, adapted):
    fused, report = fuse(without_clip(segmenter), adapted | {"input_resolution": torch.tensor(224)})
    assert fused.keys() == segmenter.keys()
    assert len(report.added) == len(adapted) and not report.replaced
    assert report.unknown == ("input_resolution",)


@pytest.mark.parametrize("prompts", ["zero", "absent"])
def test_without_prompts_they_must_stay_off(segmenter, adapted, prompts):
    adapted["visual.mask_embedding"].zero_()
    if prompts == "absent":
        del adapted["visual.mask_embedding"]
    _, report = fuse(segmenter, adapted)
    assert report.settings == {FWD: False, MASK_PROMPT_DEPTH: 1}  # 1: so that the shape fits
    assert f"{FWD} False" in str(report)
    _, report = fuse(without_clip(segmenter), adapted)
    assert report.settings.get(MASK_PROMPT_DEPTH) == (1 if prompts == "zero" else None)


def test_only_visual_leaves_the_text_tower_out(segmenter, adapted):
    fused, report = fuse(segmenter, adapted, only_visual=True)
    clip = {name.removeprefix(CLIP_PREFIX) for name in fused if name.startswith(CLIP_PREFIX)}
    assert clip == {name for name in adapted if name.startswith("visual.") or name == "logit_scale"}
    assert all(torch.equal(fused[CLIP_PREFIX + name], adapted[name]) for name in clip)
    assert CLIP_PREFIX + "ln_final.weight" in report.left_out


def test_wrong_files(segmenter, adapted):
    wrong = dict(adapted)
    wrong["visual.conv1.weight"] = torch.zeros(64, 3, 56, 56)
    with pytest.raises(OvsegError, match=r"another size.*visual.conv1.weight with \[64, 3, 56, 56\] instead of \[32"):
        fuse(segmenter, wrong)
    wrong = adapted | {"visual.proj": torch.zeros(32, 24)}
    with pytest.raises(OvsegError, match="embeddings of 24 dimensions, the segmenter was trained with 16"):
        fuse(without_clip(segmenter), wrong)
    with pytest.raises(OvsegError, match="are --clip and --segmenter swapped"):
        fuse(adapted, segmenter)
    with pytest.raises(OvsegError, match="has no image tower"):
        fuse(segmenter, {"w": torch.ones(2)})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 16, 32), "depth 2, but the image tower has 1 blocks"),
        ((1, 9, 32), "for 9 patches of width 32, the image tower has 16 of width 32"),
        ((1, 16, 8), "for 16 patches of width 8"),
        ((16, 32), "must be \\(depth, patches, width\\)"),
    ],
)
def test_prompts_that_do_not_fit_the_tower(segmenter, adapted, shape, message):
    with pytest.raises(OvsegError, match=message):
        fuse(segmenter, adapted | {"visual.mask_embedding": torch.ones(shape)})


def test_prompts_of_another_depth_than_the_segmenters(segmenter, adapted):
    block = {"visual.transformer.resblocks.1.ln_1.bias": torch.ones(1)}
    segmenter |= {CLIP_PREFIX + name: tensor for name, tensor in block.items()}
    deeper = adapted | block
    deeper["visual.mask_embedding"] = torch.ones(2, 16, 32)
    _, report = fuse(segmenter, deeper)  # the old ones are zeros: never tuned
    assert report.settings == {FWD: True, MASK_PROMPT_DEPTH: 2}
    segmenter[CLIP_PREFIX + "visual.mask_embedding"] = torch.ones(1, 16, 32)
    with pytest.raises(OvsegError, match=r"depth 2, those of the segmenter depth 1.*--drop clip_adapter.clip_model\."):
        fuse(segmenter, deeper)


def answers(config, weights, *opts):
    cfg = load_cfg(config, ["MODEL.CLIP_ADAPTER.MASK_THR", "0.1", "MODEL.WEIGHTS", str(weights), *opts])
    model = load_model(cfg, complete=True).eval()
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(2)) * 255
    with torch.no_grad():
        return model([{"image": image, "class_names": ["cat", "dog", "sofa"]}])[0]["sem_seg"]


@pytest.mark.parametrize("only_visual", [False, True])
def test_fused_model_answers_as_with_the_clip_given_directly(tiny, segmenter, adapted, tmp_path, only_visual):
    config, weights = tiny
    bare, clip = tmp_path / "bare.safetensors", tmp_path / "clip.pt"
    save_file(without_clip(segmenter), bare)
    torch.save({"state_dict": {f"module.{n}": t for n, t in adapted.items()}, "epoch": 5, "name": "x"}, clip)
    direct = answers(config, bare, "MODEL.CLIP_ADAPTER.CLIP_WEIGHTS", str(clip))
    assert not torch.allclose(direct, answers(config, weights), atol=1e-3)
    for base in (bare, weights):
        for output in (tmp_path / "fused.safetensors", tmp_path / "fused.pth"):
            fuse_files(clip, base, output, only_visual=only_visual, overwrite=True)
            opts = ("MODEL.CLIP_ADAPTER.CLIP_WEIGHTS", str(clip)) if only_visual else ()
            assert torch.equal(answers(config, output, *opts), direct)


def test_detectron2_layout_keeps_everything_else(segmenter, adapted, tmp_path):
    clip, file = tmp_path / "clip.safetensors", tmp_path / "model_final.pth"
    save_file(adapted, clip)
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    torch.save({"model": segmenter, "optimizer": optimizer, "iteration": 7}, file)
    fuse_files(clip, file, tmp_path / "out.pth", half=True)
    content = read_checkpoint(tmp_path / "out.pth")
    assert content["iteration"] == 7
    assert torch.equal(content["optimizer"]["state"][0]["exp_avg"], torch.ones(2))
    assert content["model"][CLIP_PREFIX + "visual.proj"].dtype == torch.float16
    assert torch.equal(content["model"][CLIP_PREFIX + "visual.proj"], adapted["visual.proj"].half())


@pytest.mark.parametrize("name", ["out.safetensors", "out.pth"])
def test_loading_warns_when_the_models_setting_differs(tiny, segmenter, adapted, tmp_path, caplog, name):
    config, weights = tiny
    save_file(adapted, tmp_path / "clip.safetensors")
    fuse_files(tmp_path / "clip.safetensors", weights, tmp_path / name)
    with caplog.at_level(logging.WARNING):
        load_weights(build_model(load_cfg(config)), tmp_path / name)
        assert FWD not in caplog.text
        load_weights(build_model(load_cfg(config, [FWD, "False"])), tmp_path / name)
    assert f"was made to be used with {FWD} True, but the model has False" in caplog.text


def test_the_tool_from_another_folder(tiny, adapted, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    save_file(adapted, tmp_path / "clip.safetensors")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, str(ROOT / "tools" / "replace_clip.py"), "--clip", "../clip.safetensors"]
    done = subprocess.run(
        [*command, "--segmenter", str(tiny[1]), "--output", "out.safetensors"],
        cwd=tmp_path / "elsewhere",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"{FWD} True {MASK_PROMPT_DEPTH} 1" in done.stdout
    with safe_open(tmp_path / "elsewhere" / "out.safetensors", framework="pt") as file:
        assert file.metadata() == {FWD: "True", MASK_PROMPT_DEPTH: "1"}


def test_nothing_is_written_or_overwritten_unasked(tiny, adapted, tmp_path):
    clip, output = tmp_path / "clip.safetensors", tmp_path / "out.pth"
    save_file(adapted, clip)
    fuse_files(clip, tiny[1], output, dry_run=True)
    assert not output.exists()
    output.write_bytes(b"precious")
    with pytest.raises(OvsegError, match="add --overwrite"):
        fuse_files(clip, tiny[1], output)
    assert output.read_bytes() == b"precious"
    fuse_files(clip, tiny[1], output, overwrite=True)
    assert read_checkpoint(output)["ovseg_settings"] == {FWD: True, MASK_PROMPT_DEPTH: 1}


def test_outputs_that_are_refused(tiny, adapted, tmp_path):
    clip = tmp_path / "clip.safetensors"
    save_file(adapted, clip)
    with pytest.raises(OvsegError, match="is one of the inputs"):
        fuse_files(clip, tiny[1], clip, overwrite=True)
    with pytest.raises(OvsegError, match=r"must end in \.safetensors"):
        fuse_files(clip, tiny[1], tmp_path / "out.pkl")
    with pytest.raises(OvsegError, match=r"nowhere.pt does not exist"):
        fuse_files(tmp_path / "nowhere.pt", tiny[1], tmp_path / "out.pth")
    assert {path.name for path in tmp_path.iterdir()} == {"clip.safetensors"}


def test_compare(segmenter, adapted):
    fused, _ = fuse(segmenter, adapted)
    assert set(compare(fused, adapted).values()) == {0.0}
    adapted["visual.proj"] = adapted["visual.proj"] + 0.5
    adapted["logit_scale"] = torch.ones(3)
    del adapted["ln_final.bias"]
    found = compare(fused, {f"module.{name}": tensor for name, tensor in adapted.items()})
    assert found["visual.proj"] == pytest.approx(0.5)
    assert found["logit_scale"] == float("inf")
    assert found["ln_final.bias"] is None
    assert not any(name.startswith("backbone") for name in found)
    with pytest.raises(OvsegError, match="no CLIP tensor in common"):
        compare(without_clip(segmenter), adapted)
