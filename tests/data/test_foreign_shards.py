"""Shards that other programs have written: plain tar archives of folders, upper case, JSON without captions."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from ovseg.data.image_text_shards import ShardRows
from ovseg.errors import OvsegError
from ovseg.vocabulary.entities import EntityFinder


def jpeg(shade):
    data = io.BytesIO()
    Image.new("L", (8, 8), shade).save(data, "JPEG")
    return data.getvalue()


def write_tar(path, files):
    """Write an archive of files by name; the content of a folder is None."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.type = len(data or b""), tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            tar.addfile(member, io.BytesIO(data or b""))
    return str(path)


def test_an_archive_of_a_folder(tmp_path):
    """As ``tar cf x.tar .`` makes it."""
    for name, shade in (("0001.jpg", 10), ("v1.0/0002.JPG", 20), ("v1.0/0003.JPEG", 30)):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(jpeg(shade))
    (tmp_path / "in/0001.txt").write_text("a dog\n")
    (tmp_path / "in/v1.0/0002.TXT").write_text("a cat")
    (tmp_path / "in/v1.0/0003.json").write_text('{"caption": "a dog in a box"}')
    (tmp_path / "in/README").write_text("no part of a sample")
    (tmp_path / "in/zzz").mkdir()
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(tmp_path / "in", ".")
    rows = ShardRows(str(tmp_path / "all.tar"), EntityFinder(), paired=True)
    found = {rows[row].captions[0]: rows[row].image for row in range(len(rows))}
    assert found == {"a dog": jpeg(10), "a cat": jpeg(20), "a dog in a box": jpeg(30)} and rows.left_out == 0
    first = list(found).index("a dog")
    assert {rows.draw_partner(first, np.random.default_rng(seed))[1] for seed in range(9)} == {"dog"}


def test_captions_of_json_and_text(tmp_path):
    contents = [
        ({"caption": "a dog", "width": 8}, "text"),
        ({"width": 8}, " a cat\n"),
        ({"caption": " ", "entity": ["car"]}, "a bus"),
        ({"caption": None}, None),
    ]
    files = {}
    for number, (content, text) in enumerate(contents):
        files |= {f"{number}.jpg": jpeg(number), f"{number}.json": json.dumps(content).encode()}
        files |= {} if text is None else {f"{number}.txt": text.encode()}
    files |= {
        "4.jpg": jpeg(4),
        "4.json": b"[]",
        "4.txt": b"a bird",
        "5.jpg": jpeg(5),
        "5.json": b"{}",
        "5.txt": b"\xff",
    }
    rows = ShardRows(write_tar(tmp_path / "both.tar", files), EntityFinder(), paired=True)
    assert [rows[row].captions for row in range(3)] == [("a dog",), ("a cat",), ("a bus",)]
    rng = np.random.default_rng(0)
    assert [rows.draw_partner(row, rng) for row in range(3)] == [(0, "dog"), (1, "cat"), (2, "car")]
    for row, match in (
        (3, "sample 3 of .* has no caption"),
        (4, "JSON is no object"),
        (5, "sample 5 of .* is damaged"),
    ):
        with pytest.raises(OvsegError, match=match):
            rows[row]
        with pytest.raises(OvsegError, match=f"sample {row} of .* has no entity"):
            rows.draw_partner(row, rng)


def test_archives_without_pairs(tmp_path):
    files = {"a/": None, "a/0.jpg": jpeg(0), "b/0.txt": b"a dog"}
    with pytest.raises(OvsegError, match="holds no image-text pair"):
        ShardRows(write_tar(tmp_path / "none.tar", files), EntityFinder())
