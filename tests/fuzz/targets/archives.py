"""Archives of data sets: zip and tar in every compression, with odd members."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from random import Random

from ovseg.data.prepare.archives import ARCHIVES, unpack
from tests.fuzz.mutate import TEXTS, mutate_bytes

_NAMES = (
    *("trainval.tar.gz", "SegmentationClassAug.zip", "gtFine_trainvaltest.zip", "panoptic_val2017.zip"),
    *("mine.zip", "mine.tar.bz2"),
)
_COMPRESS = (lambda data: data, gzip.compress, bz2.compress, lzma.compress)


def _member_names(rng: Random, top: str) -> list[str]:
    below = ("a", "a/b", "A", "n" * 300, "d/" * 200 + "x", "/x", "./x", "x\0y", "../../out", "..\\..\\..\\out")
    below += ("annotations/panoptic_val2017.zip", rng.choice(_NAMES), rng.choice(TEXTS))
    odd = ("", "/", ".", "..", f"/{top}/x", "C:\\x", top, f"./{top}/z", *(f"{top}/{name}" for name in below))
    names = [f"{top}/{n}.png" for n in range(3)]
    names += [rng.choice(odd) for _ in range(rng.randint(0, 3))]
    return [name.encode("utf-8", "replace").decode("utf-8")[:65_535] for name in names]  # zip holds no longer ones


def _zip(rng: Random, names: list[str], contents: list[bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in zip(names, contents, strict=True):
            info = zipfile.ZipInfo("x")
            info.filename = name
            if rng.random() < 0.1:
                info.external_attr = rng.choice((0o120777, 0o020666, 0o040755, 0o100000)) << 16
            # 0 stored, 8 deflated, 12 bz2, 14 lzma
            archive.writestr(info, content, rng.choice((0, 8, 12, 14)))
    return file.getvalue()


def _tar(rng: Random, names: list[str], contents: list[bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))) as archive:
        for name, content in zip(names, contents, strict=True):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), rng.choice((0, 0, -1, 2**40))
            if rng.random() < 0.1:
                info.type, info.linkname, info.size = rng.choice((b"1", b"2", b"3", b"5", b"6", b"S")), "../../x", 0
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def odd_archive(rng: Random, name: str, depth: int = 0) -> bytes:
    """An archive of this name with odd members, now and then damaged."""
    top = rng.choice(ARCHIVES[name].folders if name in ARCHIVES else ("coco", "VOCdevkit", "other"))
    names = _member_names(rng, top)
    contents = [
        odd_archive(rng, inner.split("/")[-1], depth + 1)
        if inner.split("/")[-1] in ARCHIVES and depth < 2
        else rng.randbytes(rng.choice((0, 9, 2000)))
        for inner in names
    ]
    if rng.random() < (0.8 if name.endswith(".zip") else 0.1):
        data = _zip(rng, names, contents)
    else:
        data = _tar(rng, names, contents)
        if rng.random() < 0.15:
            data = mutate_bytes(rng, data)
        data = rng.choice(_COMPRESS)(data)
    return mutate_bytes(rng, data) if rng.random() < 0.4 else data


class Archives:
    """Archives that are unpacked; nothing may come to lie outside the root."""

    name = "archives"
    inputs = 2000

    def __init__(self, folder: Path) -> None:
        pass

    def make(self, rng: Random, folder: Path) -> tuple[Path, Path]:
        name, root = rng.choice(_NAMES), folder / "root"
        into = ARCHIVES[name].into if name in ARCHIVES else ""
        path = (root / into if rng.random() < 0.1 else folder) / name  # also where its own members go
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(odd_archive(rng, name))
        return path, root

    def steps(self, given: tuple[Path, Path]) -> Iterable[Callable[[], object]]:
        return [partial(_unpack, *given), partial(_unpack, *given)]


def _unpack(path: Path, root: Path) -> None:
    before = {entry.name for entry in root.parent.iterdir()} | {root.name}
    try:
        unpack([path], root, check=False)
    finally:
        after = {entry.name for entry in root.parent.iterdir()}
        links = [entry for entry in root.rglob("*") if entry.is_symlink()] if root.is_dir() else []
        if after - before or links or list(root.rglob(".*.tmp*")):
            raise AssertionError(f"left behind: {sorted(after - before)} {links}")
