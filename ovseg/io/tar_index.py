"""Where the parts of samples are in a tar archive, such as a WebDataset shard."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

_END = 1024  # zero bytes that close every tar archive
_BLOCK = 512  # bytes; members begin at multiples
_NAME = re.compile(r"(?:\./)*((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)  # key, part


def index_tar(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Return the samples of an archive in order: by key, the offset and size of each part in bytes.

    As in WebDataset, the name of a file is the key up to the first dot behind its folder, and the part after that, in
    lower case: ``./v1.0/00017.JPG`` is part "jpg" of "v1.0/00017". Folders, and files without a key or a part, such as
    ``._00017.jpg`` and ``LICENSE``, are left out.

    Raises:
        OSError: the archive cannot be read.
        tarfile.TarError, EOFError, ValueError, OverflowError: it is damaged, truncated, or holds other than files.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    end = 0
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # it would keep every member in memory
            end = member.offset_data
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise tarfile.ReadError(f"{member.name[:100]!r} is not a plain file")
            end += -(-member.size // _BLOCK) * _BLOCK
            if found := _NAME.fullmatch(member.name):
                samples.setdefault(found[1], {})[found[2].lower()] = (member.offset_data, member.size)
        file.seek(end)  # tarfile takes the end of the file for the end of the archive
        if file.read(_END) != bytes(_END):
            raise tarfile.ReadError("it ends too early")
    return samples
