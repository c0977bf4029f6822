"""Conversion of images in any form to RGB arrays, with clear errors for damaged files."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
from PIL import ExifTags, Image

from ovseg.errors import OvsegError, reason_of
from ovseg.io.files import check_file

if TYPE_CHECKING:  # they take seconds to import: the scripts of datasets/, which read images, need neither
    import torch
    from detectron2.data import transforms as T

# Pillow refuses beyond twice this number to guard against decompression bombs; about 0.5 GB as RGB
LARGEST_IMAGE = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)  # pixels
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "TGA")
_STRIP = 1 << 22  # pixels that are converted at a time
ALPHA_BACKGROUND = (255, 255, 255)  # RGB behind transparent pixels
_PAGE_STARTS = (b"<!doctype", b"<html", b"<?xml", b"<svg", b"<head")
ImageLike: TypeAlias = "str | os.PathLike | bytes | BinaryIO | np.ndarray | torch.Tensor | Image.Image"
_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_LONGEST_NAME = 4096  # characters; a longer text is not a file name


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file of any Pillow mode.

    The EXIF orientation is applied, transparency is composited over white, only the first frame or page is read, and
    16-bit grey is scaled from its full range. See :func:`to_rgb` for other modes.

    Args:
        path: file in one of :data:`FORMATS`.

    Returns:
        (H,W,3) uint8 RGB, contiguous and writable.

    Raises:
        OvsegError: the file is missing, empty, truncated, damaged, not an image, or has more than ``LARGEST_IMAGE``
            pixels (178,956,970; checked in the header, before memory is allocated). The message names the file.
    """
    path = Path(path)
    try:
        return decode_image(path, str(path))
    except OvsegError:
        if check_file(path, "image").st_size == 0:  # a missing file and the like has a message of its own
            raise OvsegError(f"{path} is empty (0 bytes): copy or download it again") from None
        raise


def decode_image(file: Path | io.BytesIO, name: str, upright: bool = True) -> np.ndarray:
    """Decode an existing file, or the content of a file, like :func:`read_image`.

    Args:
        file: the file, or its content.
        name: for messages.
        upright: False leaves out the EXIF orientation.

    Raises:
        OvsegError: see :func:`read_image`.
    """
    with _explained(name, file), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # raised at half of our limit
        with open_image(file) as image:
            return to_rgb(image, upright)


def opened_to_rgb(image: Image.Image) -> np.ndarray:
    """Convert like :func:`to_rgb` a Pillow image that may be lazily loaded from a damaged or closed file.

    Raises:
        OvsegError: see :func:`read_image`.
    """
    if 0 in image.size:
        raise OvsegError(f"a Pillow image of {image.width}x{image.height} pixels has no pixel")
    with _explained(getattr(image, "filename", "") or "the Pillow image"):
        return to_rgb(image)


@contextlib.contextmanager
def _explained(path: str, file: Path | io.BytesIO | None = None) -> Iterator[None]:
    """Convert exceptions of Pillow to an OvsegError that names ``path``."""
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
    except Exception as error:  # Pillow's decoders raise almost anything on damaged data
        raise OvsegError(f"{path} is truncated or damaged and cannot be read ({reason_of(error)})") from error


def open_image(file: str | Path | BinaryIO) -> Image.Image:
    """Open an image in one of :data:`FORMATS`; for some other formats Pillow would start external programs."""
    Image.init()
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


def pixel_count(path: str | Path) -> int:
    """Return the number of pixels in the header of an image file; 1 if it cannot be read."""
    try:
        with open_image(path) as image:
            return max(1, image.width * image.height)
    except Exception:  # Pillow raises almost anything on damaged data; reading the image explains it
        return 1


def to_rgb(image: Image.Image, upright: bool = True) -> np.ndarray:
    """Convert an opened Pillow image to RGB.

    16-bit grey is divided by 257 (0..65535 -> 0..255). 32-bit integers and floats are kept if they lie within 0..255,
    multiplied by 255 if floats within 0..1, divided by 257 if integers within 0..65535, else stretched from their
    smallest to their largest value; NaN and infinities become black. The image is converted in strips, so that little
    memory is used in addition to Pillow's 4 bytes and the result's 3 bytes per pixel.

    Args:
        image: any mode; loaded here when it is still lazy.
        upright: apply the EXIF orientation.

    Returns:
        (H,W,3) uint8 RGB, contiguous and writable.

    Raises:
        OvsegError: a mode that has no conversion to RGB.
    """
    image.load()
    width, height = image.size
    orientation = orientation_of(image) if upright else 1
    result = np.empty((width, height, 3) if orientation >= 5 else (height, width, 3), np.uint8)
    target = _AS_STORED.get(orientation, lambda upright: upright)(result)
    convert = _grey_to_8_bit(image) if image.mode.startswith(("I", "F")) else _colours
    for rows, strip in _strips(image):
        target[rows] = convert(strip)
    return result


# views of an upright (H,W,3) array in the order in which a camera stored it, by EXIF's orientation
_AS_STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright[:, ::-1].swapaxes(0, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: upright[::-1].swapaxes(0, 1),
}


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) if the image has none."""
    try:
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data: the pixels may be intact
        return 1
    return orientation if orientation in range(1, 9) else 1


def _strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """Yield an image in strips of rows; a small image as one strip."""
    width, height = image.size
    count = max(1, _STRIP // width)
    for top in range(0, height, count):
        bottom = min(top + count, height)
        yield slice(top, bottom), image if count >= height else image.crop((0, top, width, bottom))


def _colours(strip: Image.Image) -> np.ndarray:
    """Convert a strip of a mode with 8 bits per channel or less to (h,w,3) uint8."""
    try:
        if strip.has_transparency_data:
            strip = strip.convert("RGBA")
            background = Image.new("RGB", strip.size, ALPHA_BACKGROUND)
            background.paste(strip, mask=strip.getchannel("A"))
            strip = background
        return np.asarray(strip.convert("RGB"))
    except ValueError as error:
        raise OvsegError(f"images of mode {strip.mode} cannot be turned into RGB: save it as RGB first") from error


def _grey_to_8_bit(image: Image.Image) -> Callable[[Image.Image], np.ndarray]:
    """Return a function that converts strips of uint16, int32 or float32 to (h,w,1) uint8; see :func:`to_rgb`."""
    kind = np.asarray(image.crop((0, 0, 1, 1))).dtype
    if kind.kind == "u" and kind.itemsize == 2:
        return lambda strip: ((np.asarray(strip).astype(np.uint32) + 128) // 257).astype(np.uint8)[:, :, None]
    integers = kind.kind in "iu"

    def finite(strip: Image.Image) -> np.ndarray:
        return np.nan_to_num(np.asarray(strip).astype(np.float32), copy=False, nan=0.0, posinf=0.0, neginf=0.0)

    ends = [(values.min(), values.max()) for values in (finite(strip) for _, strip in _strips(image))]
    low, high = float(min(least for least, _ in ends)), float(max(most for _, most in ends))

    def scaled(strip: Image.Image) -> np.ndarray:
        values = finite(strip)
        if not integers and low >= 0 and high <= 1:
            values *= 255
        elif integers and low >= 0 and 255 < high <= 65535:
            values /= 257
        elif low < 0 or high > 255:
            values = (values - low) * (255 / (high - low) if high > low else 0)
        return np.rint(values).astype(np.uint8)[:, :, None]

    return scaled


def png_options(level: int) -> dict[str, int]:
    """Return Pillow's options for a PNG file of a drawing or a label map, from 0 (not compressed) to 9 (smallest).

    Up to 5, only repeated bytes are sought, which takes about half the time of zlib's default strategy at level 4:
    label maps are smaller, and drawings of colour photographs are of about the same size.
    """
    return {"compress_level": level} | ({"compress_type": zlib.Z_RLE} if 0 < level <= 5 else {})


def save_image(image: Image.Image, path: Path, **options: Any) -> None:
    """Write an image in the format of its suffix, completely or with an error.

    On a full disk Pillow itself writes truncated files without an error, except for PNG.
    """
    if path.suffix.lower() == ".png":
        image.save(path, **options)
        return
    stream = io.BytesIO()
    stream.name = str(path)  # Pillow reads the format from it
    image.save(stream, **options)
    path.write_bytes(stream.getbuffer())


def _what_instead(file: Path | io.BytesIO | None) -> str:
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


def as_rgb(image: ImageLike) -> tuple[np.ndarray, str | None]:
    """Convert an image to RGB.

    Args:
        image: name of a file; content of a file as bytes or as a binary file object, which is read from its start; a
            Pillow image; or uint8 values 0..255: a NumPy array (H,W,3) RGB, (H,W) or (H,W,1) grey, (H,W,4) RGBA, or a
            tensor (H,W) or with the same channels last. Channels may come first if that is unambiguous. Transparent
            images are composited over white.

    Returns:
        (H,W,3) uint8 RGB, and the name of the file or None.

    Raises:
        OvsegError: any other type, a tensor whose channels may be first or last, or an image that cannot be read.
    """
    import torch

    if isinstance(image, (str, os.PathLike)):
        name = os.fsdecode(image)
        if len(name) > _LONGEST_NAME:
            raise OvsegError(
                f"an image is given as a text of {len(name):,} characters: give a file's name, or its content as bytes"
            )
        if "://" in name:
            raise OvsegError(f"{name} is a web address, and nothing is downloaded: save the file, then give its path")
        return read_image(name), name
    if isinstance(image, Image.Image):
        return opened_to_rgb(image), getattr(image, "filename", "") or None
    if isinstance(image, (bytes, bytearray, memoryview)):
        return decode_image(io.BytesIO(image), "the image given as bytes"), None
    if isinstance(image, torch.Tensor):
        return _values_to_rgb(image, "tensor"), None
    if isinstance(image, np.ndarray):
        return _values_to_rgb(image, "array"), None
    if callable(getattr(image, "read", None)):
        return decode_image(io.BytesIO(_content(image)), "the image in the file object"), None
    raise OvsegError(
        f"an image must be a file, a NumPy array or a Pillow image, not {type(image).__name__} (or a file's content as "
        "bytes or a file object, or a uint8 tensor)"
    )


def _content(file: BinaryIO) -> bytes:
    if getattr(file, "seekable", lambda: False)():
        file.seek(0)  # after writing, the position is at the end
    content = file.read()
    if not isinstance(content, bytes):
        raise OvsegError("an image is given as a file object of text: open the file in binary mode, open(name, 'rb')")
    return content


def _values_to_rgb(values: np.ndarray | torch.Tensor, kind: str) -> np.ndarray:
    if str(values.dtype) not in ("uint8", "torch.uint8"):
        cast = "to(torch.uint8)" if kind == "tensor" else "astype(np.uint8)"
        raise OvsegError(
            f"an image {kind} must be uint8 with values 0..255, not {str(values.dtype).removeprefix('torch.')}: "
            f"where its values are 0..1, give (image * 255).round().{cast}"
        )
    array = np.ma.getdata(values) if kind == "array" else values.detach().cpu().numpy()
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or 0 in array.shape or not {array.shape[0], array.shape[2]} & set(_CHANNELS):
        raise _bad_shape(values, kind)
    first, last = array.shape[0] in _CHANNELS, array.shape[2] in _CHANNELS
    if kind == "array" and values.ndim == 3 and array.shape[2] != 4:
        first &= not last  # arrays are (height, width, channels)
    if first and last and values.ndim == 3:
        raise _bad_shape(values, kind)
    if not last:
        array = array.transpose(1, 2, 0)
    if array.shape[2] == 4:
        return opened_to_rgb(Image.fromarray(np.ascontiguousarray(array), "RGBA"))
    return np.array(np.broadcast_to(array, (*array.shape[:2], 3)))


def _bad_shape(values: np.ndarray | torch.Tensor, kind: str) -> OvsegError:
    return OvsegError(
        f"an image {kind} must be (height, width, 3) RGB or (height, width) grey, not {tuple(values.shape)}"
        + (": give one image at a time" if values.ndim == 4 else "")
        + (": its channels may be the first or the last axis" if values.ndim == 3 and 0 not in values.shape else "")
    )


def resize_transform(height: int, width: int, min_size: int, max_size: int, antialias: bool = True) -> T.Transform:
    """The resize of Detectron2's ``ResizeShortestEdge`` for one size; a long image keeps a pixel of its short side.

    Args:
        height, width: of the image, pixels.
        min_size: its shortest side becomes this many pixels; 0 or less leaves the image as it is.
        max_size: unless its longest side would be more than this.
        antialias: average pixels when the image shrinks, as Pillow does; False for OpenCV's bilinear interpolation.
    """
    from detectron2.data import transforms as T

    if min_size <= 0:
        return T.NoOpTransform()
    new_size = T.ResizeShortestEdge.get_output_shape(height, width, min_size, max_size)
    resize = keep_a_pixel(T.ResizeTransform(height, width, *new_size, Image.Resampling.BILINEAR))
    return resize if antialias else _opencv_resize(resize)


def _opencv_resize(resize: T.ResizeTransform) -> T.Transform:
    """Return the transform to the same size that interpolates images as OpenCV does."""
    import cv2
    from detectron2.data import transforms as T

    class OpenCVResize(T.ResizeTransform):
        def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
            if interp is not None:
                return super().apply_image(img, interp)
            return cv2.resize(img, (self.new_w, self.new_h), interpolation=cv2.INTER_LINEAR)

    return OpenCVResize(resize.h, resize.w, resize.new_h, resize.new_w, resize.interp)


def keep_a_pixel(transform: T.Transform) -> T.Transform:
    from detectron2.data import transforms as T

    if isinstance(transform, T.ResizeTransform):
        transform.new_h, transform.new_w = max(1, transform.new_h), max(1, transform.new_w)
    return transform


def label_areas(label_map: np.ndarray, count: int) -> np.ndarray:
    """Count the pixels of each label 0..count-1 in an (H,W) map of integers; negative labels are ignored.

    Returns:
        (count,) int64.
    """
    areas = np.zeros(count, np.int64)
    for rows in np.array_split(label_map, max(1, label_map.size >> 22)):  # bincount copies to 8 bytes per pixel
        areas += np.bincount(rows[rows >= 0], minlength=count)
    return areas


def read_labels(file_name: str) -> np.ndarray:
    """Read a label file as it is: no scaling, no palette, 8 or 16 bit.

    Returns:
        (H,W) array of an integer type.

    Raises:
        OvsegError: the file is missing, broken, or not a single-channel image of integers.
    """
    from detectron2.utils.file_io import PathManager

    remedy = "prepare its data set again"
    try:
        with PathManager.open(str(file_name), "rb") as file, open_image(file) as image:
            labels = np.array(image)
    except FileNotFoundError as error:
        raise OvsegError(f"label file {file_name} is missing: {remedy}") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged data
        raise OvsegError(f"label file {file_name} cannot be read ({reason_of(error)}): {remedy}") from error
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise OvsegError(
            f"label file {file_name} has shape {labels.shape} and type {labels.dtype}: labels must be a "
            "single-channel image of integers"
        )
    return labels
