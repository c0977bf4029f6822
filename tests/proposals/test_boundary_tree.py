"""``BoundaryTree`` on drawn scenes, without packaged weights."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from ovseg.errors import OvsegError
from ovseg.proposals import BoundaryTree, regions
from ovseg.proposals.boundary_tree import gradient, lab_of
from ovseg.proposals.hed import HED, load_hed
from ovseg.proposals.region_ranker import RANKED, RegionRanker, grow
from ovseg.proposals.region_ranking import choose
from ovseg.proposals.views import Views


def drawn(height: int = 120, width: int = 160) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return a scene (3, H, W) of a square and a disc on two grounds, with noise, and the masks of the four."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    square = (rows > height * 0.2) & (rows < height * 0.6) & (columns > width * 0.1) & (columns < width * 0.4)
    disc = (rows - height * 0.5) ** 2 + (columns - width * 0.7) ** 2 < (0.2 * min(height, width)) ** 2
    lower = (rows > height * 0.75) & ~disc
    masks = [square, disc, lower, ~(square | disc | lower)]
    image = torch.zeros(3, height, width)
    for mask, colour in zip(masks, ((220, 40, 40), (240, 220, 60), (40, 140, 50), (90, 140, 220)), strict=True):
        image[:, mask] = torch.tensor(colour, dtype=torch.float32)[:, None]
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    return (image + 4 * noise).clamp(0, 255), masks


def proposer(**settings) -> BoundaryTree:
    return BoundaryTree("gradient", "tree", **settings)


def pieces_of(image: torch.Tensor) -> regions.Pieces:
    return proposer().pieces_of(image)[0]


def ious(found: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    found = found.bool()
    return (found & mask).flatten(1).sum(1) / (found | mask).flatten(1).sum(1)


def test_finds_what_is_drawn():
    image, masks = drawn()
    found = proposer(num_masks=20).masks_of(image)
    assert len(found) <= 20
    assert set(found.unique().tolist()) == {0, 1}
    assert (found.flatten(1).sum(1) > 0).all()
    assert all(ious(found, mask).max() > 0.85 for mask in masks)


def test_equal_in_any_batch():
    images = [drawn()[0], drawn(90, 50)[0]]
    both = proposer()(Views([{}, {}], images))
    for image, masks in zip(images, both, strict=True):
        alone = proposer()(Views([{}], [image]))[0]
        assert torch.equal(alone.probabilities, masks.probabilities)
        assert masks.embeddings is None


def test_flat_image_has_one_mask():
    assert torch.equal(proposer().masks_of(torch.full((3, 60, 80), 90.0)), torch.ones(1, 60, 80))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 2), (3, 900), (2000, 2), (17, 33)])
def test_odd_sizes(size):
    image = 255 * torch.rand(3, *size, generator=torch.Generator().manual_seed(1))
    masks = proposer().masks_of(image)
    assert masks.shape[1:] == size
    assert 1 <= len(masks) <= 100
    assert (masks.flatten(1).sum(1) > 0).all()


def test_greyscale():
    image, masks = drawn()
    grey = image.mean(0, keepdim=True).expand(3, -1, -1)
    assert ious(proposer().masks_of(grey), masks[0]).max() > 0.8


def test_large_image():
    start = time.process_time()
    masks = proposer().masks_of(drawn(1500, 2000)[0])
    assert masks.shape[1:] == (1500, 2000)
    assert time.process_time() - start < 30


def test_watershed_separates_by_ridges():
    boundary = np.zeros((20, 30), np.float32)
    boundary[:, 14] = 1
    labels = regions.watershed(boundary, sigma=0)
    assert len(np.unique(labels)) == 2
    assert labels[0, 0] != labels[0, 29]
    assert (labels[:, :14] == labels[0, 0]).all()


def test_trees_are_complete():
    pieces = pieces_of(drawn()[0])
    tree = regions.agglomerate(pieces, 1.0, 1.0, 0.0, 0.3)
    assert len(tree.children) == len(pieces) - 1
    assert tree.members[-1].all()
    assert np.isinf(tree.deaths[-1])
    assert np.isfinite(tree.deaths[:-1]).all()
    one, other = tree.children.T
    assert not (tree.members[one] & tree.members[other]).any()


def test_ranking_of_random_features():
    """Deep features and networks of any kind: shapes fit, the results differ, and are the same again."""
    pieces, _ = proposer().pieces_of(drawn()[0])
    random = np.random.default_rng(0)
    features = random.normal(size=(len(pieces), 12)).astype(np.float32)
    tensors = {f"{name}.mean": np.zeros(12) for name in ("deep", "look")}
    tensors |= {"deep.matrix": random.normal(size=(12, 8)), "look.matrix": random.normal(size=(12, 4))}
    projected = RegionRanker(tensors).project(pieces, features)
    found = grow(projected)
    assert len(np.unique(found.members, axis=0)) == len(found.members)
    assert np.isfinite(found.features).all()
    assert np.array_equal(grow(projected).features, found.features)
    size = found.features.shape[1]
    tensors |= {"net.mean": found.features.mean(0), "net.scale": found.features.std(0) + 1}
    tensors |= {"net.0.0.weight": random.normal(size=(size, 1)) / size, "net.0.0.bias": np.zeros(1)}
    chances = RegionRanker(tensors).chances(found.features)
    assert ((chances > 0) & (chances < 1)).all()
    chosen = choose(found.members, pieces.areas, chances, 30)
    assert len(set(chosen.tolist())) == min(30, len(found.members))
    assert chosen[0] == chances.argmax()


def test_choose_prefers_regions_that_differ():
    members = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1]], dtype=bool)
    assert choose(members, np.array([9.0, 9, 1, 8]), np.array([0.9, 0.8, 0.1]), 2).tolist() == [0, 2]


def test_the_packaged_ranker_fits():
    """The features of candidates are those that the packaged networks were trained with."""
    pieces, _ = proposer().pieces_of(drawn()[0])
    for boundary in RANKED:
        ranker = RegionRanker.load(boundary)
        width = len(ranker.tensors["deep.mean"])
        found = grow(ranker.project(pieces, np.zeros((len(pieces), width), np.float32)))
        assert ranker.chances(found.features).shape == (len(found.members),)


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (33, 47)])
def test_hed_has_edges_of_the_image_size(size):
    torch.manual_seed(0)
    network = HED((4, 4, 8, 8, 8)).eval()
    edges, features = network(255 * torch.rand(2, 3, *size))
    assert edges.shape == (2, *size)
    assert ((edges >= 0) & (edges <= 1)).all()
    assert [part.shape[1] for part in features] == [4, 4, 8, 8, 8]
    assert features[-1].shape[2:] == tuple(-(-side // 16) for side in size)


def test_hed_refuses_other_files(tmp_path):
    pytest.importorskip("h5py")
    (tmp_path / "hed.h5").write_bytes(b"nothing")
    with pytest.raises(OvsegError, match="cannot be read as the weights of HED"):
        load_hed(tmp_path / "hed.h5")


def test_gradient_is_high_at_borders():
    image, masks = drawn()
    strength = gradient(lab_of(image.permute(1, 2, 0).numpy()))
    square = masks[0].numpy()
    assert 0 <= strength.min() <= strength.max() <= 1
    assert strength[:, :1].mean() < 0.3
    assert strength[np.argmax(square[:, 40]), 40] > 0.8


def test_unknown_settings_are_refused():
    with pytest.raises(OvsegError, match="boundary is 'canny': choose one of auto, hed, gradient"):
        BoundaryTree("canny")
    with pytest.raises(OvsegError, match="ranking is 'best': choose one of auto, network, tree"):
        BoundaryTree("gradient", "best")
