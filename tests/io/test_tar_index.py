"""The index of archives that other programs have written."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from ovseg.io.tar_index import index_tar


def write_tar(path: Path, names: list[str]) -> Path:
    """Write an archive of files that hold their names, and of the folders among them, which end in a slash."""
    with tarfile.open(path, "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name.rstrip("/"))
            member.size = 0 if name.endswith("/") else len(name)
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            tar.addfile(member, io.BytesIO(name.encode()))
    return path


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["7.jpg", "7.txt"], ["7"]),
        (["./", "./7.jpg", "./7.txt"], ["7"]),
        (["v1.0/", "v1.0/7.jpg", "v1.0/7.txt", "v1.1/7.jpg", "v1.1/7.txt"], ["v1.0/7", "v1.1/7"]),
        (["../a/7.JPG", "../a/7.Txt", "../a/"], ["../a/7"]),
        (["7.jpg", "7.txt", "a.b/", "a.b/c/"], ["7"]),  # the archive ends with folders
        (["LICENSE", "a.b/LICENSE", "._7.jpg", "7.jpg", "7.txt"], ["7"]),
    ],
)
def test_names_of_others(tmp_path, names, keys):
    path = write_tar(tmp_path / "any.tar", names)
    samples = index_tar(path)
    assert [(key, set(parts)) for key, parts in samples.items()] == [(key, {"jpg", "txt"}) for key in keys]
    content = path.read_bytes()
    for key, parts in samples.items():
        for part, (start, size) in parts.items():
            assert content[start : start + size].decode().lower().endswith(f"{key}.{part}")


def test_the_part_begins_at_the_first_dot(tmp_path):
    assert list(index_tar(write_tar(tmp_path / "any.tar", ["a/0_1.mask.PNG", "a/0_1.png"]))["a/0_1"]) == [
        "mask.png",
        "png",
    ]


@pytest.mark.parametrize("names", [["7.jpg"], ["7.jpg", "a/"]])
def test_truncated_archives(tmp_path, names):
    path = write_tar(tmp_path / "any.tar", names)
    path.write_bytes(path.read_bytes().rstrip(b"\0") + bytes(200))
    with pytest.raises((tarfile.TarError, EOFError)):
        index_tar(path)
