"""Colours of the classes of data sets."""

from __future__ import annotations

import numpy as np
import pytest

from ovseg.result.palettes import class_palette, voc_palette, word_palette
from ovseg.vocabulary import label_set

SETS = ("ovsegmentor_voc_21", "ovsegmentor_context_60", "coco_object_80", "coco_stuff_172", "ovsegmentor_ade20k_150")


def test_voc_palette():
    assert voc_palette()[[0, 1, 2, 3, 8, 20, 255]].tolist() == [
        *([0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [64, 0, 0], [0, 64, 128], [224, 224, 192]),
    ]


@pytest.mark.parametrize("name", SETS)
def test_every_class_has_a_colour_of_its_own(name):
    names = [other for other in label_set(name).registry_names if other != "background"]
    with_background = class_palette(name, len(names) + 1, background=True)
    alone = class_palette(name, len(names), background=False)
    assert with_background[0].tolist() == [0, 0, 0] and alone.any(axis=1).all()
    assert np.array_equal(with_background[1:], alone)  # black in front moves no colour
    assert len(np.unique(with_background, axis=0)) == len(names) + 1


def test_published_colours():
    voc, context, coco, stuff, ade = (class_palette(name, 200, background=True) for name in SETS)
    assert np.array_equal(voc, voc_palette()[:200])
    assert ade[[1, 2, 7, 150]].tolist() == [[120, 120, 120], [180, 120, 120], [140, 140, 140], [92, 0, 255]]
    assert context[[1, 59]].tolist() == ade[[2, 60]].tolist()
    assert coco[[1, 3, 80]].tolist() == stuff[[1, 3, 80]].tolist() == [[0, 192, 64], [0, 64, 96], [192, 160, 0]]
    assert coco[2].tolist() != coco[1].tolist()  # the published palette has the colour of class 1 again
    assert ade[49].tolist() != ade[7].tolist()  # and ADE20K's that of road for skyscraper


def test_other_classes():
    assert np.array_equal(class_palette(None, 256, background=True), voc_palette())
    assert class_palette("ade20k_847", 847, background=False).shape == (847, 3)
    assert class_palette(None, 1, background=True).tolist() == word_palette(1, background=True).tolist() == [[0, 0, 0]]
