"""Unpacking archives where the data sets belong, without trusting what they hold."""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from rich.console import Console

from ovseg.errors import OvsegError
from ovseg.files import atomic_path
from ovseg.progress import progress_bar

_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, NotImplementedError)


@dataclass(frozen=True)
class Archive:
    """A released archive.

    Attributes:
        into: folder below the root that it is unpacked in.
        folders: its top folders that are of use; what else it holds is left alone.
        algorithm, digest: its checksum, if one is published.
    """

    into: str
    folders: tuple[str, ...]
    algorithm: str = "sha1"
    digest: str | None = None


ARCHIVES: dict[str, Archive] = {
    "ADEChallengeData2016.zip": Archive(
        "", ("ADEChallengeData2016",), digest="219e1696abb36c8ba3a3afe7fb2f4b4606a897c7"
    ),
    "train2017.zip": Archive("coco", ("train2017",), digest="10ad623668ab00c62c096f0ed636d6aff41faca5"),
    "val2017.zip": Archive("coco", ("val2017",), digest="4950dc9d00dbe1c933ee0170f5797584351d2a41"),
    "annotations_trainval2017.zip": Archive(
        "coco", ("annotations",), digest="8551ee4bb5860311e79dace7e79cb91e432e78b3"
    ),
    "stuffthingmaps_trainval2017.zip": Archive("coco/stuffthingmaps", ("train2017", "val2017")),
    # holds two archives more
    "panoptic_annotations_trainval2017.zip": Archive("coco", ("annotations",)),
    "panoptic_train2017.zip": Archive("coco", ("panoptic_train2017",)),
    "panoptic_val2017.zip": Archive("coco", ("panoptic_val2017",)),
    "VOCtrainval_11-May-2012.tar": Archive("", ("VOCdevkit",), "md5", "6cd6e144f989b92b3379bac3b3de84fd"),
    "SegmentationClassAug.zip": Archive("VOCdevkit/VOC2012", ("SegmentationClassAug",)),
    "VOCtrainval_03-May-2010.tar": Archive("", ("VOCdevkit",), "md5", "da459979d0c395079b5c75ee67908abb"),
    "trainval.tar.gz": Archive("VOCdevkit/VOC2010", ("trainval",)),
    "leftImg8bit_trainvaltest.zip": Archive("cityscapes", ("leftImg8bit",)),
    "gtFine_trainvaltest.zip": Archive("cityscapes", ("gtFine",)),
}
# an archive of another name (ADE20K's are personal) is unpacked in the root if it holds these
ANY_ARCHIVE = Archive("", ("coco", "ADEChallengeData2016", "ADE20K_2021_17_01", "VOCdevkit", "cityscapes"))


@dataclass(frozen=True)
class _Member:
    """A file of an archive: its place below the top, its size in bytes, how it is opened."""

    place: PurePosixPath
    size: int
    open: Callable[[], IO[bytes]]


def unpack(files: Sequence[Path], root: Path, *, check: bool = True) -> None:
    """Unpack released archives (zip, tar, tar.gz, ...) below ``root``; what is there in full size is left alone.

    Where an archive goes is told by its name (:data:`ARCHIVES`), or by the folders it holds.
    Archives inside it are unpacked, too.

    Args:
        files: the archives.
        root: folder of all data sets.
        check: compare with the published checksum, if there is one, before anything is written.

    Raises:
        OvsegError: an archive is missing, damaged, of no use, has another checksum, or holds anything but plain files
            and folders inside it (links, devices, paths that lead out); too little space.
    """
    for path in files:
        if not path.is_file():
            raise OvsegError(f"there is no archive {path}")
    for path in files:
        _unpack(path, root, ARCHIVES.get(path.name, ANY_ARCHIVE), check)


def _unpack(path: Path, root: Path, archive: Archive, check: bool) -> None:
    console = Console()
    target = root / archive.into
    nested: list[Path] = []
    try:
        with _members(path) as members:
            wanted = [member for member in members() if member.place.parts[0] in archive.folders]
            if not wanted:
                raise OvsegError(
                    f"{path} holds no folder {' or '.join(archive.folders)}: unpack it by hand to where the README of "
                    f"datasets says; archives known by name are {', '.join(ARCHIVES)}"
                )
            nested = [target / member.place for member in wanted if member.place.name in ARCHIVES]
            missing = {member.place: member.size for member in wanted if not _is_there(target / member.place, member)}
            if not missing:
                console.print(f"{path.name}: all of its {len(wanted):,} files are there", soft_wrap=True)
            else:
                if check and archive.digest:
                    _check_digest(path, archive)
                _check_space(path, root, sum(missing.values()))
                with progress_bar(console=console) as bar:
                    task = bar.add_task(path.name, total=len(missing))
                    for member in members():  # again, since a tar is best read from its begin to its end
                        if member.place in missing:
                            _write(path, target / member.place, member)
                            bar.advance(task)
    except _DAMAGE as error:
        raise OvsegError(f"{path} is no archive or is damaged ({error}): download it again") from error
    for inner in nested:
        _unpack(inner, root, ARCHIVES[inner.name], check)


@contextlib.contextmanager
def _members(path: Path) -> Iterator[Callable[[], Iterator[_Member]]]:
    """Opens an archive and gives a function that walks over its files; folders are left out, the rest is refused."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield lambda: (member for info in archive.infolist() if (member := _zip_member(path, archive, info)))
    else:
        yield lambda: _tar_members(path)


def _zip_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member | None:
    place = _place(path, info.filename)
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refusal(path, info.filename, "is a link or device")
    if info.flag_bits & 1:
        raise OvsegError(f"{path} is protected by a password: unpack it by hand")
    if info.is_dir() or not place.parts:
        return None
    return _Member(place, info.file_size, lambda: archive.open(info))


def _tar_members(path: Path) -> Iterator[_Member]:
    with tarfile.open(path) as archive:
        for info in archive:
            place = _place(path, info.name)
            if not (info.isreg() or info.isdir()):
                raise _refusal(path, info.name, "is a link or device")
            if info.isreg() and place.parts:
                yield _Member(place, info.size, lambda info=info: archive.extractfile(info))


def _place(path: Path, name: str) -> PurePosixPath:
    """Where a member goes, below the folder that the archive is unpacked in."""
    place = PurePosixPath(name.replace("\\", "/"))
    if place.is_absolute() or ".." in place.parts or re.match(r"[A-Za-z]:", name) or "\0" in name:
        raise _refusal(path, name, "leads out of the folder")
    return place


def _refusal(path: Path, name: str, what: str) -> OvsegError:
    return OvsegError(
        f"{path} was not unpacked: its member {name!r} {what}, which no released archive has; do not use this file"
    )


def _is_there(file: Path, member: _Member) -> bool:
    # files come to their names only when whole, so the size is enough
    with contextlib.suppress(OSError):
        return file.stat().st_size == member.size
    return False


def _write(path: Path, file: Path, member: _Member) -> None:
    with atomic_path(file) as temporary:
        with member.open() as source, temporary.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        if temporary.stat().st_size != member.size:
            raise OvsegError(f"{path} is damaged: {member.place} ends early; download it again")


def _check_digest(path: Path, archive: Archive) -> None:
    digest: Any = hashlib.new(archive.algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != archive.digest:
        raise OvsegError(
            f"{path} has the {archive.algorithm} {digest.hexdigest()}, the released file has {archive.digest}: "
            "download it again, or give --any-checksum if it is another packing of the same files"
        )


def _check_space(path: Path, root: Path, needed: int) -> None:
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise OvsegError(
            f"{path.name} needs {needed / 1e9:.1f} GB in {root}, and {free / 1e9:.1f} GB are free: free some space"
        )
