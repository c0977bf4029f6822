"""Lists of classes that are more, or other, than one name a line."""

from __future__ import annotations

import pytest

from ovseg.errors import OvsegError
from ovseg.vocabulary import Vocabulary


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 background\n1 crack\n", r"words\.txt numbers its words \('0 background'\)"),
        ("1: background\n0: crack\n2: sky\n", r"words\.txt numbers its words"),  # in no order
        ("1\tperson\n2\tcar\n", "numbers its words"),
        ("7,road\n24,person\n", "numbers its words"),
        ("1. person\n2. car\n", "numbers its words"),
        ("1) person\n2) car\n", "numbers its words"),
        ("id,name\n1,person\n2,car\n", "numbers its words"),
        ("(0) background\n(1) crack\n", "numbers its words"),
        ("background 0\ncrack 1\n", "numbers its words"),
        ("background,1\ncrack,2\n", "numbers its words"),
        ("name,r,g,b\nroad,128,64,128\nsky,70,130,180\n", r"numbers its words \('road,128,64,128'\)"),
        ("road 128 64 128\nsky 70 130 180\n", "numbers its words"),
        ("road #804080\nsky #4682b4\n", "numbers its words"),
        ("- road\n- sky\n", r"has - before each word \('- road'\): write the names only"),
        ('"road"\n"sky"\n', 'has " before each word'),
        ("names:\n  0: person\n  1: car\n", "numbers its words"),
        ("# classes\n\n0 background\n\n1 crack\n", "numbers its words"),
        ("1:sky,clouds\n2:tree,,trees\n", "line 2 of .* has an empty name"),
        ("0\n1\n2\n", "has numbers for names or synonyms"),
        ("background: 0\ncrack: 1\n", "has numbers for names or synonyms"),
        ("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncrack:128,0,0::\n", "has numbers for names or synonyms"),
        ('["background", "crack"]', "is JSON, YAML or a label map, not a list of words"),
        ('{"0": "background"}', "is JSON, YAML or a label map"),
        ("item {\n  id: 1\n  name: 'person'\n}\n", "is JSON, YAML or a label map"),
    ],
)
def test_numbers_are_no_names(tmp_path, text, message):
    path = tmp_path / "words.txt"
    path.write_text(text)
    with pytest.raises(OvsegError, match=message):
        Vocabulary.from_file(path)


def test_lists_of_classes_with_ids_and_names(tmp_path):
    """OpenSeg's published format: id:name1,name2, of which the first id is that of pixels without a class."""
    path = tmp_path / "ade20k.txt"
    path.write_text("0:invalid_class_id\n1:wall,walls, brick wall\n# a note\n\n7 : sky\n12:fan,ceiling fan,fan\n")
    words = Vocabulary.from_file(path)
    assert words.names == ("wall", "sky", "fan")
    assert words.synonyms == (("wall", "walls", "brick wall"), ("sky",), ("fan", "ceiling fan"))
    path.write_text("1:crane,bird\n2:crane,machine\n")
    with pytest.raises(OvsegError, match="'crane' comes twice"):
        Vocabulary.from_file(path)
    assert Vocabulary.from_class_list(path).synonyms == (("crane", "bird"), ("crane", "machine"))
    path.write_text("7: up\n")  # one line alone is a name with a synonym
    assert Vocabulary.from_file(path).synonyms == (("7", "up"),)


@pytest.mark.parametrize(("suffix", "what"), [(".json", "JSON"), (".yaml", "YAML"), (".pbtxt", "a label map")])
def test_other_formats_are_called_by_their_names(tmp_path, suffix, what):
    path = (tmp_path / "words").with_suffix(suffix)
    path.write_text("person\ncar\n")
    with pytest.raises(OvsegError, match=rf"words\{suffix} is {what}, not a list of words"):
        Vocabulary.from_file(path)


def test_numbered_words_of_a_list_are_refused_too():
    with pytest.raises(OvsegError, match="numbers its words"):
        Vocabulary.from_words(["0: background", "1: crack"])
    with pytest.raises(OvsegError, match=r"list of words has numbers for names or synonyms \('0'\)"):
        Vocabulary.from_words(["0", "1"])


@pytest.mark.parametrize(
    "text",
    [
        "1 euro coin\n2 euro coin\n",
        "sky\n3 wheeler\n",
        "2 doors\n2 windows\n",
        "747\nA380\n",
        "7 up\n",
        "Boeing 737\nAirbus 320\n",
        "zone 1\nzone 2\n",
    ],
)
def test_names_with_numbers_in_them_are_names(tmp_path, text):
    path = tmp_path / "words.txt"
    path.write_text(text)
    assert Vocabulary.from_file(path).names == tuple(text.splitlines())


def test_invisible_characters_and_normal_forms_make_no_other_word(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\ufeffsky\u200b\nGru\u0308n\n", encoding="utf-8")
    assert Vocabulary.from_file(path).names == ("sky", "Gr\u00fcn")
    assert Vocabulary.from_words(["\u200bsky", "Gru\u0308n"]).names == ("sky", "Gr\u00fcn")
    with pytest.raises(OvsegError, match="twice"):
        Vocabulary.from_words(["sky", "sky\ufeff"])
