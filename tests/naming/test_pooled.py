"""Namers that pool a dense map in masks."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from ovseg.checkpoint import load_model
from ovseg.clip.dense import LAST, resize_whole
from ovseg.errors import OvsegError
from ovseg.naming import PooledMap, TrainedRegions
from ovseg.naming.region_model import (
    GEOMETRY,
    LAYERS,
    OTHERS_LOGIT,
    PENALTY,
    SHARE,
    SHIPPED,
    RegionModel,
    describe,
    geometry,
    load_regions,
)
from ovseg.proposals.views import Masks
from ovseg.vocabulary import Vocabulary
from tests.tiny_clip import RESNET, TINY, adapter_of, convolutional_cfg, tiny_cfg, views_of

WORDS = Vocabulary.from_class_names([("cat", "kitty"), "sky", "guitar"])
ALIAS = "sky-other-merged"  # of "sky"
KNOWN = Vocabulary.from_class_names([("cat", "kitty"), "sky"])


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    return convolutional_cfg(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(cfg):
    return adapter_of(cfg)


@pytest.fixture(scope="module")
def regions(clip):
    return RegionModel(random_state(clip))


def random_state(clip, names: int = 7) -> dict[str, torch.Tensor]:
    """The state of a region model that knows :data:`KNOWN`."""
    random, texts = torch.Generator().manual_seed(3), clip.text(KNOWN.texts)
    trunk, width = clip.clip_model.visual.trunk, texts.shape[1]
    maps = {LAST: torch.zeros(trunk.num_features, 2, 2), "blocks.4": torch.zeros(112, 4, 4)}
    features, _ = describe(maps | {"blocks.5": torch.zeros(192, 2, 2)}, torch.ones(1, 8, 8, dtype=torch.bool))
    normal = {
        "weights": (features.shape[1], width),
        "classifier": (names, trunk.num_features),
        "classifier_bias": (names,),
        "class_texts": (names, width),
        "mean_text": (width,),
    }
    state = {name: torch.randn(shape, generator=random) / 4 for name, shape in normal.items()}
    fixed = {"centre": torch.zeros(features.shape[1]), "scale": torch.ones(features.shape[1])}
    named = {"texts": texts, "name_of": torch.tensor([0, 0, 2]), "offset": torch.tensor([0.1, 0.5])}
    return state | fixed | named | {"aliases": clip.text([ALIAS]), "alias_of": torch.tensor([2])}


def some_masks(height: int = 48, width: int = 64) -> torch.Tensor:
    """Probabilities of a whole image, a part of it, nothing, and one pixel."""
    masks = torch.zeros(4, height, width)
    masks[0], masks[1, 5:30, 8:20], masks[3, 7, 9] = 0.9, 0.8, 1.0
    return masks


@torch.inference_mode()
def test_a_mask_of_the_whole_image_is_named_as_the_image(cfg, clip):
    image = torch.rand(3, 64, 96) * 255
    namer = PooledMap.from_config(cfg, clip)
    (scores,) = namer(views_of(image), [Masks(torch.ones(1, 64, 96))], [KNOWN])
    pixels = resize_whole(image, 96, clip.pixel_mean, clip.pixel_std)
    logits = clip.similarity(clip.clip_model.encode_image(pixels), clip.text_matrix(KNOWN.texts))[:, :3]
    expected = torch.stack((logits[:, :2].amax(1), logits[:, 2]), 1).softmax(-1)
    torch.testing.assert_close(scores.probabilities, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["PooledMap", "TrainedRegions"])
def test_masks_without_a_pixel_get_no_scores(cfg, clip, regions, kind):
    namer = PooledMap.from_config(cfg, clip) if kind == "PooledMap" else TrainedRegions(clip, regions)
    images = [torch.rand(3, 48, 64) * 255 for _ in range(2)]
    empty = Masks(torch.zeros(2, 48, 64))
    scores, nothing, none = namer(
        views_of(*images, images[0]), [Masks(some_masks()), empty, empty], [WORDS, WORDS, None]
    )
    assert scores.seen.tolist() == [True, True, False, True]
    assert scores.probabilities.shape == (3, 3)
    torch.testing.assert_close(scores.probabilities.sum(1), torch.ones(3))
    assert nothing.probabilities.shape == (0, 3)
    assert none is None


@pytest.mark.parametrize("mode", ["value", "last_tokens", "mask_attention"])
@pytest.mark.parametrize("tower", [TINY, RESNET])
@torch.inference_mode()
def test_other_towers(tmp_path, tower, mode):
    """Masks smaller than a place have scores; images of any shape; few masks at a time change nothing."""
    cfg = tiny_cfg(tmp_path, MASK_PROMPT_DEPTH=0)
    (tmp_path / "clip.json").write_text(json.dumps(tower))
    cfg.MODEL.DENSE.MODE, cfg.MODEL.NAMER.MAP_SIZE = mode, 96
    namer = PooledMap.from_config(cfg, adapter_of(cfg))
    views, masks = views_of(torch.rand(3, 48, 70) * 255), some_masks(48, 70)
    (scores,) = namer(views, [Masks(masks)], [WORDS])
    assert scores.seen.tolist() == [True, True, False, True]
    torch.testing.assert_close(scores.probabilities.sum(1), torch.ones(3))
    (many,) = namer(views, [Masks(masks.repeat(9, 1, 1))], [WORDS])
    torch.testing.assert_close(many.probabilities, scores.probabilities.repeat(9, 1), rtol=1e-4, atol=1e-5)


def test_the_map_of_an_image_is_computed_once(cfg, clip, monkeypatch):
    namers = [PooledMap.from_config(cfg, clip) for _ in range(2)]
    calls, views = [], views_of(torch.rand(3, 48, 64))
    forward = clip.clip_model.visual.trunk.forward_features
    monkeypatch.setattr(clip.clip_model.visual.trunk, "forward_features", lambda x: calls.append(1) or forward(x))
    for namer in namers:
        namer(views, [Masks(some_masks())], [WORDS])
    assert len(calls) == 1


def test_a_synonym_of_the_training_is_named_like_its_name(clip, regions):
    features, last = torch.rand(5, len(regions.centre)), torch.rand(5, regions.classifier.shape[1])
    texts = clip.text(["cat", "kitty", ALIAS, "sky"])
    logits, alone = regions(features, last, texts), regions.conse(last, texts)
    torch.testing.assert_close(logits[:, 0], logits[:, 1])
    torch.testing.assert_close(logits[:, 2], logits[:, 3])  # whatever ConSE makes of its text
    best = alone[:, :2].amax(1)
    own = (features - regions.centre) * regions.scale @ regions.weights @ regions.direction(texts).T
    torch.testing.assert_close(logits[:, 0] - best, own[:, 0] - PENALTY, rtol=1e-4, atol=1e-4)


def test_what_means_none_of_the_words_has_a_constant(cfg, clip, regions):
    namer = TrainedRegions(clip, regions, KNOWN.synonyms)
    words = Vocabulary.from_class_names(["cat", "others"])
    logits = namer.without_words(torch.zeros(3, 3), words.texts)
    assert logits.tolist() == [[0, OTHERS_LOGIT, 0]] * 3
    assert namer.unfamiliar(words) == []


def test_a_text_far_from_the_training_keeps_its_own_part(clip, regions):
    features, last = torch.rand(5, len(regions.centre)), torch.rand(5, regions.classifier.shape[1])
    far = -regions.texts.mean(0, keepdim=True)
    far = far / far.norm()
    own = (features - regions.centre) * regions.scale @ regions.weights @ regions.direction(far).T
    expected = regions.conse(last, far) + SHARE * own
    torch.testing.assert_close(regions(features, last, far), expected, rtol=1e-4, atol=1e-4)


def test_words_far_from_the_training_are_listed(clip, regions, monkeypatch):
    namer = TrainedRegions(clip, regions, KNOWN.synonyms)
    assert namer.words == (("cat", "kitty"), ("sky",))
    monkeypatch.setattr("ovseg.naming.pooled.FAMILIAR", 1 - 1e-5)
    assert namer.unfamiliar(Vocabulary.from_class_names(["kitty", "guitar", ("cloud", "sky"), "castle"])) == [
        "guitar",
        "castle",
    ]


def test_place_and_shape_of_masks():
    masks = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0)) > 0.6
    masks[1], masks[2] = False, False
    masks[1, 4:9, 0:6] = True
    masks[2, 19, 29] = True
    found = geometry(masks.float())
    assert found.shape == (3, GEOMETRY)
    assert found.isfinite().all()
    box = found[1]
    torch.testing.assert_close(box[[0, 2]], torch.tensor([3 / 30, 6.5 / 20]))
    torch.testing.assert_close(box[5:9], torch.tensor([4 / 20, 9 / 20, 0, 6 / 30]))
    torch.testing.assert_close(box[13:18], torch.tensor([1, 0, 0, 5 / 20, 0]))
    for mask, values in zip(masks, found, strict=True):
        perimeter = (mask[1:] ^ mask[:-1]).sum() + (mask[:, 1:] ^ mask[:, :-1]).sum()
        torch.testing.assert_close(values[18], (perimeter / mask.sum().sqrt() + 0.1).log())


def test_wrong_files_and_other_towers_are_refused(tmp_path, cfg, clip):
    with pytest.raises(OvsegError, match=r"cannot read the region model .*none\.safetensors .*give photo, or a"):
        load_regions(str(tmp_path / "none.safetensors"))
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(OvsegError, match=r"cannot read the region model"):
        load_regions(str(tmp_path / "other.safetensors"))
    with pytest.raises(OvsegError, match=r"1280 and 384 dimensions, but .* has 1280 and 16: set MODEL\.CLIP_ADAPTER"):
        TrainedRegions.from_config(cfg, clip)
    other = adapter_of(tiny_cfg(tmp_path))
    with pytest.raises(OvsegError, match=r"MODEL\.CLIP_ADAPTER\.CLIP_MODEL_NAME .* no layer blocks\.4; choose photo"):
        TrainedRegions.from_config(cfg, other)
    cfg = cfg.clone()
    cfg.MODEL.DENSE.MODE = "last_tokens"
    with pytest.raises(OvsegError, match=r"MODEL\.DENSE\.MODE is last_tokens, but the image tower EfficientNet of"):
        PooledMap.from_config(cfg, clip)


def test_the_shipped_region_model():
    regions, words = load_regions("photo")
    assert SHIPPED["photo"].stat().st_size < 12e6
    assert len(words) >= 100
    assert ("sky", "clouds") in words
    assert len(regions.texts) == sum(map(len, words))
    assert all(tensor.isfinite().all() for tensor in regions.state_dict().values())


def test_a_whole_model(tmp_path, clip):
    cfg = convolutional_cfg(tmp_path, "TrainedRegions")
    cfg.MODEL.PROPOSER.NAME = "GroundTruth"
    about = {"about": json.dumps({"words": KNOWN.synonyms})}
    save_file(random_state(clip), tmp_path / "regions.safetensors", about)
    cfg.MODEL.NAMER.REGIONS = str(tmp_path / "regions.safetensors")
    model = load_model(cfg, complete=False).eval()
    labels = torch.zeros(40, 60, dtype=torch.long)
    labels[10:, 20:] = 1
    request = {"image": torch.rand(3, 40, 60) * 255, "sem_seg": labels, "class_names": ["cat", "sky"]}
    with torch.inference_mode():
        assert model([request])[0]["sem_seg"].shape == (2, 40, 60)
        named = model.name_masks(request, torch.stack((labels == 0, labels == 1)))
    torch.testing.assert_close(named.sum(1), torch.ones(2))
    assert all(name.startswith("clip_adapter.") for name in model.state_dict())
    assert set(LAYERS) == {"blocks.4", "blocks.5"}
