"""The full-size models have exactly the keys, shapes and dtypes of the published ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from ovseg.config import load_cfg
from ovseg.engine.solver import build_optimizer

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("config", "manifest"),
    [
        ("ovseg_swinB_vitL_bs32_120k", "swinB_vitL14"),
        ("ovseg_swinB_vitL_demo", "swinB_vitL14"),
        ("ovseg_R101c_vitB_bs32_120k", "R101c_vitB16"),
    ],
)
def test_manifest(config, manifest):
    expected = json.loads(gzip.decompress((ROOT / "tests/data/manifests" / f"{manifest}.json.gz").read_bytes()))
    cfg = load_cfg(ROOT / "configs" / f"{config}.yaml", ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):  # shapes without memory
        model = build_model(cfg)
    own = {name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in model.state_dict().items()}
    assert own == expected["state_dict"]
    groups = build_optimizer(cfg, model).param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    settings = {names[g["params"][0]]: {"lr": g["lr"], "weight_decay": g["weight_decay"]} for g in groups}
    assert list(settings) == list(expected["optimizer_groups"])
    for name, values in settings.items():
        assert values == pytest.approx(expected["optimizer_groups"][name]), name
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == set(expected["frozen_parameters"])
