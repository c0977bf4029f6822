"""The list of files in ADE20K's ``index_ade20k.pkl``, read without running anything that a pickle may hold."""

from __future__ import annotations

import codecs
import pickle
from pathlib import Path, PurePosixPath
from typing import Any

from ovseg.data.prepare.sources import NothingFound
from ovseg.errors import OvsegError


class _Array:
    """Stands for any NumPy object of the pickle; keeps nothing but the list inside an array of objects."""

    def __init__(self, *args: Any):
        self.values: list | None = None

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and isinstance(state[-1], list):
            self.values = state[-1]


def _latin1(text: str, encoding: str) -> bytes:
    # how old protocols store the bytes of an array
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding}")
    return codecs.encode(text, "latin1")


_STAND_INS = {
    ("numpy", "dtype"): _Array,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _latin1,
    **{
        (module, name): _Array
        for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
        for name in ("_reconstruct", "scalar", "_frombuffer")
    },
}


class _Unpickler(pickle.Unpickler):
    """Knows plain Python values, and NumPy's names as stand-ins: nothing of a pickle's own choice is called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _STAND_INS[module, name]


def read_index(path: Path) -> list[PurePosixPath]:
    """The images that an index lists, as paths below the root of all data sets.

    The index's big tables (objects by images, 817 MB in the release) are read over, not kept.

    Raises:
        NothingFound: there is no such file.
        OvsegError: it is damaged, holds other things than an index does, or a path that leads out of the root.
    """
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="latin1").load()
        names, folders = (_texts(content[key]) for key in ("filename", "folder"))
        files = [PurePosixPath(folder) / name for folder, name in zip(folders, names, strict=True)]
    except FileNotFoundError as error:
        raise NothingFound(f"index {path} is missing") from error
    except Exception as error:  # damaged pickles raise almost anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OvsegError(
            f"{path} is not ADE20K's index, or is damaged ({reason}): unpack it again, or leave it out, since the "
            "folders tell the same"
        ) from error
    for file in files:
        if file.is_absolute() or ".." in file.parts:
            raise OvsegError(f"{path} lists {str(file)!r}, which leads out of the data set: do not use this file")
    return files


def _texts(values: Any) -> list[str]:
    values = values.values if isinstance(values, _Array) else values
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("its filename and folder are not lists of texts")
    return values
