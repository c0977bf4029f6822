"""The restricted reader of ADE20K's index."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from ovseg.data.prepare.raw_formats import read_index
from ovseg.errors import OvsegError


def test_index_reader_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    path = tmp_path / "index_ade20k.pkl"
    path.write_bytes(pickle.dumps({"filename": ["a.jpg"], "folder": ["x"], "more": Evil()}))
    with pytest.raises(OvsegError, match=r"not ADE20K's index, or is damaged \(it asks for pathlib"):
        read_index(path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_index_reader_reads_every_protocol(protocol, tmp_path):
    names = ["a.jpg", "b.jpg"]
    index = {"filename": names, "folder": np.array(["x", "x/y"], dtype=object), "objectPresence": np.zeros((3, 2))}
    path = tmp_path / "index.pkl"
    path.write_bytes(pickle.dumps(index | {"count": np.float64(3)}, protocol=protocol))
    assert [str(file) for file in read_index(path)] == ["x/a.jpg", "x/y/b.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"filename": ["a.jpg"], "folder": ["../.."]}, "leads out of the data set"),
        ({"filename": ["/a.jpg"], "folder": ["x"]}, "leads out of the data set"),
        ({"filename": ["a.jpg"], "folder": []}, "not ADE20K's index"),
        ({"filename": [3], "folder": ["x"]}, "not ADE20K's index"),
        ([], "not ADE20K's index"),
        (None, "not ADE20K's index"),
    ],
)
def test_strange_indexes(content, message, tmp_path):
    path = tmp_path / "index.pkl"
    path.write_bytes(b"\x80\x04broken" if content is None else pickle.dumps(content))
    with pytest.raises(OvsegError, match=message):
        read_index(path)


@pytest.mark.parametrize(
    "content", [b"\x80\x04Nr\xff\xff\xff\xff.", b"\x80\x04}N" + b"\x85" * 300_000 + b"Ns."], ids=["memo", "deep"]
)
def test_index_that_would_fill_the_memory_or_the_stack(content, tmp_path):
    (tmp_path / "index.pkl").write_bytes(content)
    with pytest.raises(OvsegError, match=r"not ADE20K's index, or is damaged \((?!MemoryError)"):
        read_index(tmp_path / "index.pkl")
