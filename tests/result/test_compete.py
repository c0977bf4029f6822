"""Masks of other programs that compete for the pixels of one segmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

import ovseg
from ovseg.errors import OvsegError
from ovseg.vocabulary import Vocabulary

LEFT, RIGHT, TOP = np.zeros((3, 4, 6), bool)
LEFT[:, :4], RIGHT[:, 2:], TOP[:1] = True, True, True


def test_the_highest_score_gets_the_pixel():
    found = {"cat": ([LEFT, TOP], [0.6, 0.9]), "dog": ([RIGHT], [0.7])}
    result = ovseg.compete(found, ["dog", "cat", "sofa"])
    expected = np.array([[1] * 6, *[[1, 1, 0, 0, 0, 0]] * 3])
    assert np.array_equal(result.label_map, expected)
    assert result.names == ("dog", "cat", "sofa")
    assert result.scores == pytest.approx([0.7, (6 * 0.9 + 6 * 0.6) / 12, 0])
    assert result.image.shape == (4, 6, 3)
    turned = ovseg.compete(dict(reversed(found.items())), ["dog", "cat", "sofa"])
    assert np.array_equal(turned.label_map, expected)  # the order of the words found does not matter


def test_ties_go_to_the_first_word_of_the_vocabulary():
    for words in (["cat", "dog"], ["dog", "cat"]):
        result = ovseg.compete({"dog": (RIGHT[None], [0.5]), "cat": (RIGHT[None], [0.5])}, words)
        assert result.found == (0,)


def test_synonyms_background_and_what_is_unlabelled():
    words = Vocabulary.from_words([("cat", "kitten"), "sofa"], background=["wall"])
    found = {"KITTEN": (TOP, 0.4), "cat": (LEFT, 0.3), "wall": ([RIGHT], [0.35]), "sofa": ([], [])}
    result = ovseg.compete(found, words)
    expected = np.array([[0] * 6, *[[0, 0, -1, -1, -1, -1]] * 3])
    assert np.array_equal(result.label_map, expected)
    assert result.background == ("wall",) and result.names == ("cat", "sofa")
    higher = ovseg.compete(found, words, threshold=0.3)  # 0.3 does not exceed it
    assert (higher.label_map[0] == 0).all() and (higher.label_map[1:] == -1).all()
    assert (ovseg.compete(found, words, threshold=0.4).label_map == -1).all()
    assert (ovseg.compete({"sofa": (LEFT, [0.5])}, words).label_map[:, 4:] == -1).all()  # no mask


def test_soft_masks_count_by_their_probability():
    soft = np.full((1, 4, 6), 0.6, np.float32)
    soft[..., 3:] = 0.4
    result = ovseg.compete({"cat": (soft, [0.5]), "dog": (RIGHT, 0.29)}, ["cat", "dog"])
    assert (result.label_map[:, :3] == 0).all() and (result.label_map[:, 3:] == 1).all()  # 0.3 > 0.29; 0.4 is outside
    wider = ovseg.compete({"cat": (soft, [0.5])}, ["cat"], mask_threshold=0.3)
    assert (wider.label_map == 0).all() and wider.scores[0] == pytest.approx(0.25)


def test_all_forms_of_masks_are_equal():
    codes = [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in (LEFT, TOP)]
    forms = [
        (np.stack([LEFT, TOP]), np.array([0.6, 0.9])),
        (np.stack([LEFT, TOP]).astype(np.uint8), [0.6, 0.9]),
        (torch.from_numpy(np.stack([LEFT, TOP])).float(), torch.tensor([0.6, 0.9], requires_grad=True)),
        (torch.from_numpy(np.stack([LEFT, TOP]))[:, None], [0.6, 0.9]),
        ([torch.from_numpy(LEFT), TOP], (0.6, 0.9)),
        (codes, [0.6, 0.9]),
    ]
    maps = [ovseg.compete({"cat": form, "dog": (RIGHT, 0.7)}, ["cat", "dog"]).label_map for form in forms]
    assert all(np.array_equal(maps[0], other) for other in maps)


def test_with_the_image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    result = ovseg.compete({"cat": (LEFT, 0.5)}, ["cat"], pixels)
    assert np.array_equal(result.image, pixels)
    assert all(file.is_file() for file in result.save(tmp_path / "out.png"))
    assert (ovseg.compete({}, ["cat"], pixels).label_map == -1).all()


@pytest.mark.parametrize(
    ("found", "options", "message"),
    [
        ({"bird": (LEFT, 0.5)}, {}, "'bird' is no word or synonym of the vocabulary"),
        ({"cat": ([LEFT], [0.5, 0.5])}, {}, r"'cat' has masks of the shape \[1, 4, 6\] and scores of the shape \[2\]"),
        ({"cat": (LEFT[0], 0.5)}, {}, "'cat' has masks of the shape"),
        ({"cat": (np.zeros((1, 0, 5)), [0.5])}, {}, "'cat' has masks of the shape"),
        ({"cat": ([], 0.5)}, {}, "no mask, and image is None"),
        ({"cat": LEFT}, {}, r"entry of 'cat' .* is a ndarray: give \(masks, scores\)"),
        ({"cat": ([LEFT, LEFT[:3]], 0.5)}, {}, "masks of 'cat' cannot be read"),
        ({"cat": ([{"size": [4, 6], "counts": [3]}], 0.5)}, {}, "masks of 'cat' cannot be read"),
        ({"cat": (LEFT, 0.5), "dog": (LEFT[:3], 0.5)}, {}, "masks of 'dog' have 6x3 pixels, but other masks have 6x4"),
        ({"cat": (LEFT, 0.5)}, {"image": np.zeros((8, 12, 3), np.uint8)}, "have 6x4 pixels, but the image has 12x8"),
        ({"cat": (LEFT * 3.5, 0.5)}, {}, "masks of 'cat' are not all from 0 to 1: give bool or probabilities"),
        ({"cat": (LEFT, float("nan"))}, {}, "scores of 'cat' are not all from 0 to 1"),
        ({"cat": (LEFT, -1)}, {}, "scores of 'cat' are not all from 0 to 1"),
        ({"cat": (LEFT, 0.5)}, {"threshold": 50}, "threshold is 50: give a number from 0 to 1"),
        ({"cat": (LEFT, 0.5)}, {"mask_threshold": "0"}, "mask_threshold is '0'"),
        ({"cat": ([], [])}, {}, "has no mask, and image is None: give the image"),
        ([LEFT], {}, "masks_per_word is a list: give"),
    ],
)
def test_errors(found, options, message):
    with pytest.raises(OvsegError, match=message):
        ovseg.compete(found, ["cat", "dog"], **options)


def test_the_example_of_the_documentation(capsys):
    page = (Path(__file__).parents[2] / "docs" / "segment_anything.md").read_text(encoding="utf-8")
    example = page.rpartition("```python\n")[2].partition("```")[0]
    exec(example, {})
    assert capsys.readouterr().out.strip() == example.rpartition("# ")[2].strip()
