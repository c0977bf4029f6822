"""Reading of ``.npz`` files that may be damaged or come from an untrusted source."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_LARGEST = 1 << 30  # bytes of one array


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` file by name.

    Nothing is unpickled, and no more memory is allocated than the file has bytes.

    Raises:
        ValueError: the file is missing, damaged, or holds anything but plain arrays; the message is one line.
    """
    if not path.is_file():
        raise ValueError("is not a file")
    try:
        with zipfile.ZipFile(path) as archive:
            return {info.filename.removesuffix(".npy"): _read(archive, info) for info in archive.infolist()}
    except Exception as error:  # damaged archives raise almost anything
        raise ValueError((str(error) or type(error).__name__).splitlines()[0][:200]) from error


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{info.filename} has the format {version}")
        shape, _, dtype = _HEADERS[version](file)
        if dtype.hasobject or dtype.names:
            raise ValueError(f"{info.filename} holds {dtype}, not plain numbers or text")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size != info.file_size - file.tell() or size > _LARGEST:
            raise ValueError(f"{info.filename} has {info.file_size} bytes, which do not fit {shape} of {dtype}")
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
