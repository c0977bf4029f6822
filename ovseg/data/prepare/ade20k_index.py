"""The list of files in ADE20K's ``index_ade20k.pkl``, read without running anything that a pickle may hold."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from ovseg.data.prepare.sources import NothingFound
from ovseg.errors import OvsegError, reason_of


def read_index(path: Path) -> list[PurePosixPath]:
    """Return the images that an index lists, as paths below the root of all data sets.

    The index's big tables (objects by images, 817 MB in the release) are read over, not kept.

    Raises:
        NothingFound: there is no such file.
        OvsegError: it is damaged, holds other things than an index does, or a path that leads out of the root.
    """
    from ovseg.checkpoint.pickles import BoundedFile, Call, StandIn, read_pickle  # needs torch, which takes seconds
    from ovseg.checkpoint.stand_ins import stand_in

    def any_object(name: str) -> Any:
        return Call(array) if name.startswith("numpy.") else stand_in(name)

    def array(*_: Any) -> StandIn:
        """Stand for any NumPy object: nothing of it is kept but the list inside an array of objects."""
        return StandIn(lambda state: state[-1] if isinstance(state, tuple) and isinstance(state[-1], list) else None)

    try:
        with path.open("rb") as file:
            content = read_pickle(BoundedFile(file, path.stat().st_size), any_object)
        names, folders = (_texts(content[key]) for key in ("filename", "folder"))
        files = [PurePosixPath(folder) / name for folder, name in zip(folders, names, strict=True)]
    except FileNotFoundError as error:
        raise NothingFound(f"index {path} is missing") from error
    except Exception as error:  # damaged pickles raise almost anything
        raise OvsegError(
            f"{path} is not ADE20K's index, or is damaged ({reason_of(error)}): unpack it again, or leave it out, "
            "since the folders hold the same"
        ) from error
    for file in files:
        if file.is_absolute() or ".." in file.parts:
            raise OvsegError(f"{path} lists {str(file)!r}, which leads out of the data set: do not use this file")
    return files


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("its filename and folder are not lists of texts")
    return values
