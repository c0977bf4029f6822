"""The photograph model as a user meets it: a small photograph, real words, one process."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

import demo
from ovseg.checkpoint.packaged import FILES, has_packaged
from ovseg.segmenter import Segmenter

COFFEE = Path(__file__).parent / "data" / "photo" / "coffee.jpg"  # scikit-image's, CC0, by Rachel Michetti
pytestmark = pytest.mark.skipif(not all(map(has_packaged, FILES)), reason="needs ovseg[photo,hed]")


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.from_config("photo")


def test_a_cup_on_a_table(segmenter):
    result = segmenter(COFFEE, ["cup", "dining table", "cat", "sky"])
    assert result.label_map.shape == (200, 300)
    shares = dict(zip(result.names, result.fractions, strict=True))
    assert shares["cup"] > 0.1 and shares["dining table"] > 0.35, shares  # the saucer is called either
    assert shares["cat"] + shares["sky"] < 0.1, shares
    assert result.names[result.label_map[60, 140]] == "cup"
    assert result.names[result.label_map[180, 15]] == "dining table"


def test_words_far_from_the_training_are_reported_once(segmenter, caplog):
    with caplog.at_level(logging.WARNING):
        segmenter.prepare(["cup", "oscilloscope"])
        segmenter.prepare(["oscilloscope", "cup"])
    said = [record.getMessage() for record in caplog.records if "trained on" in record.getMessage()]
    assert len(said) == 1 and said[0].endswith(": oscilloscope")
    assert segmenter.unfamiliar(["person", "sky", "table", "kitty", "guitar"]) == ["guitar"]


def test_the_same_after_other_words_scores_and_explanations(segmenter):
    result = segmenter(COFFEE, ["cup", "dining table"], explain=True)
    segmenter(COFFEE, ["wall"])
    assert np.array_equal(result.label_map, segmenter(COFFEE, ["cup", "dining table"]).label_map)
    assert 0 < max(result.scores) <= 1
    explained = result.explain().to_json()
    assert "NaN" not in json.dumps(explained) and explained[0]["words"][0]["own"] is None


def test_large_photographs_are_reduced(segmenter, monkeypatch):
    sizes = []
    monkeypatch.setattr(segmenter.model, "forward", lambda batch: sizes.append(batch[0]["image"].shape) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        segmenter(np.zeros((3024, 4032, 3), np.uint8), ["sky"])
    assert sizes == [(3, 480, 640)]


def test_the_demo_needs_no_configuration(tmp_path, capsys):
    arguments = ["--input", str(COFFEE), "--class-names", "cup", "dining table", "--output", str(tmp_path)]
    assert demo.main(arguments) == 0
    printed = capsys.readouterr()
    assert "knows 119 names of COCO" in printed.err and "cup" in printed.out
    assert (tmp_path / "coffee.png").is_file()
