"""Models built without random numbers differ only in what is drawn at random."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from ovseg.checkpoint import load_weights, skip_initialisation
from ovseg.config import load_cfg
from tests.tiny_model import make_tiny_model, make_tiny_scan


def _everything(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize("make", [make_tiny_model, make_tiny_scan])
def test_all_that_is_not_random_is_as_usual(tmp_path, make):
    config, weights = make(tmp_path)
    cfg = load_cfg(str(config))
    builds = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        builds.append(_everything(build_model(cfg)))
    with skip_initialisation():
        model = build_model(cfg)
    ours = _everything(model)
    assert ours.keys() == builds[0].keys()
    random = {name for name, tensor in builds[0].items() if not torch.equal(tensor, builds[1][name])}
    for name, tensor in builds[0].items():
        assert (ours[name].shape, ours[name].dtype) == (tensor.shape, tensor.dtype), name
        assert name in random or torch.equal(ours[name], tensor), name
    assert random <= dict(model.named_parameters()).keys()
    assert len(random) > 20
    load_weights(model, weights, complete=True)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


INITS = {
    **{name: getattr(nn.init, name) for name in ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_")},
    **{name: getattr(nn.init, name) for name in ("kaiming_normal_", "xavier_uniform_", "xavier_normal_")},
    "narrow": lambda tensor: nn.init.trunc_normal_(tensor, mean=3, std=1, a=2.9, b=2.95),
    "method": lambda tensor: tensor.data.normal_(),
}


@pytest.mark.parametrize("init", INITS)
def test_no_random_number_is_drawn(init):
    parameter = nn.Parameter(torch.full((64, 64), torch.nan))
    before = torch.get_rng_state()
    with skip_initialisation():
        INITS[init](parameter)
        nn.Linear(8, 8)
        nn.MultiheadAttention(8, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_random_number_is_drawn_for_a_model_of_transformers():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 32, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**sizes, intermediate_size=16)
    transformers.AutoModel.from_config(config)  # imports, which may draw
    before = torch.get_rng_state()
    with skip_initialisation():
        transformers.AutoModel.from_config(config)
    assert torch.equal(torch.get_rng_state(), before)


def test_constants_integers_and_dropout_are_as_usual():
    with skip_initialisation():
        layer = nn.Sequential(nn.Dropout(0.5), nn.LayerNorm(4))
        nn.init.constant_(layer[1].bias, 3)
        order = torch.arange(4)
        drawn = torch.empty(100, dtype=torch.long).random_(1, 9)
        noise = torch.randn(100)
    assert layer[1].bias.tolist() == [3] * 4
    assert layer[1].weight.tolist() == [1] * 4
    assert order.tolist() == [0, 1, 2, 3]
    assert (drawn > 0).all()
    assert noise.std() > 0
    assert (layer[0](torch.ones(1000)) == 0).any()
