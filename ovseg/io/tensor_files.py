"""Writing of arrays, computed piece by piece, as safetensors or NumPy's npz: whole or not at all."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ovseg.errors import OvsegError
from ovseg.io.files import atomic_path

TENSOR_SUFFIXES = (".safetensors", ".npz")
_SAFETENSORS = {"float16": "F16", "float32": "F32", "uint8": "U8", "int64": "I64"}


@dataclass(frozen=True)
class Pieces:
    """An array that is computed piece by piece.

    Attributes:
        shape: of the whole.
        dtype: NumPy's name of the type: float16, float32, uint8 or int64.
        pieces: called to compute it; returns arrays which follow each other along the first axis.
    """

    shape: tuple[int, ...]
    dtype: str
    pieces: Callable[[], Iterable[np.ndarray]]

    @classmethod
    def of(cls, array: np.ndarray) -> Pieces:
        return cls(array.shape, array.dtype.name, lambda: (array,))

    @property
    def size(self) -> int:
        """Number of bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    def write(self, file: BinaryIO) -> None:
        """Write the bytes of all pieces."""
        written = 0
        for piece in self.pieces():
            content = np.ascontiguousarray(piece, dtype=np.dtype(self.dtype).newbyteorder("<"))
            written += content.nbytes
            file.write(content.data)
        if written != self.size:
            raise ValueError(f"{written} bytes of {self.size} were given")


def check_tensor_file(path: str | Path) -> None:
    """Raise OvsegError unless the suffix is one of :data:`TENSOR_SUFFIXES`."""
    if Path(path).suffix.lower() not in TENSOR_SUFFIXES:
        raise OvsegError(f"{path} is neither .safetensors nor .npz: give a file name with one of these suffixes")


def write_tensors(path: str | Path, tensors: Mapping[str, Pieces], metadata: Mapping[str, str]) -> None:
    """Write arrays to a file, through a temporary one; an existing file is replaced.

    Args:
        path: of a suffix in :data:`TENSOR_SUFFIXES`. Neither format needs pickles to be read.
        tensors: arrays by name.
        metadata: texts; of ``.npz`` an entry ``metadata``, their JSON.

    Raises:
        OvsegError: another suffix, a folder that cannot be written, a full disk.
    """
    check_tensor_file(path)
    with atomic_path(path) as temporary:
        if Path(path).suffix.lower() == ".npz":
            _write_npz(temporary, tensors, metadata)
        else:
            _write_safetensors(temporary, tensors, metadata)


def _write_safetensors(path: Path, tensors: Mapping[str, Pieces], metadata: Mapping[str, str]) -> None:
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for name, tensor in tensors.items():
        kind, end = _SAFETENSORS[tensor.dtype], start + tensor.size
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            tensor.write(file)


def _write_npz(path: Path, tensors: Mapping[str, Pieces], metadata: Mapping[str, str]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("metadata.npy", "w") as file:
            np.lib.format.write_array(file, np.array(json.dumps(dict(metadata))), allow_pickle=False)
        for name, tensor in tensors.items():
            kind = np.dtype(tensor.dtype).newbyteorder("<").str
            header = {"descr": kind, "fortran_order": False, "shape": tensor.shape}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                tensor.write(file)
