"""Finding the whole image that a crop was cut from (specification of SCAN, section 12)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ovseg.data.worlds import is_split, split_folder
from ovseg.errors import OvsegError
from ovseg.io.files import is_file

_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class ImageRoot:
    """A folder of whole images.

    Attributes:
        folder: it exists.
        flag: the option that named it, for messages.
    """

    folder: Path
    flag: str

    def recorded(self, name: str, crop: str) -> Path:
        """Return the image that was recorded with a crop; ``name`` is relative to the folder.

        Raises:
            OvsegError: it is not there; ``crop`` says whose it is.
        """
        path = self.folder / name
        if not is_file(path):
            raise OvsegError(
                f"the whole image of {crop} is not there ({path}): give the folder of the images that the crops were "
                f"cut from as {self.flag}"
            )
        return path

    def of_crop(self, crop: Path) -> Path:
        """Return the image that a crop's name gives: what precedes its first underscore, as .jpg.

        ``000000000139_4.png`` was cut from ``000000000139.jpg``. Where that is missing, what precedes the next
        underscore is tried (``ADE_val_00000001_4.png``), with .jpeg and .png too.

        Raises:
            OvsegError: there is none.
        """
        for stem in _beginnings(crop.stem):
            for suffix in _SUFFIXES:
                path = self.folder / f"{stem}{suffix}"
                if is_file(path):
                    return path
        first = self.folder / f"{next(_beginnings(crop.stem))}.jpg"
        raise OvsegError(
            f"the whole image of the crop {crop} is not there ({first}): give the folder of the images that the crops "
            f"were cut from as {self.flag}; where the crops' names do not begin with the images', add a column image "
            "to the list of pairs"
        )


def find_image_root(name: str | None, flag: str) -> ImageRoot:
    """Return the folder of whole images of an option: a path, or a split of a world, such as ``toy:train``.

    Raises:
        OvsegError: it was not given, or there is no such folder.
    """
    if name is None:
        raise OvsegError(
            f"--tune contextual-shift shows CLIP the whole images of the crops too: give their folder as {flag}"
        )
    if is_split(name):
        return ImageRoot(split_folder(name), flag)
    folder = Path(name)
    if not folder.is_dir():
        raise OvsegError(f"{flag} {name} is no folder: give the one of the images that the crops were cut from")
    return ImageRoot(folder, flag)


def _beginnings(stem: str) -> Iterator[str]:
    """Yield what precedes the first underscore, the second, ...; at last the whole stem."""
    parts = stem.split("_")
    for count in range(1, len(parts) + 1):
        yield "_".join(parts[:count])
