"""Names as they are: brackets, other normal forms of Unicode, characters that nobody sees."""

from __future__ import annotations

import glob
import os
import unicodedata

import numpy as np
import pytest
from own_folder import save_image, source_of, write_masks

from ovseg.data.custom.pairing import match_files

SUFFIXES = {".jpg", ".png"}
COMPOSED = "Gr\u00fc\u00dfe"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


def tree(folder, *files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()


@pytest.mark.parametrize(
    "pattern",
    [
        "*.jpg",
        "*/*.jpg",
        "**/*.jpg",
        "*/b?.jpg",
        "day/[bc]1.jpg",
        "day/[!b]*.jpg",
        "**/b*.*",
        "day/../*.jpg",
        "[d]ay/*.jpg",
    ],
)
def test_it_finds_what_glob_finds(tmp_path, pattern):
    files = [
        "a.jpg",
        "b1.jpg",
        "day/b1.jpg",
        "day/c1.jpg",
        "day/b22.jpg",
        "day/x.txt",
        "day/deep/b.jpg",
        ".h.jpg",
        ".d/b1.jpg",
    ]
    tree(tmp_path, *files)
    expected = glob.glob(pattern, root_dir=tmp_path, recursive=True)
    expected = {(tmp_path / path).resolve() for path in expected if path.endswith(".jpg")}
    assert {match.path.resolve() for match in match_files(tmp_path, pattern, SUFFIXES)} == expected


def test_wildcards_are_the_names(tmp_path):
    tree(tmp_path, "val/bonn/7_x.jpg", "val/bonn/deep/8_x.jpg")
    assert [match.groups for match in match_files(tmp_path, "val/*/*_x.jpg", SUFFIXES)] == [("bonn", "7")]
    found = [match.groups for match in match_files(tmp_path, "val/**/*_x.jpg", SUFFIXES)]
    assert found == [("bonn", "7"), ("bonn/deep", "8")]
    assert [match.groups for match in match_files(tmp_path, str(tmp_path / "val/bonn"), SUFFIXES)] == [
        ("7_x",),
        ("deep", "8_x"),
    ]


@pytest.mark.parametrize("name", ["[train]", "photos [1]", "a[b", "what?", "x*y", "[!a]", "{1}"])
@pytest.mark.parametrize(
    "pattern", ["{}/images/*.jpg", "{}/images", "{}/im[a]ges/*.jpg", "*/images/{}.jpg", "{}\\images\\*.jpg"]
)
def test_a_folder_is_a_folder_whatever_its_name(tmp_path, name, pattern):
    tree(tmp_path, f"{name}/images/{name}.jpg", "t/images/t.jpg", "other/a.jpg")
    found = match_files(tmp_path, pattern.replace("{}", name), SUFFIXES)
    assert [match.path for match in found if "/t/" not in str(match.path)] == [
        tmp_path / name / "images" / f"{name}.jpg"
    ]


def test_brackets_are_a_set_of_characters_where_they_match_as_one(tmp_path):
    tree(tmp_path, "a/1.jpg", "b/2.jpg", "c/3.jpg")
    assert [match.path.name for match in match_files(tmp_path, "[ab]/*.jpg", SUFFIXES)] == ["1.jpg", "2.jpg"]
    tree(tmp_path, "x/frame [left] 1.jpg", "x/frame [left] 2.jpg")
    found = match_files(tmp_path, "x/frame [left] *.jpg", SUFFIXES)
    assert [match.groups for match in found] == [("1",), ("2",)]


@pytest.mark.parametrize("root", ["[train]", "photos *", DECOMPOSED])
def test_the_place_of_the_yaml_file_is_no_pattern(tmp_path, root):
    write_masks(tmp_path / root, {"a": np.zeros((2, 2), np.uint8)})
    assert [pair.name for pair in source_of(tmp_path / root).pairing.pairs] == ["a"]


@pytest.mark.parametrize(
    ("on_disk", "written"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED), ("a\u200b", "a"), ("a", "\ufeffa")]
)
def test_names_are_compared_after_composition(tmp_path, on_disk, written):
    save_image(tmp_path / on_disk / f"{on_disk}_1.jpg")
    (tmp_path / "masks").mkdir()
    write_masks(tmp_path, {f"{written}_1": np.zeros((4, 6), np.uint8)})
    (tmp_path / "val.txt").write_text(f"{written}_1.jpg\n", encoding="utf-8")
    source = source_of(tmp_path, images=f"{written}/*.jpg", names="val.txt")
    assert len(source.pairing.pairs) == 1 and not source.pairing.absent
    assert (
        len(source_of(tmp_path, images=f"{written}/{written}_*.jpg", masks=f"masks/{on_disk}_*.png").pairing.pairs) == 1
    )


def test_classes_are_compared_after_composition(tmp_path):
    write_masks(tmp_path, {"a": np.array([[4, 5]], np.uint8)})
    source = source_of(tmp_path, classes=[COMPOSED, "sk\u200dy\u200b"], ids={4: DECOMPOSED, 5: "\ufeffSky"})
    assert source.read(source.pairing.pairs[0]).indices.tolist() == [[0, 1]]
    assert source.classes.vocabulary.names == (COMPOSED, "sk\u200dy")


def test_a_folder_within_itself_ends(tmp_path):
    tree(tmp_path, "images/a.jpg")
    os.symlink("..", tmp_path / "images/back")
    os.symlink("loop", tmp_path / "images/loop")
    names = {match.path.name for match in match_files(tmp_path, "images", SUFFIXES)}
    assert names == {"a.jpg"}
