"""Embeddings of pixels and masks, of every system that has them: equal to the model's own labels; memory, files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from safetensors import safe_open
from torch.nn import functional as F

from ovseg.config import load_cfg
from ovseg.errors import OvsegError
from ovseg.meta_arch.lseg import build_lseg
from ovseg.result import features as module
from ovseg.segmenter import Segmenter
from tests.scripts import load_script
from tests.tiny_clip import convolutional_cfg, tiny_cfg
from tests.tiny_model import make_tiny_model

TOY = Path(__file__).parents[1] / "configs" / "toy"
WITHOUT_WEIGHTS = (
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR", "none"),
    *("MODEL.CLIP_ADAPTER.CLIP_WEIGHTS", "none"),
)
LSEG = {
    "vit": {"patch": 16, "grid": 4, "width": 16, "depth": 4, "heads": 2, "hooks": [0, 1, 2, 3]},
    "reassemble_channels": [4, 6, 8, 8],
    "features": 8,
    "out_channels": 16,
    "clip_text": {"embed_dim": 16, "context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}
WORDS = ["grass", "cat", "traffic light", "red rock", "sky"]
PER_PIXEL = ("OpenSeg without masks", "LSeg", "LSegPlus", "DenseCLIP")
WITH_MASKS = ("OpenSeg", "PooledMap")


def toy(name, *opts):
    return build_model(load_cfg(TOY / f"{name}_toy.yaml", [*WITHOUT_WEIGHTS, *opts]))


def tiny(folder, kind):
    cfg = tiny_cfg(folder) if kind == "DenseCLIP" else convolutional_cfg(folder)
    if kind == "DenseCLIP":
        cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.PROPOSER.NAME = "DenseCLIP", "MaskFormer"
        cfg.MODEL.NAMER.NAME = ["QueryEmbedding", "MaskedCrops"]
    else:
        cfg.MODEL.PROPOSER.NAME = "BoundaryTree"
        cfg.MODEL.PROPOSER.BOUNDARY_TREE.BOUNDARY = "gradient"
        cfg.MODEL.PROPOSER.BOUNDARY_TREE.RANKING = "tree"
    return build_model(cfg)


BUILD = {
    "OpenSeg": lambda folder: toy("openseg"),
    "OpenSeg without masks": lambda folder: toy("openseg", "MODEL.OPENSEG.TEST_PROPOSALS", "none"),
    "LSegPlus": lambda folder: toy("lseg_plus", "MODEL.LSEG_PLUS.HEAD_DIM", 64),
    "LSeg": lambda folder: build_lseg(LSEG),
    "DenseCLIP": lambda folder: tiny(folder, "DenseCLIP"),
    "PooledMap": lambda folder: tiny(folder, "PooledMap"),
}


@pytest.fixture(scope="module")
def segmenters(tmp_path_factory):
    found = {}

    def get(kind):
        if kind not in found:
            torch.manual_seed(0)
            model = BUILD[kind](tmp_path_factory.mktemp("model")).eval()
            found[kind] = Segmenter(model, min_size=0, max_size=2000, name=kind)
        return found[kind]

    return get


def make_image(height=72, width=104):
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
    return np.kron(coarse, np.ones((8, 8, 1), np.uint8))


@pytest.mark.parametrize("kind", PER_PIXEL)
def test_the_best_words_of_pixels_are_those_of_the_model(segmenters, kind):
    segment, image = segmenters(kind), make_image()
    text = segment.embed_words(WORDS)
    features = segment.features(image, stride=1)
    found = segment(image, WORDS)
    assert features.shape[1:] == found.label_map.shape and features.regions is None and features.masks is None
    assert len(np.unique(found.label_map)) > 1
    assert np.array_equal(features.labels(text), found.label_map)
    pixels = features.pixels
    assert pixels.dtype == np.float32 and np.allclose(np.linalg.norm(pixels, axis=0), 1, atol=1e-5)
    scores = np.einsum("sd,dhw->shw", text, pixels)
    assert np.array_equal(scores.argmax(0), found.label_map)
    assert np.allclose(features.scores(text), scores, atol=1e-5)


@pytest.mark.parametrize("kind", WITH_MASKS)
def test_regions_rank_words_as_the_model_does(segmenters, kind):
    segment, image = segmenters(kind), make_image()
    features, text = segment.features(image), segment.embed_words(WORDS)
    request = {"image": torch.from_numpy(image).permute(2, 0, 1), "class_names": WORDS, "outputs": ("scored_masks",)}
    with torch.no_grad():
        scores, masks, *_ = segment.model([request])[0]["scored_masks"]
    named = scores.sum(1) != 0 if kind == "PooledMap" else torch.ones(len(scores), dtype=torch.bool)
    assert len(features.regions) == len(features.masks) == named.sum() > 1
    assert features.masks.dtype == np.float16 and features.masks.shape[1:] == features.shape[1:] == (18, 26)
    ranks = torch.from_numpy(features.regions @ text.T).argsort(1)
    assert torch.equal(ranks, scores[named].argsort(1))
    expected = F.interpolate(masks[named][None], (18, 26), mode="bilinear", align_corners=False)[0]
    assert np.allclose(features.masks, expected, atol=1e-3)
    assert segment.features(image, with_masks=False).regions is None


def test_pixels_of_openseg_are_those_that_it_sums_in_masks(segmenters):
    """Regions are sums over the places of mask x embedding, of the network's own vectors."""
    segment, image = segmenters("OpenSeg"), make_image(160, 160)
    features = segment.features(image, stride=4, normalised=False)
    assert features.shape == (len(features.pixels), 40, 40)
    with torch.no_grad():
        views = segment.model.views([{"image": torch.from_numpy(image).permute(2, 0, 1)}])
        places = segment.model.namers[0].pixels(views)[0]
        weights = segment.model.proposer.mask_logits(views)[0].sigmoid()
    assert np.allclose(features.pixels, places, atol=1e-5)
    expected = torch.einsum("nhw,dhw->nd", weights, places)
    assert np.allclose(features.regions, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["LSegPlus", "LSeg"])
def test_strides_and_points_are_samples_of_one_map(segmenters, kind):
    """Vectors at any stride are those at the centres of its squares, of images that were scaled down, too."""
    segment, image = segmenters(kind), make_image(96, 72)
    small = Segmenter(segment.model, min_size=0, max_size=64)
    for one in (segment, small):
        for stride in (1, 2, 3, 8, 7.5, 200):
            features = one.features(image, stride=stride)
            height, width = features.shape[1:]
            assert (height, width) == (-(-96 // stride), -(-72 // stride))
            centres = [(np.arange(n) + 0.5) * side / n - 0.5 for n, side in ((height, 96), (width, 72))]
            rows, columns = np.meshgrid(*centres, indexing="ij")
            found = one.features(image, stride=1).at(rows.ravel(), columns.ravel())
            assert np.allclose(found.T.reshape(features.shape), features.pixels, atol=1e-5)
    labels = small.features(image, stride=1).labels(small.embed_words(WORDS))
    assert (labels == small(image, WORDS).label_map).mean() > 0.95  # whose scores are interpolated twice


def test_large_maps_are_computed_in_pieces(segmenters, monkeypatch):
    segment, image = segmenters("OpenSeg"), make_image()
    whole = segment.features(image, stride=2)
    text = segment.embed_words(WORDS)
    expected = whole.pixels, whole.masks, whole.labels(text), whole.scores(text)
    monkeypatch.setattr(module, "PIECE", 2 * 36 * 52)
    pieces = segment.features(image, stride=2)
    assert [len(piece) for piece in pieces.channels()] == [2] * (len(whole.places) // 2)
    found = pieces.pixels, pieces.masks, pieces.labels(text), pieces.scores(text)
    for one, other in zip(found, expected, strict=True):  # float16 masks: a sum that rounds to the neighbour
        assert np.allclose(one, other, atol=1e-5, rtol=1e-3 if other.dtype == np.float16 else 1e-5)
    monkeypatch.setattr(module, "LARGEST", 1000)
    for use in (lambda: pieces.pixels, lambda: pieces.masks, lambda: pieces.scores(text)):
        with pytest.raises(OvsegError, match=r"GiB: give a larger stride, ask for single points .* with save\(\)"):
            use()
    assert pieces.labels(text).shape == (36, 52) and pieces.at([0, 5.5], [3, 3]).shape == (2, len(whole.places))


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_files(segmenters, tmp_path, suffix, dtype, monkeypatch):
    features = segmenters("OpenSeg").features(make_image(), stride=3, dtype=dtype)
    expected = {"pixels": features.pixels, "regions": features.regions, "masks": features.masks}
    monkeypatch.setattr(module, "PIECE", 5 * 24 * 35)
    path = features.save(tmp_path / "new" / f"a{suffix}")
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        metadata = json.loads(str(found.pop("metadata")))
    else:
        with safe_open(path, "np") as file:
            found, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    assert metadata == {
        **{"format": "ovseg image features 1", "model": "OpenSeg", "source": "", "height": "72", "width": "104"},
        **{"stride": "3", "normalised": "true"},
    }
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == (np.float16 if name == "masks" else dtype) and np.array_equal(found[name], array)
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == [path.name]
    with pytest.raises(OvsegError, match=r"a\.pt is neither \.safetensors nor \.npz"):
        features.save(tmp_path / "a.pt")


def test_systems_without_embeddings_of_pixels_say_so(tmp_path):
    config, weights = make_tiny_model(tmp_path)[:2]
    segment = Segmenter.from_config(config, weights, device="cpu")
    with pytest.raises(OvsegError, match=r"MaskNetwork, QueryEmbedding, MaskedCrops\) has no embeddings of pixels"):
        segment.features(make_image())
    with pytest.raises(OvsegError, match="use OpenSeg, LSeg, LSegPlus, DenseCLIP, or ProposeAndName with"):
        segment.embed_words(["cat"])
    lseg = Segmenter(build_lseg(LSEG | {"arch_option": 1, "block_depth": 1}), min_size=0, max_size=64)
    with pytest.raises(OvsegError, match="a spatial block follows the cosines"):
        lseg.features(make_image())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stride": 0}, "stride is 0: give the pixels between two vectors"),
        ({"stride": "4"}, "stride is '4'"),
        ({"dtype": "int8"}, "dtype is 'int8': choose float32 or float16"),
    ],
)
def test_bad_arguments(segmenters, arguments, message):
    with pytest.raises(OvsegError, match=message):
        segmenters("LSegPlus").features(make_image(), **arguments)


def test_what_does_not_fit(segmenters):
    features = segmenters("LSegPlus").features(make_image())
    with pytest.raises(OvsegError, match=r"text has the shape \[2, 3\]: give embeddings \(S, "):
        features.scores(np.zeros((2, 3)))
    with pytest.raises(OvsegError, match="not two lists of equally many numbers"):
        features.at([1, 2], [1])
    with pytest.raises(OvsegError, match=r"not all numbers in float16 .* choose float32, or normalise"):
        module.finished(np.array([1e6]), "float16")
    assert "ImageFeatures(" in repr(features)


def test_the_tool(segmenters, tmp_path, monkeypatch, capsys):
    from PIL import Image

    tool = load_script("tools/extract_features.py")
    monkeypatch.setattr(Segmenter, "from_config", classmethod(lambda cls, *_, **__: segmenters("OpenSeg")))
    (tmp_path / "in").mkdir()
    Image.fromarray(make_image()).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes(b"damaged")
    arguments = ["--config-file", "openseg_R101", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert tool.main([*arguments, "--stride", "8", "--dtype", "float16", "--format", "npz", "--without-masks"]) == 1
    with np.load(tmp_path / "out" / "a.npz") as file:
        assert sorted(file.files) == ["metadata", "pixels"] and file["pixels"].shape[1:] == (9, 13)
        assert file["pixels"].dtype == np.float16
    printed = capsys.readouterr()
    assert "a.npz" in printed.out and "b.png" in printed.err
    assert not (tmp_path / "out" / "b.npz").exists()
    assert tool.main([*arguments[:3], str(tmp_path / "in" / "a.png"), *arguments[4:], "--skip-existing"]) == 0
    assert (tmp_path / "out" / "a.safetensors").exists()
