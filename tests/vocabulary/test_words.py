from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ovseg.errors import OvsegError
from ovseg.vocabulary import Vocabulary


def write(folder, text, encoding="utf-8"):
    file = folder / "words.txt"
    file.write_bytes(text.encode(encoding))
    return file


def test_words_are_stripped_and_the_callers_list_is_left_alone():
    words = [" cat ", "remote control"]
    vocabulary = Vocabulary.from_words(words)
    assert vocabulary.names == ("cat", "remote control")
    assert vocabulary.class_names == ["cat", "remote control"]
    vocabulary.class_names.append("others")  # what the original did to its caller's list
    assert len(vocabulary) == 2 and words == [" cat ", "remote control"]


def test_synonyms_become_tuples_and_repeats_go():
    vocabulary = Vocabulary.from_words([("cat", "kitty", "cat"), "dog"])
    assert vocabulary.class_names == [("cat", "kitty"), "dog"]
    assert vocabulary.names == ("cat", "dog")


def test_is_immutable_and_hashable():
    vocabulary = Vocabulary.from_words(["cat"])
    assert hash(vocabulary) == hash(Vocabulary.from_words(["cat"]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        vocabulary.names = ()


@pytest.mark.parametrize("word", ["кошка", "猫", "piña colada", "naïve 🐈", "road, route", "นก"])
def test_any_script_is_a_word(word):
    assert Vocabulary.from_words([word]).names == (word,)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the list of words is empty: give at least one word"),
        (["cat", "  "], "word 2 in the list of words is blank"),
        ([("cat", "")], "word 1 in the list of words is blank"),
        ([()], "word 1 in the list of words is blank"),
        (["cat", "dog", "Cat "], r"'Cat' comes twice in the list of words \(words 1 and 3\)"),
        (["cat,", "dog,"], 'separate words by blanks, not by commas.*"cat" "dog"'),
        ([","], "with a comma at one end"),
        (["cat\x00"], r"control character U\+0000"),
        (["cat\ndog"], r"control character U\+000A"),
        (["cat\udc80"], "not valid UTF-8"),
        ("cat", "single text 'cat': give a list"),
        (["cat", 3], "word 2 in the list of words is 3, which is not a text"),
    ],
)
def test_bad_words_are_refused_with_a_sentence(words, message):
    with pytest.raises(OvsegError, match=message):
        Vocabulary.from_words(words)


class Series:
    """As a column of pandas: its elements in order, and ``tolist``."""

    ndim = 1

    def __init__(self, values):
        self.tolist = values.copy


class Frame:
    """As a table of pandas, which goes through the names of its columns."""

    ndim = 2

    def __iter__(self):
        return iter(["first", "second"])


@pytest.mark.parametrize(
    "words",
    [
        ("cat", "dog"),
        (word for word in ("cat", "dog")),
        {"cat": 1, "dog": 2}.keys(),
        np.array(["cat", "dog"]),
        np.array(["cat", "dog"], dtype=object),
        Series(["cat", "dog"]),
        ["cat\n", "\tdog\r\n"],
        ["\ufeffcat", "d\u200bog"],
    ],
)
def test_whatever_holds_words_in_an_order(words):
    vocabulary = Vocabulary.of(words)
    assert vocabulary == Vocabulary.of(["cat", "dog"])
    assert all(type(name) is str for name in vocabulary.names)


def test_rows_of_an_array_are_synonyms():
    assert Vocabulary.of(np.array([["cat", "kitty"], ["dog", "puppy"]])).synonyms == (
        ("cat", "kitty"),
        ("dog", "puppy"),
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (None, r"None \(NoneType\) is not a list of words: give a list, for example \['cat', 'dog'\]"),
        ({"cat": "kitty"}, r"\(dict\) is not a list of words: .* with synonyms \['cat', \['sofa', 'couch'\]\]"),
        ({"cat"}, r"\(set\) has no order"),
        (frozenset({"cat"}), r"\(frozenset\) has no order"),
        (b"cat", r"\(bytes\) is not a list"),
        (7, r"7 \(int\) is not a list"),
        (np.array("cat"), r"\(ndarray\) is not a list"),
        (Frame(), r"\(Frame\) is a table"),
        (np.array([1, 2]), "word 1 in the list of words is 1, which is not a text"),
        ([None], "word 1 in the list of words is None, which is not a text"),
        ([b"cat"], "is b'cat', which is not a text"),
        (["cat", {"dog"}], "word 2 in the list of words is {'dog'}, which is not a text"),
        ([[]], "word 1 in the list of words is blank"),
        ([[[]]], r"word 1 in the list of words is \[\], which is not a text"),
        (["\u200b"], "is blank"),
        (["\u200d\u200c"], "is blank"),
        (["cat\u2028dog"], r"control character U\+2028"),
        (["cat\tdog"], r"control character U\+0009"),
        (["caf\u00e9", "cafe\u0301"], r"comes twice in the list of words \(words 1 and 2\)"),
        ("x" * 100_000, "is the single text 'xxx.*: give a list"),
    ],
)
def test_what_is_no_list_of_words(words, message):
    with pytest.raises(OvsegError, match=message) as error:
        Vocabulary.of(words)
    assert len(str(error.value)) < 300


def test_letters_of_several_characters_are_one_word_however_they_are_written():
    vocabulary = Vocabulary.of(["cafe\u0301", "\U0001f468\u200d\U0001f469"])
    assert vocabulary.names == ("caf\u00e9", "\U0001f468\u200d\U0001f469")
    assert vocabulary.subset(["cafe\u0301"]).names == ("caf\u00e9",)


def test_more_background():
    vocabulary = Vocabulary.from_words(["cat"], background=["wall"]).with_background(["other", "background"])
    assert vocabulary.foreground == ("cat",) and vocabulary.background == ("wall", "other", "background")
    assert vocabulary.with_background([]) == vocabulary
    with pytest.raises(OvsegError, match="'cat' comes twice"):
        vocabulary.with_background(["cat"])


def test_file_with_synonyms_comments_and_windows_line_ends(tmp_path):
    text = "\ufeff# animals\r\ncat: kitty, kitten\r\n\r\n  dog  \r\nпёс:собака\r\n"
    vocabulary = Vocabulary.from_file(write(tmp_path, text))
    assert vocabulary.class_names == [("cat", "kitty", "kitten"), "dog", ("пёс", "собака")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "words.txt is empty"),
        ("# nothing\n\n", "words.txt is empty"),
        ("cat\n\nCAT\n", r"'CAT' comes twice in .*words.txt \(lines 1 and 3\)"),
        ("cat,\ndog,\n", "line 1 of .*words.txt ends in a comma"),
        (": kitty\n", "line 1 of .* has no name"),
        ("dog\ncat: kitty,,kitten\n", "line 2 of .* has an empty synonym"),
        ("dog\x07\n", r"line 1 of .* holds the control character U\+0007"),
    ],
)
def test_bad_files_are_refused_with_the_line(tmp_path, text, message):
    with pytest.raises(OvsegError, match=message):
        Vocabulary.from_file(write(tmp_path, text))


def test_files_that_are_no_lists(tmp_path):
    with pytest.raises(OvsegError, match=r"there is no vocabulary file .*absent\.txt"):
        Vocabulary.from_file(tmp_path / "absent.txt")
    with pytest.raises(OvsegError, match="is a folder"):
        Vocabulary.from_file(tmp_path)
    with pytest.raises(OvsegError, match="is not UTF-8 text"):
        Vocabulary.from_file(write(tmp_path, "né", encoding="latin-1"))
    with pytest.raises(OvsegError, match="is not a regular file"):
        Vocabulary.from_file("/dev/zero")
    with pytest.raises(OvsegError, match="too long"):
        Vocabulary.from_file(tmp_path / ("x" * 300))
    for name in ("a\nb", "a\0b", "\ud800"):
        with pytest.raises(OvsegError, match="vocabulary file") as caught:
            Vocabulary.from_file(name)
        assert len(str(caught.value).splitlines()) == 1


def test_label_sets_with_and_without_synonyms():
    with_synonyms = Vocabulary.from_label_set("pascal_voc_20")
    assert with_synonyms.class_names[11] == ("dog", "dogs", "puppy", "puppies")
    assert Vocabulary.from_label_set("pascal_voc_20", variant="names").class_names[11] == "dog"
    with pytest.raises(OvsegError, match=r"did you mean .*pascal_voc_20"):
        Vocabulary.from_label_set("pascal_voc_2")
