"""The entities of captions against recorded cases of the original, and what our own settings change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ovseg.vocabulary.entities import (
    ENTITIES,
    FILTER_WORDS,
    PhraseFinder,
    answer_text,
    filter_entities,
    lemma_of,
    mask_entities,
)

CASES = json.loads((Path(__file__).parents[1] / "data/ovsegmentor_texts.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: case["caption"].strip())
def test_recorded_questions(case):
    question, entities = mask_entities(case["caption"])
    assert (question, sorted(entities)) == (case["question"], case["entities"])


@pytest.mark.parametrize("case", CASES["filter_cases"], ids=lambda case: case["caption"])
def test_recorded_filter(case):
    assert sorted(filter_entities(case["caption"])) == case["entities"]


def test_number_of_words():
    assert (len(set(FILTER_WORDS)), len(set(ENTITIES))) == (100, 73)
    assert ENTITIES[:3] == ("people", "car", "bus") and ENTITIES[-1] == "donut"


@pytest.mark.parametrize(
    ("caption", "question", "entities"),
    [  # words that begin or end with "s": section 7.3
        ("Sofa by a bus.", "[MASK] by a [MASK]", ["sofa", "bus"]),
        ("a sofa. a bus", "a ofa. a bu", []),
        ("Students with glasses.", "[MASK] with [MASK]", ["people", "glass"]),
        ("glasses and buses", "glasse and buse", []),
        ("Skis. and skis", "Skis. and ki", []),
        ("a dog!  a dog.", "a dog!  a [MASK]", ["dog"]),
        ("childrens. womens. mens.", "childrens. [MASK] [MASK]", ["people"]),  # "children" is no lemma of WordNet
    ],
)
def test_the_originals_strip(caption, question, entities):
    assert mask_entities(caption) == (question, entities)


def test_without_the_originals_strip_whole_words_are_read():
    caption = "the woman's sofa is near the students' bus, children by glasses"
    question = "the [MASK] [MASK] is near the [MASK] bus, [MASK] by [MASK]"
    assert mask_entities(caption, legacy=False) == (question, ["people", "sofa", "glass"])


def test_entities_are_in_the_order_of_the_caption_and_unique():
    assert mask_entities("men and a car near boys")[1] == ["people", "car"]
    assert filter_entities("car. A dog, a car, a cat") == ["car", "dog", "cat"]


@pytest.mark.parametrize(
    ("word", "lemma"),
    [("benches", "bench"), ("babies", "baby"), ("knives", "knife"), ("skis", "ski"), ("glass", "glass"), ("as", "as")],
)
def test_lemmas(word, lemma):
    assert lemma_of(word) == lemma


def test_answers_end_with_the_entities():
    assert answer_text(["dog", "car"], "a bad photo of the {}.") == "a bad photo of the dog and car"
    assert answer_text([], "itap of a {}.") == "itap of a "


def test_phrases_are_found_longest_first_and_in_the_plural():
    finder = PhraseFinder(["star", "red star", "grass"])
    question, entities = finder.mask("A striped Red star, two red stars on the grass's edge: starfish")
    assert question == "A striped [MASK], two [MASK] on the [MASK] edge: starfish"
    assert entities == finder.shared("red stars and grass") == ["red star", "grass"]
    assert PhraseFinder([]).mask("a star") == ("a star", [])
