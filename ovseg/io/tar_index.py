"""Where the parts of samples are in a tar archive, such as a WebDataset shard."""

from __future__ import annotations

import tarfile
from pathlib import Path

_END = 1024  # zero bytes that close every tar archive


def index_tar(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Return the samples of an archive in order: by key, the offset and size of each part in bytes.

    The name of a file is the key up to its first dot, and the part after it: ``00017.jpg`` is part "jpg" of "00017".

    Raises:
        OSError: the archive cannot be read.
        tarfile.TarError, EOFError, ValueError, OverflowError: it is damaged, truncated, or holds other than files.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    end = 0
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # it would keep every member in memory
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise tarfile.ReadError(f"{member.name[:100]!r} is not a plain file")
            key, _, part = member.name.partition(".")
            samples.setdefault(key, {})[part] = (member.offset_data, member.size)
            end = member.offset_data + -(-member.size // 512) * 512
        file.seek(end)  # tarfile takes the end of the file for the end of the archive
        if file.read(_END) != bytes(_END):
            raise tarfile.ReadError("it ends too early")
    return samples
