from __future__ import annotations

import numpy as np
import pytest

from ovseg.errors import OvsegError
from ovseg.grounding.words import drop_words, grounded_words

TAGGED = [
    *[("Two", "CD"), ("Dogs", "NNS"), ("are", "VBP"), ("running", "VBG"), ("on", "IN"), ("green", "JJ")],
    *[("grass", "NN"), ("dogs", "NNS"), (",", ","), ("3rd", "NN"), ("t-shirt", "NN"), ("Paris", "NNP"), ("", "NN")],
]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("noun", ("dogs", "grass", "paris")),
        ("noun+adj", ("dogs", "green", "grass", "paris")),
        ("noun+adj+verb", ("dogs", "are", "running", "green", "grass", "paris")),
    ],
)
def test_words_are_chosen_by_tag(kind, words):
    assert grounded_words(iter(TAGGED), kind) == words


def test_nouns_and_adjectives_by_default():
    assert grounded_words(TAGGED) == grounded_words(TAGGED, "noun+adj")
    assert grounded_words([]) == ()


def test_unknown_kind():
    with pytest.raises(OvsegError, match="'verb' is not a kind of words: choose one of noun, "):
        grounded_words(TAGGED, "verb")


def test_dropping_keeps_order_and_share():
    words = tuple(f"w{index}" for index in range(40))
    rng = np.random.default_rng(0)
    kept = [drop_words(words, 0.75, rng) for _ in range(200)]
    assert all(list(some) == sorted(some, key=words.index) for some in kept)
    assert np.mean([len(some) for some in kept]) == pytest.approx(30, abs=1)
    counts = [sum(word in some for some in kept) for word in words]
    assert min(counts) > 120 and max(counts) < 180  # no place is preferred


def test_dropping_is_repeatable():
    words = ("a", "b", "c", "d")
    assert [drop_words(words, 0.5, np.random.default_rng(seed)) for seed in range(9)] == [
        drop_words(words, 0.5, np.random.default_rng(seed)) for seed in range(9)
    ]


def test_one_word_at_random_is_left_and_none_stays_none():
    rng = np.random.default_rng(1)
    left = [drop_words(("a", "b", "c"), 0.0, rng) for _ in range(300)]
    assert {len(some) for some in left} == {1}
    assert min(left.count((word,)) for word in "abc") > 70
    assert drop_words((), 0.0, rng) == ()
    assert drop_words(("a", "b"), 1.0, rng) == ("a", "b")


def test_bad_probability():
    with pytest.raises(OvsegError, match=r"keep_prob is 1\.5: give a number from 0 to 1"):
        drop_words(("a",), 1.5, np.random.default_rng(0))
