"""Unpacking: to the right places, in full, and nothing that an archive should not do."""

from __future__ import annotations

import hashlib
import io
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from ovseg.data.prepare import archives
from ovseg.data.prepare.archives import ARCHIVES, Archive, unpack
from ovseg.errors import OvsegError
from tests.data.prepared import MINIATURES, prepare, snapshot


def make_zip(path: Path, files: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def files_of(folder: Path, prefix: str) -> dict[str, bytes]:
    return {
        f"{prefix}{path.relative_to(folder)}": path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_stuffthingmaps_go_where_they_belong_and_the_script_goes_on(tmp_path, capsys):
    coco = MINIATURES / "coco/coco"
    members = {"__MACOSX/train2017/._a.png": b"x", "readme.txt": b"x"} | files_of(coco / "stuffthingmaps", "")
    path = make_zip(tmp_path / "stuffthingmaps_trainval2017.zip", members)
    root = tmp_path / "root"
    assert prepare("coco_stuff", root, "--archives", str(path)) == 0
    assert sorted(place.name for place in root.iterdir()) == ["coco"]
    assert files_of(root / "coco/stuffthingmaps", "") == files_of(coco / "stuffthingmaps", "")
    assert (root / "coco/stuffthingmaps_detectron2/val2017/000000000139.png").is_file()
    before = snapshot(root)
    prepare("coco_stuff", root, "--archives", str(path))
    assert snapshot(root) == before
    assert "stuffthingmaps_trainval2017.zip: all of its 5 files are there" in capsys.readouterr().out


def test_panoptic_archives_are_in_an_archive(tmp_path):
    coco = MINIATURES / "coco/coco"
    members = {"annotations/panoptic_val2017.json": (coco / "annotations/panoptic_val2017.json").read_bytes()}
    inner = make_zip(tmp_path / "inner.zip", files_of(coco / "panoptic_val2017", "panoptic_val2017/"))
    members["annotations/panoptic_val2017.zip"] = inner.read_bytes()
    path = make_zip(tmp_path / "panoptic_annotations_trainval2017.zip", members)
    assert prepare("coco_panoptic", tmp_path / "root", "--archives", str(path)) == 0
    assert len(list((tmp_path / "root/coco/panoptic_semseg_val2017").glob("*.png"))) == 2


def test_tar_gz_of_pascal_context(tmp_path):
    base = MINIATURES / "pascal_context/VOCdevkit/VOC2010"
    path = make_tar(tmp_path / "trainval.tar.gz", files_of(base / "trainval", "./trainval/"), "w:gz")
    devkit = make_tar(
        tmp_path / "VOCtrainval_03-May-2010.tar",
        {f"VOCdevkit/VOC2010/{name}": (base / name).read_bytes() for name in ("pascalcontext_val.txt",)},
    )
    options = ("--archives", str(devkit), str(path), "--any-checksum")
    assert prepare("pascal_context", tmp_path / "root", *options) == 0
    assert len(list((tmp_path / "root").rglob("*.tif"))) == 4


def test_ade20k_is_known_by_what_it_holds(tmp_path):
    path = make_zip(tmp_path / "someone_1a2b3c.zip", files_of(MINIATURES / "ade20k_847", ""))
    assert prepare("ade20k_847", tmp_path / "root", "--archives", str(path)) == 0
    with pytest.raises(OvsegError, match=r"other\.zip holds no folder coco or ADE.*unpack it by hand"):
        unpack([make_zip(tmp_path / "other.zip", {"x/y.png": b""})], tmp_path / "root")


def test_only_what_is_missing_or_of_another_size_is_unpacked(tmp_path):
    files = {f"VOCdevkit/{index}.txt": bytes(range(index)) for index in range(5)}
    for path in (make_zip(tmp_path / "a.zip", files), make_tar(tmp_path / "a.tar", files)):
        root = tmp_path / f"root of {path.name}"
        unpack([path], root)
        assert files_of(root, "") == files
        before = snapshot(root)
        (root / "VOCdevkit/3.txt").write_bytes(b"1")
        (root / "VOCdevkit/4.txt").unlink()
        unpack([path], root)
        after = snapshot(root)
        assert files_of(root, "") == files
        assert [name for name in before if after[name] == before[name]] == [f"VOCdevkit/{i}.txt" for i in range(3)]


@pytest.mark.parametrize(
    "name", ["../escaped", "VOCdevkit/../../escaped", "/escaped", "C:\\escaped", "VOCdevkit\\..\\..\\escaped"]
)
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_paths_that_lead_out(make, name, tmp_path):
    path = make(tmp_path / "a.archive", {"VOCdevkit/a.txt": b"a", name: b"b"})
    root = tmp_path / "deep/root"
    with pytest.raises(OvsegError, match=r"was not unpacked: its member .*escaped.* leads out of the folder"):
        unpack([path], root)
    assert list(tmp_path.rglob("*escaped*")) == [] and list(tmp_path.rglob("*.txt")) == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar(kind, tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("VOCdevkit/link")
        info.type, info.linkname = kind, "../../etc/passwd"
        archive.addfile(info)
        inside = tarfile.TarInfo("VOCdevkit/link/a.txt")
        archive.addfile(inside, io.BytesIO())
    with pytest.raises(OvsegError, match=r"its member 'VOCdevkit/link' is a link or device"):
        unpack([path], tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_links_in_a_zip(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("coco/link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc")
    with pytest.raises(OvsegError, match="'coco/link' is a link or device"):
        unpack([path], tmp_path / "root")


def test_damaged_archives(tmp_path):
    files = {f"coco/{index}.bin": hashlib.sha256(bytes([index])).digest() * 500 for index in range(6)}
    cases = [
        make_zip(tmp_path / "cut.zip", files),
        make_zip(tmp_path / "flipped.zip", files, zipfile.ZIP_STORED),
        make_tar(tmp_path / "cut.tar", files),
        make_tar(tmp_path / "cut.tar.gz", files, "w:gz"),
        make_tar(tmp_path / "cut.tar.xz", files, "w:xz"),
        make_zip(tmp_path / "page.zip", {}),
    ]
    for path in cases:
        content = bytearray(path.read_bytes())
        if path.name == "flipped.zip":
            content[40000] ^= 255
        elif path.name == "page.zip":
            content = b"<html>not found</html>"
        else:
            del content[len(content) // 2 :]
        path.write_bytes(content)
        root = tmp_path / f"root of {path.name}"
        with pytest.raises(
            OvsegError, match=rf"{path.name} is .*damaged.*: download it again|{path.name} is no archive"
        ):
            unpack([path], root)
        whole = files_of(root, "")
        assert whole.items() <= files.items()  # nothing half-written stays


def test_missing_archive(tmp_path):
    with pytest.raises(OvsegError, match=r"there is no archive .*nowhere\.zip"):
        unpack([tmp_path / "nowhere.zip"], tmp_path)


def test_checksums(tmp_path, monkeypatch):
    path = make_zip(tmp_path / "ADEChallengeData2016.zip", {"ADEChallengeData2016/a.txt": b"a"})
    root = tmp_path / "root"
    with pytest.raises(OvsegError, match=r"has the sha1 [0-9a-f]{40}, the released file has 219e1696.*--any-checksum"):
        unpack([path], root)
    assert not root.exists()
    digest = hashlib.sha1(path.read_bytes()).hexdigest()
    monkeypatch.setitem(ARCHIVES, path.name, Archive("", ("ADEChallengeData2016",), digest=digest))
    unpack([path], root)
    assert (root / "ADEChallengeData2016/a.txt").read_bytes() == b"a"


def test_passwords(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"coco/a.txt": b"a"})
    content = bytearray(path.read_bytes())
    for begin, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(begin) + offset] |= 1
    path.write_bytes(content)
    with pytest.raises(OvsegError, match="protected by a password"):
        unpack([path], tmp_path / "root")


def test_too_little_space(tmp_path, monkeypatch):
    path = make_zip(tmp_path / "a.zip", {"coco/a.txt": b"a" * 1000})
    usage = shutil._ntuple_diskusage(10**9, 10**9, 999)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda place: usage)
    with pytest.raises(OvsegError, match=r"a\.zip needs 0\.0 GB in .*free some space"):
        unpack([path], tmp_path / "root")


def test_published_checksums_are_checksums():
    for archive in ARCHIVES.values():
        assert archive.digest is None or len(archive.digest) == 2 * hashlib.new(archive.algorithm).digest_size
