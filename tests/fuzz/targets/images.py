"""Image files of every format and mode that Pillow writes, as images and as label files."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from ovseg.io.images import read_image, read_labels
from tests.fuzz.mutate import mutate_bytes

_FORMATS = {
    **{"PNG": ".png", "JPEG": ".jpg", "GIF": ".gif", "TIFF": ".tif", "WEBP": ".webp", "BMP": ".bmp", "PPM": ".ppm"},
    **{"TGA": ".tga", "ICO": ".ico", "PCX": ".pcx", "DDS": ".dds", "SGI": ".sgi", "JPEG2000": ".jp2", "AVIF": ".avif"},
    **{"IM": ".im", "MSP": ".msp", "XBM": ".xbm", "EPS": ".eps", "ICNS": ".icns", "SPIDER": ".spi", "DIB": ".dib"},
}
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "F")
_SIZES = (0, 1, 2, 3000, 13_000, 20_000, 65_535, 70_000, 2**31 - 1, 2**32 - 1)


def encoded_images() -> list[tuple[str, bytes]]:
    """(suffix, file) of a small image in each format and mode that goes."""
    generator, files = np.random.default_rng(0), []
    pixels = Image.fromarray(generator.integers(0, 4, (6, 8, 3), np.uint8) * 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode in _MODES:
        image = pixels.convert("L").convert(mode) if mode in ("I", "I;16", "F") else pixels.convert(_via(mode))
        image = image if image.mode == mode else image.convert(mode)
        for name, suffix in _FORMATS.items():
            several = {"save_all": True, "append_images": [image]} if name in ("GIF", "TIFF", "WEBP") else {}
            with_exif = {"exif": exif} if name in ("JPEG", "PNG", "TIFF", "WEBP") and mode == "RGB" else {}
            file = io.BytesIO()
            try:
                image.save(file, name, **several, **with_exif)
            except (OSError, ValueError, KeyError, TypeError):
                continue
            files.append((suffix, file.getvalue()))
    files += [(".tif", _tiff(pixels, how)) for how in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")]
    page = b"<!doctype html><p>Sign in"
    return [*files, (".png", page), (".jpg", b""), (".png", b"version https://git-lfs.github.com/spec/v1\n")]


def _via(mode: str) -> str:
    return {"LA": "RGBA", "LAB": "RGB"}.get(mode, mode) if mode != "LAB" else "RGB"


def _tiff(image: Image.Image, compression: str) -> bytes:
    file = io.BytesIO()
    image.save(file, "TIFF", compression=compression)
    return file.getvalue()


def odd_image(rng: Random, files: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    """A damaged image file and its suffix."""
    suffix, data = rng.choice(files)
    kind = rng.randrange(8)
    if kind == 0:  # a whole image of another kind than its name says
        return rng.choice((".png", ".jpg", ".tif", ".gif", ".xyz", "")), data
    if kind < 3 and data[:4] == b"\x89PNG":
        return suffix, _other_header(rng, data)
    return suffix, mutate_bytes(rng, data, [data for _, data in files])


def _other_header(rng: Random, data: bytes) -> bytes:
    """A PNG of another size, depth or kind of colour, with right checksums."""
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", data[16:29])
    if rng.random() < 0.7:
        width, height = rng.choice(((rng.choice(_SIZES), height), (width, rng.choice(_SIZES)), (13_000, 13_000)))
    else:
        depth, colour = rng.choice((1, 2, 4, 8, 16, 0, 32)), rng.choice((0, 2, 3, 4, 6, 1, 7))
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colour, *rest)
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


class Images:
    """Files given to the readers of images and of labels."""

    name = "images"
    inputs = 2000

    def __init__(self, folder: Path) -> None:
        Image.preinit()
        Image.init()
        self.files = encoded_images()

    def make(self, rng: Random, folder: Path) -> Path:
        suffix, data = odd_image(rng, self.files)
        path = folder / f"image{suffix}"
        path.write_bytes(data)
        return path

    def steps(self, path: Path) -> Iterable[Callable[[], object]]:
        return [partial(_read, path), partial(read_labels, str(path))]


def _read(path: Path) -> None:
    pixels = read_image(path)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise AssertionError(f"an image of shape {pixels.shape} and type {pixels.dtype}")
