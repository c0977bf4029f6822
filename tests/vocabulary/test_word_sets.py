"""Union, subset, renaming, texts and versions of vocabularies."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovseg.errors import OvsegError
from ovseg.vocabulary import Vocabulary
from ovseg.vocabulary.reading import clean_text

_LETTERS = st.characters(exclude_categories=("Cs", "Cc", "Cf", "Zl", "Zp"), exclude_characters=",;")
_TEXTS = st.text(_LETTERS, min_size=1, max_size=6).filter(lambda text: text == clean_text(text))


@st.composite
def vocabularies(draw, max_size: int = 6) -> Vocabulary:
    """Words that have their name for first synonym, some of them background."""
    names = draw(st.lists(_TEXTS, min_size=1, max_size=max_size, unique_by=str.casefold))
    entries = [(name, *draw(st.lists(_TEXTS, max_size=2))) for name in names]
    foreground = draw(st.integers(1, len(entries)))
    return Vocabulary.from_words(entries[:foreground], background=entries[foreground:])


@settings(deadline=None)
@given(vocabularies())
def test_a_text_of_words_gives_the_words_back(vocabulary):
    read = Vocabulary.from_string("; ".join(", ".join(texts) for texts in vocabulary.synonyms))
    assert (read.names, read.synonyms) == (vocabulary.names, vocabulary.synonyms)


@settings(deadline=None)
@given(vocabularies(), vocabularies())
def test_union_holds_both(one, other):
    both = one.union(other)
    folded = {name.casefold() for name in both.names}
    assert folded == {name.casefold() for name in one.names + other.names}
    for part in (one, other):
        for name, texts in zip(part.names, part.synonyms, strict=True):
            index = [known.casefold() for known in both.names].index(name.casefold())
            assert set(texts) <= set(both.synonyms[index])
    looked_for = {name.casefold() for name in one.foreground + other.foreground}
    assert {name.casefold() for name in both.foreground} == looked_for
    assert one.union(one) == one
    assert len(both) <= len(one) + len(other)


@settings(deadline=None)
@given(vocabularies(), st.data())
def test_subset_keeps_words_and_background(vocabulary, data):
    names = data.draw(st.lists(st.sampled_from(vocabulary.names), min_size=1, unique=True))
    part = vocabulary.subset(names)
    assert part.foreground == tuple(names)
    assert set(part.background) == set(vocabulary.background) - set(names)
    texts = dict(zip(vocabulary.names, vocabulary.synonyms, strict=True))
    assert part.synonyms == tuple(texts[name] for name in part.names)
    assert vocabulary.subset(vocabulary.foreground) == vocabulary


@settings(deadline=None)
@given(vocabularies(), vocabularies())
def test_versions_differ_where_vocabularies_do(one, other):
    assert (one == other) == (one.version == other.version)
    assert hash(one) == hash(pickle.loads(pickle.dumps(one)))


def test_the_version_never_changes():
    """Results and caches of other days, machines and versions of Python hold it."""
    words = [("person", "child"), "dog", "пёс"]
    assert Vocabulary.from_words(words, origin="elsewhere").version == "66a4f2f90e7d"


def test_the_version_tells_order_texts_background_and_prompts():
    plain = Vocabulary.from_words(["cat", "dog"])
    others = [
        Vocabulary.from_words(["dog", "cat"]),
        Vocabulary.from_words([("cat", "kitty"), "dog"]),
        Vocabulary.from_words(["cat"], background=["dog"]),
        plain.with_templates("vild"),
        plain.rename({"cat": "tom"}),
        Vocabulary.from_words(["catdog"]),
    ]
    assert len({plain.version, *(other.version for other in others)}) == 7
    assert Vocabulary.from_words([" cat", "dog"]) == plain == Vocabulary.from_string("cat; dog;")


def test_texts_of_words():
    vocabulary = Vocabulary.from_string(" person, child ;dog; red star; ")
    assert vocabulary.class_names == [("person", "child"), "dog", "red star"]
    assert Vocabulary.from_string("cat").names == ("cat",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "word 1 in the text of words .* is blank"),
        ("cat;;dog", "word 2 in the text of words .* a semicolon too many"),
        (";cat", "word 1 .* a semicolon too many"),
        ("cat, ;dog", "word 1 .* a comma too many"),
        ("cat; CAT", "comes twice in the text of words"),
    ],
)
def test_bad_texts_are_refused(text, message):
    with pytest.raises(OvsegError, match=message):
        Vocabulary.from_string(text)


def test_any_form():
    vocabulary = Vocabulary.of(["cat", ("dog", "puppy")])
    assert Vocabulary.of(vocabulary) is vocabulary
    assert Vocabulary.of("cat; dog, puppy") == vocabulary
    with pytest.raises(OvsegError, match="single text 'cat, dog'"):
        Vocabulary.of("cat, dog")


def test_renaming_changes_the_legend_alone():
    vocabulary = Vocabulary.from_words(["cat", "dog"], background=["wall"])
    renamed = vocabulary.rename({"CAT": "Katze", "wall": "Wand"})
    assert renamed.names == ("Katze", "dog", "Wand") and renamed.background == ("Wand",)
    assert renamed.synonyms == vocabulary.synonyms
    with pytest.raises(OvsegError, match="no word 'kat': did you mean 'cat'"):
        vocabulary.rename({"kat": "Katze"})
    with pytest.raises(OvsegError, match="'dog' comes twice"):
        vocabulary.rename({"cat": "dog"})


def test_union_and_subset_refuse_what_is_unclear():
    vocabulary = Vocabulary.from_words(["cat", "dog"])
    with pytest.raises(OvsegError, match="no word 'dgo': did you mean 'dog'"):
        vocabulary.subset(["dgo"])
    with pytest.raises(OvsegError, match="comes twice"):
        vocabulary.subset(["cat", "Cat"])
    with pytest.raises(OvsegError, match="give at least one word"):
        vocabulary.subset([])
    with pytest.raises(OvsegError, match="different templates"):
        vocabulary.with_templates("vild").union(vocabulary.with_templates(["{}"]))
    assert vocabulary.with_templates("vild").union(vocabulary).templates == vocabulary.with_templates("vild").templates


def test_background_words_come_last_and_not_alone():
    with pytest.raises(OvsegError, match="must be its last words"):
        Vocabulary(("cat", "wall"), (("cat",), ("wall",)), background=("cat",))
    with pytest.raises(OvsegError, match="background words only"):
        Vocabulary(("wall",), (("wall",),), background=("wall",))
    with pytest.raises(OvsegError, match="word 2 in the list of words is blank"):
        Vocabulary.from_words(["cat"], background=[" "])


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        (["a photo"], "exactly once"),
        (["{} in {place}"], "no other braces"),
        ([], "at least one template"),
        (7, "must be a list"),
        (np.float32(1), "must be a list"),
        ([7, "a {}."], "is 7, which is not a text"),
        (["\ud800 {}"], "not valid UTF-8"),
        ("imagent", "choose one of"),
    ],
)
def test_bad_prompts_are_refused(templates, message):
    with pytest.raises(OvsegError, match=message):
        Vocabulary.from_words(["cat"]).with_templates(templates)


def test_variants_of_label_sets():
    names = Vocabulary.from_label_set("pascal_voc_20b", "names")
    assert len(names) == 59 and names.foreground[-1] == "tvmonitor" and names.background[0] == "bag"
    assert all(texts == (name,) for name, texts in zip(names.names, names.synonyms, strict=True))
    assert len(Vocabulary.from_label_set("pascal_voc_20b")) == 21
    first = Vocabulary.from_label_set("pascal_voc_21", "names").synonyms[0]
    assert first == ("background", *names.background)
    with pytest.raises(OvsegError, match="no variant 'plain' of label set ade20k_150: choose names or synonyms"):
        Vocabulary.from_label_set("ade20k_150", "plain")
    ade = Vocabulary.from_label_set("ade20k_150", "names")
    assert "window" in ade.names and ("road, route",) in ade.synonyms
    assert Vocabulary.from_label_set("ade20k_150").names_only() == ade
