"""The shipped weights of the toy OVSegmentor segment scenes by what captions taught it."""

from __future__ import annotations

import numpy as np

from ovseg import Segmenter
from ovseg.toy import make_scene
from ovseg.toy.classes import CLASS_NAMES, IGNORE_LABEL, SPLITS
from tests.scripts import REPO


def test_scenes_of_val():
    segmenter = Segmenter.from_config(REPO / "configs/toy/ovsegmentor_toy.yaml")
    first, correct, labelled = SPLITS["val"][0], 0, 0
    for seed in range(first, first + 4):
        scene = make_scene(seed)
        found = segmenter(scene.image, list(CLASS_NAMES)).label_map
        known = scene.labels != IGNORE_LABEL
        correct, labelled = correct + int((found == scene.labels)[known].sum()), labelled + int(known.sum())
    assert np.divide(correct, labelled) > 0.35
