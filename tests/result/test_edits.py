"""Corrections by hand: words of regions that are renamed or dropped."""

from __future__ import annotations

import numpy as np
import pytest

from ovseg.errors import OvsegError
from ovseg.result.edits import Edit, edited
from ovseg.result.segmentation import Segmentation


@pytest.fixture
def result() -> Segmentation:
    labels = np.array([[0, 0, 1, 1], [0, 0, 1, -1]], np.int32)
    scores = np.array([[0.2, 0.4, 0.5, 0.7], [0.6, 0.8, 0.9, 0.1]], np.float32)
    maps = Segmentation.from_maps(
        np.where(labels < 0, 9, labels), scores, ["cat", "sofa"], np.zeros((2, 4, 3), np.uint8)
    )
    assert np.array_equal(maps.label_map, labels)
    return maps


def test_rename_and_drop(result):
    part = np.zeros((2, 4), bool)
    part[:, 0] = True
    named = edited(result, [Edit.of("cat", "Kitten", part)])
    assert named.names == ("cat", "sofa", "Kitten")
    assert named.label_map.tolist() == [[2, 0, 1, 1], [2, 0, 1, -1]]
    assert np.allclose(named.scores, [0.6, 0.7, 0.4])
    merged = edited(result, [Edit.of("CAT", "sofa")])
    assert merged.names == result.names and merged.label_map.tolist() == [[1, 1, 1, 1], [1, 1, 1, -1]]
    dropped = edited(result, [Edit.of("cat", "kitten"), Edit.of("kitten", None, part), Edit.of("sofa", None)])
    assert dropped.label_map.tolist() == [[-1, 2, -1, -1], [-1, 2, -1, -1]]
    unlabelled = edited(result, [Edit.of(None, "wall", ~part)])
    assert unlabelled.label_map[1, 3] == 2 and (unlabelled.label_map == 2).sum() == 1
    assert result.label_map[0, 0] == 0  # the original is not changed


def test_nothing_to_do(result):
    assert edited(result, []) is result
    assert edited(result, [Edit.of("dog", None)]) is result


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a,"])
def test_bad_names(name):
    with pytest.raises(OvsegError, match="the new name"):
        Edit.of("cat", name)
