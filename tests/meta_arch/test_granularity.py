"""Granularity: which masks a word keeps, in the rendering, the configuration, requests and the Python API."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovseg import Segmenter
from ovseg.checkpoint import load_model
from ovseg.config import load_cfg
from ovseg.errors import OvsegError
from ovseg.meta_arch.per_pixel import PerPixel
from ovseg.meta_arch.pixel_scores import ClassWinner, class_winner_weights
from ovseg.proposals.views import Part
from ovseg.toy import make_scene
from ovseg.vocabulary import Vocabulary
from tests.tiny_model import make_tiny_model, make_tiny_scan

ROOT = Path(__file__).parents[2]
TOY = ROOT / "configs" / "toy" / "ovseg_toy.yaml"
WORDS = ["grass", "star", "disk"]


@pytest.mark.parametrize(
    ("granularity", "drop_last", "kept"),
    [
        (1.0, False, [True, False, False, True]),
        (0.75, False, [True, False, False, True]),  # 0.6 = 0.75 x 0.8 is not above it
        (0.74, False, [True, True, False, True]),
        (0.5, False, [True, True, False, True]),
        (0.5, True, [True, True, False, False]),  # the best of "others" alone is not kept
        (0.25, True, [True, True, False, False]),  # 0.2 = 0.25 x 0.8
        (0.2, True, [True, True, True, False]),
        (0.0, False, [True, True, True, True]),
        (0.0, True, [True, True, True, False]),  # strict: 0 > 0 x 0.8 is false
    ],
)
def test_masks_of_a_word(granularity, drop_last, kept):
    probabilities = torch.tensor([[0.8, 0.2], [0.6, 0.1], [0.2, 0.3], [0.0, 0.9]])
    weights = class_winner_weights(probabilities, drop_last, granularity)
    assert torch.equal(weights, probabilities * torch.tensor(kept)[:, None])  # whole rows, each once


def test_no_mask_and_no_score():
    assert class_winner_weights(torch.zeros(0, 3), False, 0.5).shape == (0, 3)
    assert not class_winner_weights(torch.zeros(2, 3), False, 0.5).any()


def test_nearest_keeps_masks_binary():
    scores, masks = torch.tensor([[0.5, 0.25]]), torch.zeros(1, 4, 4)
    masks[0, :2] = 0.9
    words = Vocabulary.from_class_names(["a", "b"])
    for outputs, size in ((("sem_seg",), (8, 6)), (("label_map",), (8, 6)), (("label_map",), (3, 3))):
        result = ClassWinner(0.5, resize_mode="nearest")(scores, masks, words, size, outputs)
        best = result["sem_seg"][0] if "sem_seg" in result else result["score_map"]
        assert set(best.unique().tolist()) == {0.0, 0.5}
        assert (best[: size[0] // 2] > 0).all()


@pytest.fixture(scope="module")
def scene():
    return make_scene(8).image


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.from_config(TOY, opts={"MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR": "none"}, device="cpu")


@pytest.mark.parametrize("words", [WORDS, ["star"]])
def test_one_is_the_class_winner_bit_by_bit(words, scene, segmenter):
    opts = ["MODEL.MASK_FORMER.TEST.PAINTING", "class_winner", "MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR", "none"]
    winner = Segmenter.from_config(TOY, opts=opts, device="cpu")(scene, words)
    by_call = segmenter(scene, words, granularity=1)
    render = segmenter.adjustable(scene, words)
    for result in (by_call, render(1), render(1.0)):
        assert np.array_equal(result.label_map, winner.label_map)
        assert np.array_equal(result.scores, winner.scores)
        assert result.names == winner.names


@pytest.mark.parametrize("granularity", [None, 0, 1])
@pytest.mark.parametrize("add_others", [False, True])
def test_adjusting_one_word_equals_calls(granularity, add_others, scene, segmenter, monkeypatch):
    monkeypatch.setattr(segmenter.model, "add_others", add_others)
    called = segmenter(scene, ["star"], granularity=granularity)
    for kept in (whole := segmenter.adjustable(scene, ["star"]), whole.compact()):
        rendered = kept(granularity)
        assert np.array_equal(called.label_map, rendered.label_map)
        assert np.allclose(called.scores, rendered.scores, rtol=1e-3)
    assert add_others or segmenter(scene, ["star"]).fractions[0] == 1  # a word without a rival gets all pixels


def test_adjusting_equals_calls_and_configuration(scene, segmenter):
    render, maps = segmenter.adjustable(scene, WORDS), []
    for granularity in (0, 0.5, 0.9):
        called, rendered = segmenter(scene, WORDS, granularity=granularity), render(granularity)
        assert np.array_equal(called.label_map, rendered.label_map)
        assert np.array_equal(called.scores, rendered.scores)
        maps.append(called.label_map)
    opts = {"MODEL.RENDERING.GRANULARITY": 0.5, "MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR": "none"}
    configured = Segmenter.from_config(TOY, opts=opts, device="cpu")
    assert np.array_equal(configured(scene, WORDS).label_map, maps[1])
    covered = [(labels >= 0).mean() for labels in maps]
    assert covered[0] >= covered[1] >= covered[2] and covered[0] > covered[2]  # fewer masks cover less
    assert not np.array_equal(segmenter(scene, WORDS).label_map, maps[1])  # the model's own rendering is a sum


@pytest.mark.parametrize("make", [make_tiny_model, make_tiny_scan])
def test_every_system_takes_it(make, tmp_path):
    config, weights = make(tmp_path)
    image = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(0))
    model = load_model(load_cfg(config, ["MODEL.WEIGHTS", weights, "MODEL.RENDERING.GRANULARITY", 0.3])).eval()
    request = {"image": image, "class_names": ["cat"], "outputs": ("sem_seg", "scored_masks")}
    with torch.no_grad():
        result = model([request])[0]
        again = model([request | {"granularity": None, "add_others": True}])[0]
    assert len(result["sem_seg"]) == 2  # "others"
    scores, masks, words, bias = result["scored_masks"]
    assert words.names == ("cat", "others") and bias is None
    expected = ClassWinner(model.mask_threshold, granularity=0.3)(scores, masks, words, (64, 64), ("sem_seg",))
    assert torch.equal(result["sem_seg"], expected["sem_seg"])
    assert not torch.equal(result["sem_seg"], again["sem_seg"])


@pytest.mark.parametrize("granularity", [-0.1, 1.5, "0.5", "precise", float("nan")])
def test_bad_values(granularity, scene, segmenter):
    with pytest.raises(OvsegError, match=r"granularity is .*: give a number from 0 \(coarse\) to 1"):
        segmenter(scene, WORDS, granularity=granularity)
    if granularity != "0.5":
        with pytest.raises(OvsegError, match=r"MODEL\.RENDERING\.GRANULARITY"):
            load_cfg(TOY, ["MODEL.RENDERING.GRANULARITY", granularity])


def test_models_without_masks_refuse_it(scene):
    class Scorer(Part):
        def forward(self, views, words):
            return [image[:1].expand(len(of), -1, -1) for image, of in zip(views.images, words, strict=True)]

    model = PerPixel(scorer=Scorer()).eval()
    segmenter = Segmenter(model, min_size=0, max_size=1000)
    assert segmenter(scene, WORDS).found
    for call in (lambda: segmenter(scene, WORDS, granularity=0.5), lambda: segmenter.adjustable(scene, WORDS)):
        with pytest.raises(OvsegError, match="granularity selects masks, and this model has none"):
            call()


def test_a_plain_text_names_the_rendering(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("MODEL: {META_ARCHITECTURE: ProposeAndName, RENDERING: class_winner}\nVERSION: 2\n")
    assert load_cfg(file).MODEL.RENDERING.NAME == "class_winner"
    assert load_cfg(file, ["MODEL.RENDERING", "mask_sum"]).MODEL.RENDERING.NAME == "mask_sum"
    assert load_cfg(file, {"MODEL": {"RENDERING": "mask_sum"}}).MODEL.RENDERING.NAME == "mask_sum"
    assert load_cfg(file, ["MODEL.RENDERING.GRANULARITY", "none"]).MODEL.RENDERING.GRANULARITY is None
    with pytest.raises(OvsegError, match=r"did you mean MODEL\.RENDERING\.NAME"):
        load_cfg(file, ["MODEL.RENDERING.NAMES", "mask_sum"])


def test_the_command_line(tmp_path, capsys):
    import demo

    config, weights = make_tiny_model(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    command = ["--config-file", str(config), "--class-names", "cat", "dog", "--input", str(tmp_path / "a.png")]
    command += ["--device", "cpu", "--output", str(tmp_path / "out.png"), "MODEL.WEIGHTS", str(weights)]
    assert demo.main([*command, "--granularity", "0.4"]) == 0
    expected = Segmenter.from_config(config, weights, device="cpu")(pixels, ["cat", "dog"], granularity=0.4)
    labels = np.asarray(Image.open(tmp_path / "out_labels.png")).astype(int)
    assert np.array_equal(np.where(labels == 255, -1, labels), expected.label_map)
    for value in ("1.1", "fine", "nan"):
        with pytest.raises(SystemExit):
            demo.main([*command, "--granularity", value])
        assert "is not a number from 0 (coarse) to 1 (precise)" in capsys.readouterr().err
