"""Unpacking of archives to the places of data sets, without trust in their content."""

from __future__ import annotations

import contextlib
import json
import lzma
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import IO

from rich.console import Console
from rich.markup import escape

from ovseg.errors import OvsegError, reason_of
from ovseg.io.files import atomic_path, file_digest
from ovseg.io.progress import progress_bar

# what the libraries raise on damaged archives; bz2 and gzip raise an OSError that names no file
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, OSError, EOFError),
    *(ValueError, RuntimeError, IndexError, KeyError, OverflowError, MemoryError),
)
_LONGEST = 255  # bytes of a file name, on all usual file systems
_LARGEST_HEADER = 1 << 20  # bytes of a tar header for a long name or extended attributes, which is read at once


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


_TABLE = json.loads(resources.files(__package__).joinpath("archives.json").read_text(encoding="utf-8"))
ARCHIVES = {name: Archive(**{**row, "folders": tuple(row["folders"])}) for name, row in _TABLE.items()}
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

    Where an archive goes is known by its name (:data:`ARCHIVES`), or by the folders it holds.
    Archives inside it are unpacked, too.

    Args:
        files: the archives.
        root: folder of all data sets.
        check: compare with the published checksum, if there is one, before anything is written.

    Raises:
        OvsegError: an archive is missing, damaged, of no use, has another checksum, or holds anything but plain files
            and folders inside it (links, devices, sparse files, paths that lead out, a name twice, names that no file
            can have); a file of it would replace an archive that was given; too little space.
    """
    for path in files:
        if not path.is_file():
            raise OvsegError(f"{path} is a folder, not an archive" if path.is_dir() else f"there is no archive {path}")
    kept = [path.resolve() for path in files]
    for path in files:
        _unpack(path, root, ARCHIVES.get(path.name, ANY_ARCHIVE), check, kept)


def _unpack(path: Path, root: Path, archive: Archive, check: bool, kept: Sequence[Path]) -> None:
    """Unpack one archive; no file of it may replace one of ``kept``, the archives that are being unpacked."""
    console = Console()
    target = root / archive.into
    nested: list[Path] = []
    try:
        with _members(path) as members:
            wanted = [member for member in members() if member.place.parts[0] in archive.folders]
            _check_places(path, target, wanted, kept)
            if not wanted:
                raise OvsegError(
                    f"{path} holds no folder {' or '.join(archive.folders)}: unpack it by hand to where the README of "
                    f"datasets says; archives known by name are {', '.join(ARCHIVES)}"
                )
            nested = [target / member.place for member in wanted if member.place.name in ARCHIVES]
            missing = {member.place: member.size for member in wanted if not _is_there(target / member.place, member)}
            if not missing:
                console.print(f"{path.name}: all of its {len(wanted):,} files are there", soft_wrap=True, markup=False)
            else:
                if check and archive.digest and (digest := file_digest(path, archive.algorithm)) != archive.digest:
                    raise OvsegError(
                        f"{path} has the {archive.algorithm} {digest}, the released file has {archive.digest}: "
                        "download it again, or give --any-checksum if it is another packing of the same files"
                    )
                root.mkdir(parents=True, exist_ok=True)
                needed, free = sum(missing.values()), shutil.disk_usage(root).free
                if free < needed:
                    sizes = f"{needed / 1e9:.1f} GB in {root}, and {free / 1e9:.1f} GB are free"
                    raise OvsegError(f"{path.name} needs {sizes}: free some space")
                with progress_bar(console=console) as bar:
                    task = bar.add_task(escape(path.name), total=len(missing))
                    for member in members():  # again, since a tar is best read from its begin to its end
                        if member.place in missing:
                            _write(path, target / member.place, member)
                            bar.advance(task)
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.filename:
            raise OvsegError(f"cannot unpack {path}: {_short(error.filename)}: {error.strerror}") from error
        reason = reason_of(error)
        if "\n" in str(error):  # tarfile has a line for each compression that it tried, and at the end for none
            reason = str(error).rpartition("ReadError(")[2].strip("\"')")
        raise OvsegError(f"{path} is no archive or is damaged ({reason}): download it again") from error
    for inner in nested:
        _unpack(inner, root, ARCHIVES[inner.name], check, [*kept, inner.resolve()])


def _check_places(path: Path, target: Path, members: Sequence[_Member], kept: Sequence[Path]) -> None:
    """Refuse files that would lie at one place, or where an archive lies that is still needed."""
    places: dict[PurePosixPath, _Member] = {}
    for member in members:
        if member.place in places:
            raise _refusal(path, str(member.place), "occurs twice")
        places[member.place] = member
    for place in places:
        if folder := next((parent for parent in place.parents if parent in places), None):
            raise _refusal(path, str(folder), "is a file and a folder")
    base = target.resolve()
    for archive in kept:
        place = PurePosixPath(archive.relative_to(base).as_posix()) if archive.is_relative_to(base) else None
        if place in places and (archive == path.resolve() or not _is_there(archive, places[place])):
            raise OvsegError(
                f"{path} was not unpacked: its member {_short(str(place))!r} would replace the archive {archive}; "
                "move the archives elsewhere and run again"
            )


@contextlib.contextmanager
def _members(path: Path) -> Iterator[Callable[[], Iterator[_Member]]]:
    """Yield a function that iterates over the files of an archive; other members than files and folders are refused."""
    if zipfile.is_zipfile(path) and not tarfile.is_tarfile(path):  # the end of a tar may be that of a zip inside it
        with zipfile.ZipFile(path) as archive:
            yield lambda: (member for info in archive.infolist() if (member := _zip_member(path, archive, info)))
    else:
        yield lambda: _tar_members(path)


def _zip_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member | None:
    place = _place(path, info.orig_filename)  # filename ends at a byte 0
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refusal(path, info.filename, "is a link or device")
    if info.flag_bits & 1:
        raise OvsegError(f"{path} is protected by a password: unpack it by hand")
    if info.orig_filename.endswith(("/", "\\")) or kind == stat.S_IFDIR:
        return None
    return _Member(_checked(path, place), info.file_size, lambda: archive.open(info))


def _tar_members(path: Path) -> Iterator[_Member]:
    with tarfile.open(path, tarinfo=_TarInfo) as archive:
        for info in archive:
            place = _place(path, info.name)
            if not (info.isreg() or info.isdir()):
                raise _refusal(path, info.name, "is a link or device")
            if info.issparse():
                raise _refusal(path, info.name, "is a sparse file")
            if info.isreg():
                yield _Member(_checked(path, place), info.size, lambda info=info: archive.extractfile(info))
        while archive.fileobj.read(1 << 20):  # gzip's checksum is at the end of the stream
            pass


class _TarInfo(tarfile.TarInfo):
    """A header; one that is damaged, or lacking at the end, is an error, where tarfile takes it for the end."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:
            raise  # the mark of the end
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        if info.type in _LONG_HEADERS and info.size > _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {info.size} bytes")
        return info


_LONG_HEADERS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)


def _place(path: Path, name: str) -> PurePosixPath:
    """Return the path of a member below the folder that the archive is unpacked in."""
    place = PurePosixPath(name.replace("\\", "/"))
    if place.is_absolute() or ".." in place.parts or re.match(r"[A-Za-z]:", name) or "\0" in name:
        raise _refusal(path, name, "leads out of the folder")
    return place


def _checked(path: Path, place: PurePosixPath) -> PurePosixPath:
    """Return the place of a file, which must have a name."""
    if not place.parts:
        raise _refusal(path, "", "has no name")
    if any(len(part.encode("utf-8", "surrogateescape")) > _LONGEST for part in place.parts):
        raise _refusal(path, str(place), f"has a name of more than {_LONGEST} bytes")
    return place


def _refusal(path: Path, name: str, what: str) -> OvsegError:
    return OvsegError(
        f"{path} was not unpacked: its member {_short(name)!r} {what}, which no released archive has; do not use this "
        "file"
    )


def _short(text: str, longest: int = 200) -> str:
    return text if len(text) <= longest else f"{text[:longest]}..."


def _is_there(file: Path, member: _Member) -> bool:
    # files come to their names only when whole, so the size is enough
    with contextlib.suppress(OSError):
        return file.stat().st_size == member.size
    return False


def _write(path: Path, file: Path, member: _Member) -> None:
    if file.is_dir():
        raise OvsegError(f"{path} has a file where {file} is a folder: move that away and run again")
    with atomic_path(file) as temporary:
        with member.open() as source, temporary.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        if temporary.stat().st_size != member.size:
            raise OvsegError(f"{path} is damaged: {member.place} ends early; download it again")
