"""What the parts of models compute in graphs, and which graphs a model has."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ovseg import Segmenter
from ovseg.clip.dense import covered
from ovseg.errors import OvsegError
from ovseg.export import formats, writing
from ovseg.export.graphs import Axis, Input
from ovseg.export.plan import Size, plan_of
from ovseg.io.shipped import shipped
from ovseg.naming.region_model import describe
from ovseg.proposals import deformable_sampling
from ovseg.vocabulary import Vocabulary
from tests.tiny_model import make_tiny_scan

GRAPHS = {
    "openseg_toy": ["regions"],
    "lseg_plus_toy": ["pixels"],
    "dense_clip_toy": ["places"],
    "ovsegmentor_toy": ["groups"],
}


@pytest.fixture
def in_graph(monkeypatch):
    """Parts compute as they do while a graph is made of them."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


def test_the_area_of_places_in_graphs(in_graph, monkeypatch):
    masks = (torch.rand(3, 37, 50) > 0.5).float()
    for size in ((5, 7), (37, 50), (40, 13)):
        in_a_graph = covered(masks, size)
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: False)
            torch.testing.assert_close(in_a_graph, covered(masks, size))


def test_the_description_of_regions_in_graphs(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    maps = {
        name: torch.randn(4, *size, generator=generator)
        for name, size in (("last", (3, 4)), ("blocks.5", (3, 4)), ("blocks.4", (6, 8)))
    }
    masks = torch.rand(3, 48, 64, generator=generator) > 0.7
    outside = describe(maps, masks)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for ours, theirs in zip(describe(maps, masks.float()), outside, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_deformable_attention_in_graphs(in_graph, monkeypatch):
    used = []
    monkeypatch.setattr(
        deformable_sampling, "sample_grids", lambda value, *rest: used.append(rest) or value.new_zeros(1)
    )
    deformable_sampling.sample_levels(torch.zeros(1, 6, 1, 2), ((2, 3),), *(torch.zeros(1, 1, 1, 1, 1),) * 3)
    assert used


def test_random_inputs():
    height = Axis("h", (2, 3), 32)
    given = Input((1, 3, height, 64))
    assert given.sizes(0) == (1, 3, 64, 64) and given.sizes(1) == (1, 3, 96, 64)
    assert given.described == {"shape": [1, 3, "32*h", 64], "dtype": "float32"}
    masks = Input((4, 1, 32, 48), "share").random(0, torch.Generator().manual_seed(0))
    assert masks.shape == (4, 1, 32, 48) and set(masks.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_of_systems(name, tmp_path):
    segmenter = Segmenter.from_config(shipped(f"configs/toy/{name}.yaml"), device="cpu")
    plan = plan_of(segmenter.model, Size((96, 128), 160))
    assert [graph.name for graph in plan.graphs] == GRAPHS[name] and not plan.left_out
    with torch.no_grad():
        for graph in plan.graphs:
            checked = writing.check(graph, formats.write_program(graph, tmp_path, 18), 0)
            assert checked.difference <= writing.TOLERANCE


def test_scan_as_programs_of_one_size(tmp_path):
    config, weights = make_tiny_scan(tmp_path)
    segmenter = Segmenter.from_config(config, weights, device="cpu")
    settings = {"format": "torch-export", "size": (64, 96)}
    assert set(plan_of(segmenter.model, Size(None, 64)).left_out) == {"MaskNetwork"}  # Swin
    plan = writing.export(segmenter, Vocabulary.of(["cat", "sofa"]), tmp_path / "out", **settings)
    assert [graph.name for graph in plan.graphs] == ["masks", "calibration", "crops"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("calibration.pt2", "crops.pt2", "export.json", "masks.pt2", "text_embeddings.npy"),
    ]
    module = torch.export.load(tmp_path / "out" / "masks.pt2").module()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(module(image), plan.graphs[0].module(image), rtol=0, atol=1e-4)
    text = np.load(tmp_path / "out" / "text_embeddings.npy")
    assert text.shape == (3, 16) and np.allclose(np.linalg.norm(text, axis=1), 1, atol=1e-5)


def test_parts_without_a_graph_are_named(tmp_path):
    segmenter = Segmenter.from_config(shipped("configs/toy/ovseg_toy.yaml"), device="cpu")
    model = segmenter.model
    model.parts = (torch.nn.Identity(),)
    with pytest.raises(OvsegError, match=r"no part of ovseg_toy can be exported \(Identity: no graph is known"):
        writing.export(segmenter, Vocabulary.of(["cat"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
