"""The full-size models have exactly the keys, shapes and dtypes of the published ones."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from ovseg.checkpoint.state_dicts import constant_names
from ovseg.config import load_cfg
from ovseg.engine.solver import build_optimizer
from ovseg.meta_arch.maskclip import build_maskclip

ROOT = Path(__file__).parents[2]


def read(manifest):
    return json.loads(gzip.decompress((ROOT / "tests/data/manifests" / f"{manifest}.json.gz").read_bytes()))


def build(config):
    cfg = load_cfg(ROOT / "configs" / f"{config}.yaml", ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):  # shapes without memory
        return cfg, build_model(cfg)


# Constants of published files, which follow from the configuration; files of this package lack them.
CONSTANTS = re.compile(r"criterion\.empty_weight|.+\.relative_position_index")


def shapes(model):
    """Return the shapes and dtypes of the model's tensors and of the constants in published files."""
    own = model.state_dict()
    constants = {name: buffer for name, buffer in model.named_buffers() if CONSTANTS.fullmatch(name)}
    assert not own.keys() & constants.keys()
    assert constants.keys() <= constant_names(model)  # so they are ignored in files
    everything = own | constants
    return {name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in everything.items()}


@pytest.mark.parametrize(
    ("config", "manifest"),
    [
        ("ovseg_swinB_vitL_bs32_120k", "swinB_vitL14"),
        ("ovseg_swinB_vitL_demo", "swinB_vitL14"),
        ("ovseg_R101c_vitB_bs32_120k", "R101c_vitB16"),
    ],
)
def test_manifest(config, manifest):
    expected = read(manifest)
    cfg, model = build(config)
    assert shapes(model) == expected["state_dict"]
    groups = build_optimizer(cfg, model).param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    settings = {names[g["params"][0]]: {"lr": g["lr"], "weight_decay": g["weight_decay"]} for g in groups}
    assert list(settings) == list(expected["optimizer_groups"])
    for name, values in settings.items():
        assert values == pytest.approx(expected["optimizer_groups"][name]), name
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == set(expected["frozen_parameters"])


@pytest.mark.parametrize(
    ("config", "manifest", "trained"),
    [
        ("scan_vitL", "scan_vitL", 158_671_673),
        ("scan_vitL_demo", "scan_vitL", 158_671_673),
        ("scan_vitB", "scan_vitB", 135_647_801),
    ],
)
def test_scan(config, manifest, trained):
    """Compare with the specification, section 11: 743 trained tensors, 158.7 M and 135.6 M numbers; norms undecayed."""
    cfg, model = build(config)
    assert shapes(model) == read(manifest)["state_dict"]
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    towers = ("clip_adapter.clip_model.", "clip_adapter.original_clip.")
    assert frozen == {name for name in model.state_dict() if name.startswith(towers)}
    groups = build_optimizer(cfg, model).param_groups
    assert (len(groups), sum(p.numel() for g in groups for p in g["params"])) == (743, trained)
    assert {group["lr"] for group in groups} == {6e-5}
    undecayed = {group["name"] for group in groups if group["weight_decay"] == 0}
    predictor = "sem_seg_head.predictor."
    assert {f"{predictor}{name}.weight" for name in ("query_feat", "query_embed", "level_embed")} <= undecayed
    assert {"fusion_decoder.ln.0.bias", "lightweight_transformer.layers.4.norm2.weight"} <= undecayed
    assert "sem_seg_head.pixel_decoder.transformer.level_embed" not in undecayed
    assert {group["weight_decay"] for group in groups} == {0, 0.01}


@pytest.mark.parametrize(
    ("config", "manifest"),
    [("zegformer_R101_coco156", "zegformer_R101_train"), ("zegformer_R101_coco171_eval", "zegformer_R101_eval")],
)
def test_zegformer(config, manifest):
    cfg, model = build(config)
    assert shapes(model) == read(manifest)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any("clip" in name for name in trained) and "sem_seg_head.predictor.logit_scale" not in trained
    assert "sem_seg_head.predictor.bg_feature" in trained
    rates = {group["name"].partition(".")[0]: group["lr"] for group in build_optimizer(cfg, model).param_groups}
    assert rates == pytest.approx({"backbone": 1e-5, "sem_seg_head": 1e-4})


def test_lseg():
    """Compare with the published demo; what trains: ViT and decoder, without the parts that have no use."""
    cfg, model = build("lseg_vitL16_384")
    assert shapes(model) == read("lseg_vitL16_384")["state_dict"]
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    unused = (
        "clip_pretrained.",
        "pretrained.model.norm.",
        "pretrained.model.head.",
        "scratch.refinenet4.resConfUnit1.",
    )
    assert trained == {name for name, _ in model.named_parameters() if not name.startswith(unused)}
    groups = build_optimizer(cfg, model).param_groups
    rates = {(group["name"].partition(".")[0], round(group["lr"], 9)) for group in groups}
    assert rates == {("pretrained", 0.004), ("scratch", 0.04)}
    assert {group["weight_decay"] for group in groups} == {1e-4}


@pytest.mark.parametrize("config", [path.stem for path in sorted((ROOT / "configs").glob("lseg*.yaml"))])
def test_lseg_configurations(config):
    cfg, model = build(config)
    build_optimizer(cfg, model)
    assert type(model).__name__ == "PerPixel"


def test_maskclip():
    sizes = {"image_size": 224, "patch": 16, "width": 768, "layers": 12, "heads": 12}
    with torch.device("meta"):
        model = build_maskclip({"vit": sizes, "text_channels": 512, "text_categories": 20})
    assert shapes(model) == read("maskclip_vitB16_voc20")


@pytest.mark.parametrize(
    ("config", "manifest"),
    [
        ("simbaseline_R101c_vitB_cross_dataset", "simbaseline_R101c_vitB16_vild"),
        ("simbaseline_R101c_vitB_coco156_fixed", "simbaseline_R101c_vitB16_vild"),
        ("simbaseline_R101c_vitB_coco156", "simbaseline_R101c_vitB16_learnable"),
        ("simbaseline_R101c_vitB_voc15", "simbaseline_voc15_R101c_vitB16_separate"),
    ],
)
def test_simbaseline(config, manifest):
    """What trains: all but the CLIPs; prompts, too, unless they are given or those of the crops."""
    _, model = build(config)
    assert shapes(model) == read(manifest)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    clips = ("clip_adapter.clip_model.", "_region_clip_adapter.")
    assert frozen | {n for n, _ in model.named_parameters() if "prompt_learner" in n} == {
        name for name, _ in model.named_parameters() if name.startswith(clips) or "prompt_learner" in name
    }
