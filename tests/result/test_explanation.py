from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import demo
from ovseg import Segmenter
from ovseg.errors import OvsegError
from ovseg.meta_arch.mask2former import ClassLogits
from ovseg.meta_arch.propose_and_name import explain
from ovseg.naming import GeometricMean, MaskedCrops, Scores
from ovseg.result.explanation import Explanation, MaskScores
from tests.tiny_model import make_tiny_model

WORDS = ["cat", "dog", "a [bold]sofa"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def scores():
    own = np.array([[0.2, 0.5, 0.1], [0.9, 0.05, 0.01]], dtype=np.float32)
    clip = np.array([[0.1, 0.2, 0.7], [np.nan] * 3], dtype=np.float32)
    fused = np.array([[0.1, 0.3, 0.25], [0.9, 0.05, 0.01]], dtype=np.float32)
    boxes = np.array([[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]], dtype=np.float32)
    return MaskScores(tuple(WORDS), own, clip, fused, np.array([0.02, 0.9], dtype=np.float32), boxes)


def test_masks_by_area_and_words_by_fused_score(scores):
    large, small = Explanation.of(scores, height=50, width=200, top_k=2)
    assert (large.area, large.box, [word.word for word in large.words]) == (9000, (0, 0, 200, 50), ["cat", "dog"])
    assert (small.area, small.box) == (200, (20, 10, 60, 20))
    assert [word.word for word in small.words] == ["dog", "a [bold]sofa"]
    assert small.words[1].clip == pytest.approx(0.7) and large.words[0].clip is None
    assert small.no_object == pytest.approx(0.2)


def test_it_prints_as_a_table(scores):
    text = str(Explanation.of(scores, 50, 200, 3))
    assert "a [bold]sofa" in text and "0.700" in text and "20,10,60,20" in text
    assert len(text.splitlines()) == 3 + 3 + 1 + 3 + 1  # head, three words for each of two masks, a line, the foot


def test_json_is_strict(scores):
    first = json.loads(json.dumps(Explanation.of(scores, 50, 200, 1).to_json(), allow_nan=False))[0]
    assert first["words"] == [{"word": "cat", "own": pytest.approx(0.9), "clip": None, "fused": pytest.approx(0.9)}]


def test_scores_boxes_and_areas_of_the_valid_masks():
    masks = torch.full((3, 10, 20), 0.2)
    masks[0, 2:5, 4:10] = 0.9
    masks[2, :, 19] = 0.6
    own, clip = torch.rand(3, 2), torch.rand(2, 2)
    namers = (ClassLogits(2), MaskedCrops(None))
    scores = [Scores(own), Scores(clip, torch.tensor([True, False, True]))]
    fused = GeometricMean(0.6)(scores)
    said = explain(namers, masks, scores, fused, 0.5)
    assert said["boxes"].tolist() == [pytest.approx([0.2, 0.2, 0.5, 0.5]), pytest.approx([0.95, 0, 1, 1])]
    assert said["fractions"].tolist() == pytest.approx([18 / 200, 10 / 200])
    assert torch.equal(said["own"], own[[0, 2]]) and torch.equal(said["clip"], clip)
    torch.testing.assert_close(said["fused"], said["own"] ** 0.4 * clip**0.6)
    unasked = explain(namers[:1], masks, scores[:1], own, 0.5)
    assert torch.equal(unasked["own"], own[[0, 2]]) and unasked["clip"].isnan().all()
    unseen = Scores(clip[:0], torch.zeros(3, dtype=torch.bool))
    nothing = explain(namers, masks * 0.5, [Scores(own), unseen], fused, 0.5)
    assert nothing["boxes"].shape == (0, 4) and nothing["fused"].shape == (0, 2)


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        ([], WORDS),
        (["MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE", "False"], WORDS),
        (["MODEL.META_ARCHITECTURE", "OVSegDEMO"], WORDS[:1]),  # "others" is the second
    ],
)
def test_a_model_explains_itself_when_asked(tiny, opts, words):
    config, weights = tiny
    opts = ["MODEL.CLIP_ADAPTER.TEXT_TEMPLATES", "predefined", "MODEL.CLIP_ADAPTER.MASK_THR", "0.1", *opts]
    segmenter = Segmenter.from_config(config, weights, opts)
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    result = segmenter(image, words, explain=True)
    explanation = result.explain(top_k=2)
    assert len(explanation) == 6
    assert all(len(mask.words) == 2 for mask in explanation)
    assert all(mask.box[2] <= 60 and mask.box[3] <= 40 for mask in explanation)
    assert (explanation[0].words[0].clip is None) == ("False" in opts)
    assert "explanation" in result.to_json()
    plain = segmenter(image, words)
    assert np.array_equal(plain.label_map, result.label_map)
    with pytest.raises(OvsegError, match=r"without explanations.*explain=True"):
        plain.explain()
    assert "explanation" not in plain.to_json()
    with pytest.raises(OvsegError, match="top_k must be at least 1"):
        result.explain(0)


def test_demo_prints_and_saves_it(tiny, tmp_path, capsys):
    config, weights = tiny
    from PIL import Image

    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    command = ["--config-file", str(config), "--class-names", "cat", "dog", "--input", str(tmp_path / "a.png")]
    opts = ["--opts", "MODEL.WEIGHTS", str(weights), "MODEL.CLIP_ADAPTER.MASK_THR", "0.1"]
    assert demo.main([*command, "--explain", "--output", str(tmp_path / "out"), *opts]) == 0
    written = json.loads((tmp_path / "out" / "a.json").read_text())
    assert {"area", "box", "no_object", "words"} <= written["explanation"][0].keys()
    assert "fused" in capsys.readouterr().out
