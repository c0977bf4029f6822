"""tools/measure_export.py: whose weights it measures."""

from __future__ import annotations

import pytest
import torch

from ovseg.checkpoint.state_dicts import read_state_dict
from tests.scripts import load_script
from tests.tiny_model import make_tiny_model

tool = load_script("tools/measure_export.py")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return [str(path) for path in make_tiny_model(tmp_path_factory.mktemp("tiny"))]


def test_options_name_weights_or_take_them_away(tiny, tmp_path):
    config, weights = tiny
    named = tmp_path / "named.yaml"
    named.write_text(f"_BASE_: {config}\nMODEL:\n  WEIGHTS: {weights}\n")
    stored = read_state_dict(weights)

    def are_stored(*words: str) -> bool:
        args = tool.parse([*words])
        state = tool.segmenter_of(args.models[0], args.opts).model.state_dict()
        return all(torch.equal(state[name], tensor) for name, tensor in stored.items())

    assert are_stored(str(named)) and are_stored(config, "--opts", "MODEL.WEIGHTS", weights)
    assert not are_stored(str(named), "--opts", "MODEL.WEIGHTS", "") and not are_stored(config)
