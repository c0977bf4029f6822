"""What `make demo` and the README show: the shipped toy weights, with the settings of the toy configurations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ovseg import Segmenter
from ovseg.naming import QueryEmbedding
from ovseg.toy import BASE_CLASSES, CLASS_NAMES, make_scene

_ROOT = Path(__file__).parents[1]
_SEEDS = range(1_000_000, 1_000_012)  # of toy_sem_seg_val


@pytest.fixture(params=["ovseg", "scan", "lseg_plus", "openseg"])
def segmenter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Segmenter:
    monkeypatch.chdir(_ROOT)  # the configuration names its files from here
    return Segmenter.from_config(f"configs/toy/{request.param}_toy.yaml", device="cpu")


def test_shipped_weights_name_most_pixels_of_base_words_right(segmenter):
    right = total = 0
    for seed in _SEEDS:
        scene = make_scene(seed)
        labels = segmenter(scene.image, CLASS_NAMES).label_map
        base = scene.labels < len(BASE_CLASSES)
        right += int((labels == scene.labels)[base].sum())
        total += int(base.sum())
    namers = getattr(segmenter.model, "namers", ())  # masks with classes from labels do better than pixels or captions
    assert right / total > (0.8 if any(isinstance(namer, QueryEmbedding) for namer in namers) else 0.7)


def test_words_that_are_not_there_get_little(segmenter):
    scene = make_scene(_SEEDS[0])
    there = [CLASS_NAMES[label] for label in np.unique(scene.labels)]
    absent = [name for name in BASE_CLASSES if name not in there][:5]
    segmentation = segmenter(scene.image, there + absent)
    assert sum(segmentation.fractions[len(there) :]) < 0.1
