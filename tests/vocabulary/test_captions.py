from __future__ import annotations

import sys

import pytest

from ovseg.errors import OvsegError
from ovseg.vocabulary.nouns import get_extractor, names_one_of

TOY = "a photo of a large striped red star and a blue ring on sand and brick"


@pytest.mark.parametrize(
    ("form", "nouns"),
    [
        ("noun", ("star", "ring", "sand", "brick")),
        ("phrase", ("striped red star", "blue ring", "sand", "brick")),
        ("both", ("striped red star", "star", "blue ring", "ring", "sand", "brick")),
    ],
)
def test_forms(form, nouns):
    assert get_extractor(form=form).nouns(TOY) == nouns


@pytest.mark.parametrize(
    ("caption", "nouns"),
    [
        ("Two dogs are running across the green grass next to glasses of water.", "dog|green grass|glass|water"),
        ("A man riding a skateboard down a half pipe", "man|skateboard|pipe"),
        ("In this image we can see people, a bus and three buses parked on the top left side.", "person|bus"),
        ("a fire hydrant near a fire hydrant", "fire hydrant"),
        ("grass with a green cross on top", "grass|green cross"),  # the tagger says: cross, a verb
        ("the wood under a small dotted purple moon", "wood|dotted purple moon"),  # dotted, a participle
        ("a medium dotted red flower", "dotted red flower"),  # medium, a noun
        ("Sliced PIZZA with <PERSON> in the background", "sliced pizza"),
        ("books on shelves beside scissors", "book|shelf|scissors"),
        ("", ""),
        ("!!! 12 ... $5", ""),
        ("Ein Foto \U0001f600 \x00", None),  # anything goes, nothing breaks
    ],
)
def test_phrases(caption, nouns):
    found = get_extractor(form="phrase").nouns(caption)
    assert isinstance(found, tuple)
    if nouns is not None:
        assert "|".join(found) == nouns


def test_singulars_only_of_plurals():
    found = get_extractor().nouns("glass, grass and a lens by the bus; children with knives")
    assert found[:2] == ("glass", "grass") and "bus" in found
    assert found[-2:] == ("child", "knife")


def test_known_words_are_found_within_phrases_longest_first():
    extractor = get_extractor(known=("star", "red star", "Brick", "red", "lava"))
    assert extractor.nouns(TOY) == ("red star", "Brick")
    assert extractor.nouns("a blue ring") == ()


def test_names_one_of():
    words = frozenset({"red star", "table"})
    assert names_one_of("striped red star", words) and names_one_of("Table", words)
    assert not names_one_of("star", words) and not names_one_of("table cloth", words)


def test_bad_choices(monkeypatch):
    with pytest.raises(OvsegError, match="choose textblob, spacy:MODEL"):
        get_extractor("stanza")
    with pytest.raises(OvsegError, match="noun, phrase, both"):
        get_extractor(form="verbs")
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(OvsegError, match="pip install spacy"):
        get_extractor("spacy:en_core_web_sm")
    with pytest.raises(OvsegError, match="spacy is not a tagger without a model"):
        get_extractor("spacy:")


def test_spacy_is_used_when_it_is_there(monkeypatch):
    class Token:
        def __init__(self, text, tag, lemma):
            self.text, self.tag_, self.lemma_ = text, tag, lemma

    class Spacy:
        @staticmethod
        def load(name, exclude):
            if name != "small":
                raise OSError("no model")
            return lambda caption: [Token("red", "JJ", "red"), Token("mice", "NNS", "mouse")]

    monkeypatch.setitem(sys.modules, "spacy", Spacy)
    assert get_extractor("spacy:small", "phrase").nouns("red mice") == ("red mouse",)
    with pytest.raises(OvsegError, match="python -m spacy download big"):
        get_extractor("spacy:big")


def test_every_toy_word_is_found():
    from ovseg.toy import CLASS_NAMES, make_scene

    extractor = get_extractor(known=CLASS_NAMES)
    for seed in range(3):
        scene = make_scene(seed)
        there = {thing.name for thing in scene.things}
        assert there <= set(extractor.nouns(scene.captions[0]))


def test_stop_words_can_be_kept():
    extractor = get_extractor(form="phrase", stop_words=False)
    assert extractor.nouns("a photo of a large red star") == ("photo", "large red star")
    assert get_extractor(known=["red star"], stop_words=False).nouns("a large red star") == ("red star",)
