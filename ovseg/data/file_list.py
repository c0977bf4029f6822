"""Which files a data set is made of, in one line."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable


def file_list_checksum(files: Iterable[str | os.PathLike]) -> str:
    """Return the SHA-256 of the stems of file names, sorted as byte strings, each with a newline.

    The rule by which the checksums of the published splits are made: equal sums mean the same images, wherever they
    lie and in whatever format.
    """
    stems = sorted(os.fsencode(os.path.splitext(os.path.basename(file))[0]) for file in files)
    return hashlib.sha256(b"".join(stem + b"\n" for stem in stems)).hexdigest()
