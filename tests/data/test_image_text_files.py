"""Tables and shards of image-text pairs, and the commands that prepare them from CC12M."""

from __future__ import annotations

import csv
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ovseg.data import cc12m
from ovseg.data.image_text_shards import ShardRows, find_shards, write_shard
from ovseg.data.image_text_table import TableRows
from ovseg.data.tables import Table
from ovseg.errors import OvsegError
from ovseg.vocabulary.entities import EntityFinder
from tests.scripts import load_script

CC12M = Path(__file__).parent / "miniatures/conceptual_captions/cc12m"
PAIRS = CC12M / "cc12m_filtered_subset_pair.csv"
RNG = np.random.default_rng(0)


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def source(tmp_path):
    return Path(shutil.copy(CC12M / "cc12m.csv", tmp_path))


def test_a_table_reads_any_row(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(
        '\ufeffimage_id,caption\na.jpg,"two\nlines, ""quoted"""\n\nb.jpg,ünï\nc.jpg\nd.jpg,\xff\n'.encode("utf-8")
    )
    table = Table(path)
    assert (len(table), table.columns) == (4, ["image_id", "caption"])
    assert table[1] == {"image_id": "b.jpg", "caption": "ünï"}
    assert table[0]["caption"] == 'two\nlines, "quoted"' and table[3]["image_id"] == "d.jpg"
    with pytest.raises(OvsegError, match=r"row 3 of .* 1 columns in place of 2"):
        table[2]
    bad = []
    assert [row["image_id"] for row in table.part(1, 4).rows(bad=bad)] == ["b.jpg", "d.jpg"]
    assert len(bad) == 1 and "row 3" in bad[0]
    path.write_bytes(b"image_id,caption\na.jpg,\xff\n")
    with pytest.raises(OvsegError, match="not UTF-8"):
        Table(path)[0]


def test_the_published_table_of_pairs():
    rows = TableRows(PAIRS, CC12M / "images", paired=True)
    assert len(rows) == 5 and rows[1].captions == ("the bride and the groom next to a car",)
    assert rows[1].image == CC12M / "images/00001.jpg"
    assert {rows.draw_partner(1, RNG) for _ in range(100)} == {(1, "bride"), (1, "groom"), (4, "car")}


def test_partners_of_a_table_without_pairs_share_an_entity():
    rows = TableRows(CC12M / "cc12m_filtered_subset.csv", CC12M / "images", paired=True)
    assert {rows.draw_partner(1, RNG) for _ in range(200)} == {(1, "bride"), (1, "groom"), (1, "car"), (4, "car")}


@pytest.mark.parametrize(
    ("text", "paired", "match"),
    [
        ("name,words\na.jpg,b\n", False, "no column image_id"),
        ("image_id,text_of\na.jpg,b\n", False, "no column caption: its first line holds 'image_id', 'text_of'"),
        ("image_id,caption\na.jpg,b\n", True, "no column pairindex and pairentity.*makepair"),
        ("image_id,caption\n", False, "no rows"),
        (
            "image_id;caption\na.jpg;b\n",
            False,
            "'image_id;caption' alone, since columns are separated by commas or tabs",
        ),
        ("", False, r"the table .*table\.csv is empty: make or download it again"),
    ],
)
def test_tables_without_the_columns(tmp_path, text, paired, match):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(OvsegError, match=match):
        TableRows(path, "", paired)


@pytest.mark.parametrize("cell", ["[7]", "['a']", "[0, 0]", "__import__('os')", "0"])
def test_pairs_that_cannot_be(tmp_path, cell):
    path = tmp_path / "table.csv"
    path.write_text(f'image_id,caption,pairindex,pairentity\na.jpg,a dog,"{cell}","[\'dog\']"\n')
    with pytest.raises(OvsegError, match=r"row 1 of .*makepair again"):
        TableRows(path, "", True).draw_partner(0, RNG)


@pytest.mark.parametrize("name", ["cc12m.csv", "cc12m.tsv"])
def test_filter_and_merge(tmp_path, name, caplog):
    source = Path(shutil.copy(CC12M / name, tmp_path))
    parts = cc12m.filter_captions(source, processes=3)
    assert [path.name for path in parts] == ["cc12m_0.csv", "cc12m_1.csv", "cc12m_2.csv"]
    times = [path.stat().st_mtime_ns for path in parts]
    parts[1].unlink()
    cc12m.filter_captions(source, processes=3)  # makes what is missing
    assert [parts[0].stat().st_mtime_ns, parts[2].stat().st_mtime_ns] == times[::2]
    expected = rows_of(CC12M / "cc12m_filtered_subset.csv")
    for remove in (False, False, True):
        merged = rows_of(cc12m.merge_parts(tmp_path / "subsets", remove))
        assert [row[1:] for row in merged] == [row[1:] for row in expected]
    assert sorted(path.name for path in (tmp_path / "subsets").iterdir()) == ["cc12m_filtered_subset.csv"]


def test_parts_are_joined_by_number_and_must_be_complete(tmp_path):
    for number in (0, 1, 2, 10):
        (tmp_path / f"cc12m_{number}.csv").write_text(f"image_id,caption,entity\n{number}.jpg,a dog,dog\n")
    with pytest.raises(OvsegError, match=r"has 4 parts, but not cc12m_3\.csv: run --mode filter again"):
        cc12m.merge_parts(tmp_path)
    for number in range(3, 10):
        (tmp_path / f"cc12m_{number}.csv").write_text(f"image_id,caption,entity\n{number}.jpg,a dog,dog\n")
    merged = rows_of(cc12m.merge_parts(tmp_path))
    assert [row[0] for row in merged[1:]] == [f"{number}.jpg" for number in range(11)]
    with pytest.raises(OvsegError, match="no parts"):
        cc12m.merge_parts(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--processors", "0"], "'0' is not a number of processes: give 1 or more"),
        (["--processors", "x"], "'x' is not a number of processes"),
        (["--remove_subfiles", "maybe"], "'maybe' is neither True nor False"),
        (["--seed", "1"], "--mode filter needs --srcdir"),
    ],
)
def test_options_of_the_command(capsys, words, match):
    with pytest.raises(SystemExit) as error:
        load_script("datasets/data_process_cc12m.py").main(["--mode", "filter", *words])
    assert error.value.code == 2 and match in capsys.readouterr().err


def test_a_source_that_is_no_table_of_captions(tmp_path):
    source = tmp_path / "captions.csv"
    with pytest.raises(OvsegError, match=r"there is no table .*captions\.csv: check the path"):
        cc12m.filter_captions(source)
    for text, match in (("", "is empty"), ("image_id;caption\na;b\n", "has one column")):
        source.write_text(text)
        with pytest.raises(OvsegError, match=match):
            cc12m.filter_captions(source)


def test_parts_of_another_source_are_refused(source):
    cc12m.filter_captions(source, processes=2)
    with pytest.raises(OvsegError, match="another run"):
        cc12m.filter_captions(source, processes=3)
    source.write_text(source.read_text() + "x.jpg,a dog\n")
    with pytest.raises(OvsegError, match="another run"):
        cc12m.filter_captions(source, processes=2)


def test_pairs_share_their_entity_and_are_seeded(tmp_path):
    metafile = Path(shutil.copy(CC12M / "cc12m_filtered_subset.csv", tmp_path))
    first = cc12m.make_pairs(metafile, seed=3)
    content = first.read_text()
    assert first.name == PAIRS.name and rows_of(first)[0] == rows_of(PAIRS)[0]
    assert cc12m.make_pairs(metafile, seed=3).read_text() == content != cc12m.make_pairs(metafile, seed=4).read_text()
    rows, table = TableRows(first, CC12M / "images", paired=True), Table(first)
    for row in range(len(rows)):
        other, entity = rows.draw_partner(row, RNG)
        assert entity in table[row]["entity"].split(",") and entity in table[other]["entity"].split(",")
    with pytest.raises(OvsegError, match="no column entity"):
        cc12m.make_pairs(Path(shutil.copy(CC12M / "cc12m.csv", tmp_path)))


@pytest.fixture
def damaged(tmp_path):
    """A table of four rows: the second one has too few cells, and words are separated by commas and blanks."""
    for name in "abcd":
        shutil.copy(CC12M / "images/00000.jpg", tmp_path / f"{name}.jpg")
    path = tmp_path / "table.csv"
    path.write_text('image_id,caption,entity\na.jpg,x,"dog, cat"\nb.jpg\nc.jpg,y, cat\nd.jpg,z,"dog,,dog "\n')
    return path


def test_damaged_rows_pair_with_no_other(damaged, caplog):
    rows = TableRows(damaged, paired=True)
    assert "1 rows are damaged" in caplog.text and "row 2 of" in caplog.text
    assert {rows.draw_partner(0, RNG) for _ in range(200)} == {(0, "dog"), (3, "dog"), (0, "cat"), (2, "cat")}
    for read in (lambda: rows[1], lambda: rows.draw_partner(1, RNG)):  # skipped and counted in training
        with pytest.raises(OvsegError, match="row 2 of"):
            read()


def test_damaged_rows_are_left_out_of_pairs_and_shards(damaged, caplog):
    table = Table(cc12m.make_pairs(damaged, seed=1))
    assert "1 rows are damaged" in caplog.text and "row 2 of" in caplog.text
    assert [row["image_id"] for row in table.rows()] == ["a.jpg", "c.jpg", "d.jpg"]
    rows = TableRows(table.path, paired=True)
    assert {rows.draw_partner(0, RNG) for _ in range(200)} <= {(0, "dog"), (2, "dog"), (0, "cat"), (1, "cat")}
    caplog.clear()
    (shard,) = cc12m.make_shards(damaged, damaged.parent, damaged.parent / "shards")
    with tarfile.open(shard) as tar:
        assert tar.getnames()[::2] == ["000000000.jpg", "000000002.jpg", "000000003.jpg"]
    assert "row 2 of" in caplog.text
    damaged.write_text("image_id,caption,entity\na.jpg\nb.jpg,x,dog\nc.jpg,y, \n")
    with pytest.raises(OvsegError, match=r"row 3 of .* has no entity"):
        cc12m.make_pairs(damaged)


def test_json_lines_become_a_table(tmp_path):
    source = tmp_path / "captions.jsonl"
    source.write_text('{"image_id": "a.jpg", "caption": "x"}\n\n{"image_id": "b.jpg", "label": 3}\n')
    expected = [["", "image_id", "caption", "label"], ["0", "a.jpg", "x", ""], ["1", "b.jpg", "", "3"]]
    assert rows_of(cc12m.json_to_csv(source)) == expected
    source.write_text("[]\n")
    with pytest.raises(OvsegError, match="line 1 of"):
        cc12m.json_to_csv(source)


def test_shards_hold_the_table(tmp_path):
    first = cc12m.make_shards(PAIRS, CC12M / "images", tmp_path)
    content = first[0].read_bytes()
    first[0].unlink()
    assert cc12m.make_shards(PAIRS, CC12M / "images", tmp_path)[0].read_bytes() == content
    rows, table = ShardRows(str(tmp_path), EntityFinder(), True), TableRows(PAIRS, CC12M / "images")
    for row in range(5):
        assert rows[row].captions == table[row].captions
        assert rows[row].image == table[row].image.read_bytes()
    assert {rows.draw_partner(1, RNG) for _ in range(200)} == {(1, "bride"), (1, "groom"), (1, "car"), (4, "car")}
    first[0].write_bytes(content[: len(content) // 2])
    with pytest.raises(OvsegError, match="truncated"):
        ShardRows(str(first[0]), EntityFinder())
    with pytest.raises(OvsegError, match="none of the images"):
        cc12m.make_shards(PAIRS, tmp_path, tmp_path / "other")


def test_shards_of_others(tmp_path):
    """Samples with texts in place of JSON, in a folder, and some that are no pairs."""
    files = {
        "d/0.jpg": b"one",
        "d/0.txt": b"a dog",
        "d/1.jpg": b"two",
        "d/2.png": b"3",
        "d/2.json": b'{"caption": "a cat"}',
    }
    with tarfile.open(tmp_path / "a-00.tar", "w") as tar:
        for name, data in files.items():
            (tmp_path / "part").write_bytes(data)
            tar.add(tmp_path / "part", name)
    write_shard(
        tmp_path / "a-01.tar", [(9, CC12M / "images/00000.jpg", "the dog", []), (10, tmp_path / "x.jpg", "", [])]
    )
    rows = ShardRows(f"{tmp_path}/a-{{00..01}}.tar", EntityFinder(), True)
    assert (len(rows), rows.left_out) == (3, 1)
    assert [rows[row].captions for row in range(3)] == [("a dog",), ("a cat",), ("the dog",)]
    assert rows[1].image == b"3" and rows.draw_partner(1, RNG) == (1, "cat")
    with pytest.raises(OvsegError, match="no entity"):  # an empty list, as the writer was given
        rows.draw_partner(2, RNG)


def test_sources_of_shards(tmp_path):
    for name in ("b.tar", "a.tar", "a.csv"):
        (tmp_path / name).touch()
    assert [path.name for path in find_shards(str(tmp_path))] == ["a.tar", "b.tar"]
    assert [path.name for path in find_shards(f"{tmp_path}/*.tar")] == ["a.tar", "b.tar"]
    for source, match in (("s3://x/a.tar", "another machine"), (f"{tmp_path}/{{a..c}}.tar", r"no shard .*c\.tar")):
        with pytest.raises(OvsegError, match=match):
            find_shards(source)
