"""Unpacking: to the right places, in full, and nothing that an archive should not do."""

from __future__ import annotations

import errno
import hashlib
import io
import shutil
import stat
import tarfile
import warnings
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


def refusal(path: Path, root: Path) -> str:
    """The message of a refused archive: one line of bounded length; nothing outside its root, nothing half-written."""
    around = snapshot(path.parent)
    with pytest.raises(OvsegError) as error:
        unpack([path], root)
    message = str(error.value)
    assert "\n" not in message and str(path) in message and len(message) < 800
    assert not [name for name in snapshot(path.parent) if name not in around and not name.startswith(root.name)]
    assert not list(root.rglob("*.tmp*"))
    return message


@pytest.mark.parametrize("mode", ["w:bz2", "w:gz", "w:xz", "w"])
def test_archives_damaged_anywhere(mode, tmp_path):
    """Every place of a small archive: cut there, and its bytes from there overwritten; never half of the files."""
    files = {f"coco/{index}.bin": hashlib.sha256(bytes([index])).digest() * 20 for index in range(4)}
    whole = make_tar(tmp_path / "whole.tar", files, mode).read_bytes()
    used = whole.rstrip(b"\0") if mode == "w" else whole
    path = tmp_path / "a.tar"
    for place in range(0, len(used), max(1, len(used) // 25)):
        for content in (whole[:place], whole[:place] + bytes(40) + whole[place + 40 :] if mode != "w" else b""):
            if content == whole:
                continue
            path.write_bytes(content)
            root = tmp_path / f"root {place} {len(content)}"
            message = refusal(path, root)
            assert "damaged" in message or "holds no folder" in message
            assert files_of(root, "").items() <= files.items()


def test_a_tar_with_a_damaged_header_is_not_taken_for_a_shorter_one(tmp_path):
    files = {f"coco/{index}.bin": bytes(512) for index in range(3)}
    content = bytearray(make_tar(tmp_path / "a.tar", files).read_bytes())
    content[1024] ^= 1  # the name in the second header
    (tmp_path / "a.tar").write_bytes(content)
    assert "is no archive or is damaged" in refusal(tmp_path / "a.tar", tmp_path / "root")
    for length in (1024, 2048):  # cut between two files
        (tmp_path / "a.tar").write_bytes(make_tar(tmp_path / "whole.tar", files).read_bytes()[:length])
        assert "is no archive or is damaged" in refusal(tmp_path / "a.tar", tmp_path / "root")


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("", "has no name"),
        ("coco/" + "n" * 300, "has a name of more than 255 bytes"),
        ("coco/" + "é" * 130, "has a name of more than 255 bytes"),
        ("coco/" + "n/" * 2100 + "a", "File name too long"),
        ("coco/line\nend/../../a", "leads out of the folder"),
        ("coco/a.txt", "occurs twice"),
        ("./coco/a.txt", "occurs twice"),
        ("coco/a.txt/b", "is a file and a folder"),
    ],
)
def test_names_that_no_file_can_have(make, name, what, tmp_path):
    path = tmp_path / "a.archive"
    if make is make_zip:
        with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile warns of names that occur twice
            for member in ("coco/a.txt", name):
                archive.writestr(zipfile.ZipInfo(member), b"a")
    else:
        with tarfile.open(path, "w") as archive:
            for member in ("coco/a.txt", name):
                info = tarfile.TarInfo(member)
                info.size = 1
                archive.addfile(info, io.BytesIO(b"a"))
    assert what in refusal(path, tmp_path / "root")


def test_names_of_windows(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"coco\\": b"", "coco\\b\\": b"", "coco\\b\\a.txt": b"a"})
    unpack([path], tmp_path / "root")
    assert files_of(tmp_path / "root", "") == {"coco/b/a.txt": b"a"}


def test_sparse_giants(tmp_path):
    path = tmp_path / "a.tar"
    info = tarfile.TarInfo("coco/giant")
    info.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[386:398] = block[398:410] = b"00000000000\0"  # where the first piece lies, and its length
    block[483:495] = b"77777777777\0"  # 8 GB
    block[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(block))[0]
    path.write_bytes(bytes(block) + bytes(1024))
    assert "'coco/giant' is a sparse file" in refusal(path, tmp_path / "root")


def test_a_header_that_would_fill_the_memory(tmp_path):
    path = tmp_path / "a.tar"
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 8 * 10**9
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert "a header of 8000000000 bytes" in refusal(path, tmp_path / "root")


def test_an_archive_where_its_own_member_goes(tmp_path):
    """It would be replaced while it is read, and then be unpacked again, for ever."""
    name = "panoptic_annotations_trainval2017.zip"
    folder = tmp_path / "root/coco/annotations"
    folder.mkdir(parents=True)
    path = make_zip(folder / name, {f"annotations/{name}": b"x" * 50})
    content = path.read_bytes()
    message = refusal(path, tmp_path / "root")
    assert "would replace the archive" in message and "move the archives elsewhere" in message
    assert path.read_bytes() == content
    # the same size, as an archive would have that holds itself
    path = make_zip(folder / name, {f"annotations/{name}": b"x" * 200}, zipfile.ZIP_STORED)
    content = path.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"annotations/{name}", b"x" * len(content))
    size = path.stat().st_size
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"annotations/{name}", b"x" * (2 * len(content) - (size - len(content))))
    assert "would replace the archive" in refusal(path, tmp_path / "root")


def test_an_archive_where_the_member_of_another_goes(tmp_path):
    (tmp_path / "root/coco/annotations").mkdir(parents=True)
    inner = make_zip(tmp_path / "root/coco/annotations/panoptic_val2017.zip", {"panoptic_val2017/a.png": b"new"})
    content = inner.read_bytes()
    other = make_zip(tmp_path / "other.zip", {"panoptic_val2017/a.png": b"something older"}).read_bytes()
    name = "panoptic_annotations_trainval2017.zip"
    outer = make_zip(tmp_path / name, {"annotations/panoptic_val2017.zip": other})
    with pytest.raises(OvsegError, match=r"would replace the archive .*panoptic_val2017\.zip"):
        unpack([outer, inner], tmp_path / "root")
    assert inner.read_bytes() == content


def test_a_zip_at_the_end_of_a_tar(tmp_path):
    inner = make_zip(tmp_path / "inner.zip", {"x": b"1"}).read_bytes()
    path = make_tar(tmp_path / "a.tar", {"coco/a.txt": b"a", "coco/inner.zip": inner})
    unpack([path], tmp_path / "root")
    assert files_of(tmp_path / "root", "") == {"coco/a.txt": b"a", "coco/inner.zip": inner}


def test_a_folder_where_a_file_should_be(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"coco/a": b"a"})
    (tmp_path / "root/coco/a").mkdir(parents=True)
    assert "is a folder: move that away" in refusal(path, tmp_path / "root")
    (tmp_path / "root/coco/a").rmdir()
    (tmp_path / "root/coco").rmdir()
    (tmp_path / "root/coco").write_text("a file")
    with pytest.raises(OvsegError, match=r"cannot (write|unpack)"):
        unpack([path], tmp_path / "root")
    with pytest.raises(OvsegError, match="is a folder, not an archive"):
        unpack([tmp_path], tmp_path / "root")


def test_a_full_disk_while_unpacking(tmp_path, monkeypatch):
    path = make_zip(tmp_path / "a.zip", {f"coco/{index}": bytes(1000) for index in range(3)})
    original = archives.shutil.copyfileobj
    calls = []

    def full(source, sink, size):
        calls.append(sink)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(source, sink, size)

    with monkeypatch.context() as patch:
        patch.setattr(archives.shutil, "copyfileobj", full)
        with pytest.raises(OvsegError, match=r"disk full while writing .*coco/1: free some space and run again"):
            unpack([path], tmp_path / "root")
    assert files_of(tmp_path / "root", "") == {"coco/0": bytes(1000)}
    unpack([path], tmp_path / "root")
    assert len(files_of(tmp_path / "root", "")) == 3
