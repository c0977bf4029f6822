"""Raw values of label files -> class indices, and an account of the values that have no class."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ovseg.errors import OvsegError, reason_of
from ovseg.io.images import open_image

IGNORED, UNLISTED = -1, -2  # in place of a class index: does not count; has no known class


@dataclass(frozen=True)
class Labels:
    """The labels of one image.

    Attributes:
        indices: (H,W) int32, class index, ``IGNORED`` or ``UNLISTED``.
        unlisted: pixels of each thing that has no class, by what messages call it.
        left_out: pixels of each thing that does not count and that the description does not name, likewise: shapes
            without an area, and what ``unlisted: ignore`` drops.
    """

    indices: np.ndarray
    unlisted: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)


def show_unlisted(unlisted: Mapping[str, int], most: int = 5) -> str:
    """Return ``value 7 (1,200 pixels), value 9 (3 pixels)``, the most frequent first."""
    ordered = sorted(unlisted.items(), key=lambda item: -item[1])
    shown = [f"{name} ({pixels:,} pixels)" if pixels else name for name, pixels in ordered[:most]]
    return ", ".join(shown) + (f" and {len(ordered) - most:,} more" if len(ordered) > most else "")


def settle(labels: Labels, unlisted: int) -> Labels:
    """Return the labels; with ``unlisted`` = IGNORED, what is unlisted is left out instead."""
    if unlisted == UNLISTED or not labels.unlisted:
        return labels
    indices = np.where(labels.indices == UNLISTED, np.int32(IGNORED), labels.indices)
    return Labels(indices, left_out={**labels.unlisted, **labels.left_out})


def look_up(
    raw: np.ndarray, table: Mapping[int, int], unlisted: int = UNLISTED, show: Callable[[int], str] = str
) -> Labels:
    """Return the class indices of raw values.

    Args:
        raw: (H,W) integers.
        table: class index or IGNORED by raw value; not empty.
        unlisted: what other values become, UNLISTED or IGNORED.
        show: what messages call a raw value.
    """
    keys = np.array(sorted(table), dtype=np.int64)
    classes = np.array([table[key] for key in keys.tolist()], dtype=np.int32)
    if raw.dtype.kind == "u" and raw.dtype.itemsize <= 2:  # most label files: several times as fast as searching
        of_value = np.full(np.iinfo(raw.dtype).max + 1, UNLISTED, dtype=np.int32)
        fits = (keys >= 0) & (keys < len(of_value))
        of_value[keys[fits]] = classes[fits]
        indices = of_value[raw]
    else:
        places = np.searchsorted(keys, raw).clip(max=len(keys) - 1)
        indices = np.where(keys[places] == raw, classes[places], np.int32(UNLISTED))
    if not (foreign := indices == UNLISTED).any():
        return Labels(indices)
    values, counts = np.unique(raw[foreign], return_counts=True)
    found = {show(v): n for v, n in zip(values.tolist(), counts.tolist(), strict=True)}
    return settle(Labels(indices, found), unlisted)


def one_channel(raw: np.ndarray, path: Path) -> np.ndarray:
    """Return (H,W) integers of a mask file's pixels; of several equal channels, one.

    Raises:
        OvsegError: real colours, or numbers that are not whole.
    """
    if raw.ndim == 3:
        colors = raw if raw.shape[2] == 3 else raw[:, :, : 1 if raw.shape[2] == 2 else 3]  # without transparency
        if raw.shape[2] != 3 and np.ptp(raw[:, :, -1]) and not np.ptp(colors):
            raise OvsegError(f"mask {path} has its labels in the transparency: save that channel as grey values")
        if (colors != colors[:, :, :1]).any():
            raise OvsegError(f"mask {path} is a colour image: list the class of each colour in `colors`")
        raw = colors[:, :, 0]
    if raw.dtype == bool:
        raw = raw.astype(np.uint8)
    if raw.dtype.kind == "f" and (raw == np.rint(raw)).all() and np.abs(raw).max() < 2**24:  # rasters of GIS programs
        raw = raw.astype(np.int64)
    if raw.dtype.kind not in "ui":
        raise OvsegError(f"mask {path} holds numbers of type {raw.dtype}: save whole numbers, 8 or 16 bit")
    return raw


def packed_colors(path: Path) -> np.ndarray:
    """Return (H,W) int32, R * 65536 + G * 256 + B of each pixel of a mask file, with its palette applied.

    Raises:
        OvsegError: the file cannot be read.
    """
    red, green, blue = np.moveaxis(raw_pixels(path, "RGB").astype(np.int32), 2, 0)
    return red << 16 | green << 8 | blue


def raw_pixels(path: Path, mode: str | None = None) -> np.ndarray:
    """Return the values of a mask file, (H,W) or (H,W,C), with palette indices; with ``mode``, converted by Pillow.

    Raises:
        OvsegError: the file cannot be read.
    """
    with _opened(path) as image:
        return np.array(image if mode is None else image.convert(mode))


def is_index_file(path: Path) -> bool:
    """Return whether a file has one channel of whole numbers, usable without conversion; reads its header only.

    Raises:
        OvsegError: the file cannot be read.
    """
    with _opened(path) as image:
        return image.mode in ("L", "P") or image.mode.startswith("I")


def _check_lossless(path: Path, image: Image.Image) -> None:
    """Raise OvsegError where compression changes pixels, and so adds values and colours.

    Nothing is decoded before, which for some other formats would start programs.
    """
    if image.format in _IS_LOSSY:
        lossy = _IS_LOSSY[image.format](path.read_bytes())
    else:
        lossy = image.format not in _LOSSLESS
        lossy |= image.format == "TIFF" and image.info.get("compression") in _LOSSY_TIFF
    if lossy:
        raise OvsegError(
            f"mask {path} is a {image.format} file with lossy compression, which invents values and colours at the "
            "edges of objects: save masks as PNG, from the original labels (not from this file)"
        )


def _is_lossy_webp(content: bytes) -> bool:
    place = 12  # after RIFF, the length and WEBP
    while place + 8 <= len(content):
        chunk = content[place : place + 4]
        if chunk in (b"VP8 ", b"VP8L"):
            return chunk == b"VP8 "
        inside = chunk == b"ANMF"  # a frame of an animation: 16 bytes, then chunks
        length = int.from_bytes(content[place + 4 : place + 8], "little")
        place += 24 if inside else 8 + length + length % 2
    return True


def _is_lossy_jpeg2000(content: bytes) -> bool:
    """Check the wavelet of the coding style, 14 bytes after its mark: 1 is the reversible one."""
    mark = content.find(b"\xff\x52")
    return mark < 0 or content[mark + 13 : mark + 14] != b"\x01"


_LOSSLESS = ("PNG", "TIFF", "BMP", "DIB", "GIF", "PPM", "TGA", "PCX", "SGI")
_LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp", "jp2000")
_IS_LOSSY = {"WEBP": _is_lossy_webp, "JPEG2000": _is_lossy_jpeg2000}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Yield the opened image; convert errors, including those of decoding in the block, to one sentence."""
    try:
        if path.stat().st_size == 0:
            raise OvsegError(f"mask {path} is empty (0 bytes): copy or make it again")
        with open_image(path) as image:
            _check_lossless(path, image)
            yield image
    except OvsegError:
        raise
    except FileNotFoundError as error:
        raise OvsegError(f"there is no mask {path}") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged data
        raise OvsegError(f"mask {path} cannot be read ({reason_of(error)}): copy or make it again") from error
