"""Pictures of any kind -> RGB arrays, and damaged ones -> one clear sentence."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ovseg.errors import OvsegError

# Pillow refuses beyond twice this number to guard against decompression bombs; about 0.5 GB as RGB
LARGEST_IMAGE = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)  # pixels
ALPHA_BACKGROUND = (255, 255, 255)  # what shows through where a picture is transparent
_PAGE_STARTS = (b"<!doctype", b"<html", b"<?xml", b"<svg", b"<head")


def read_image(path: str | Path) -> np.ndarray:
    """Read a picture of any mode that Pillow knows.

    The camera's orientation (EXIF) is applied; transparency is put on white; of an animation or a file with several
    pages the first is taken; 16-bit grey is scaled from its full range. See :func:`to_rgb` for the rest.

    Args:
        path: file of any format that Pillow reads.

    Returns:
        (H,W,3) uint8 RGB, contiguous and writable.

    Raises:
        OvsegError: the file is missing, empty, truncated, damaged, no image, or has more than ``LARGEST_IMAGE``
            pixels (178,956,970; read from the header, so nothing large is allocated). The message names the file.
    """
    path = Path(path)
    _check_file(path)
    return decode_image(path, str(path))


def decode_image(file: Path | BytesIO, name: str) -> np.ndarray:
    """As :func:`read_image`, of a file that is there, or of a file's content; ``name`` is for messages."""
    with _explained(name, file), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # half of our limit: still fine
        with Image.open(file) as image:
            return to_rgb(image)


def opened_to_rgb(image: Image.Image) -> np.ndarray:
    """As :func:`to_rgb`; an image that is still lazy may turn out to be damaged or closed, which is said as there."""
    if 0 in image.size:
        raise OvsegError(f"a Pillow image of {image.width}x{image.height} pixels has no pixel")
    with _explained(getattr(image, "filename", "") or "the Pillow image"):
        return to_rgb(image)


@contextlib.contextmanager
def _explained(path: str, file: Path | BytesIO | None = None) -> Iterator[None]:
    """Turn what Pillow raises into an OvsegError that names ``path``."""
    try:
        yield
    except OvsegError as error:
        raise OvsegError(f"{path}: {error}") from error
    except Image.DecompressionBombError as error:
        raise OvsegError(
            f"{path} has more than {LARGEST_IMAGE:,} pixels, the largest size that is read: make it smaller first"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise OvsegError(f"{path} {_what_instead(file)}") from error
    except PermissionError as error:
        raise OvsegError(f"cannot read {path}: {error.strerror}") from error
    except MemoryError as error:
        raise OvsegError(f"not enough memory to read {path}: make it smaller first") from error
    except (
        Exception
    ) as error:  # Pillow's decoders raise almost anything on damaged data: SyntaxError, struct.error, ...
        raise OvsegError(f"{path} is truncated or damaged and cannot be read ({_one_line(error)})") from error


def to_rgb(image: Image.Image) -> np.ndarray:
    """Turn an opened Pillow image into RGB.

    16-bit grey is divided by 257 (0..65535 -> 0..255). 32-bit integers and floats are kept if they lie within 0..255,
    multiplied by 255 if floats within 0..1, divided by 257 if integers within 0..65535, else stretched from their
    smallest to their largest value; NaN and infinities are black.

    Args:
        image: any mode; loaded here when it is still lazy.

    Returns:
        (H,W,3) uint8 RGB, contiguous and writable.

    Raises:
        OvsegError: a mode that has no conversion to RGB.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        grey = _to_8_bit(np.asarray(image))
        return np.repeat(grey[:, :, None], 3, axis=2)
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            background = Image.new("RGB", image.size, ALPHA_BACKGROUND)
            background.paste(image, mask=image.getchannel("A"))
            image = background
        return np.array(image.convert("RGB"))
    except ValueError as error:
        raise OvsegError(f"pictures of mode {image.mode} cannot be turned into RGB; save it as RGB first") from error


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """(H,W) uint16, int32 or float32 -> (H,W) uint8; the rule is in :func:`to_rgb`."""
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    integers = values.dtype.kind in "iu"
    values = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if not integers and low >= 0 and high <= 1:
        values *= 255
    elif integers and low >= 0 and 255 < high <= 65535:
        values /= 257
    elif low < 0 or high > 255:
        values = (values - low) * (255 / (high - low) if high > low else 0)
    return np.rint(values).astype(np.uint8)


def _check_file(path: Path) -> None:
    try:
        if not path.exists():
            raise OvsegError(f"there is no image {path}")
        if path.is_dir():
            raise OvsegError(f"{path} is a folder, not an image")
        if not path.is_file():
            raise OvsegError(f"{path} is not a regular file")
        if path.stat().st_size == 0:
            raise OvsegError(f"{path} is empty (0 bytes): copy or download it again")
    except (OSError, ValueError) as error:  # a name too long, a byte 0 in it
        raise OvsegError(f"cannot read {str(path)!r}: {_one_line(error)}") from error


def _what_instead(file: Path | BytesIO | None) -> str:
    content = b""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            content = opened.read(512)
    elif file is not None:
        content = file.getvalue()[:512]
        if not content:
            return "is empty (0 bytes)"
    start = content.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(_PAGE_STARTS):
        return "is a web page or XML text, not an image: the download may have failed"
    return (
        "is not an image in a format that can be read (JPEG, PNG, TIFF, WebP, BMP, GIF, ...), or its start is damaged"
    )


def _one_line(error: Exception) -> str:
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return text[:120] or type(error).__name__
