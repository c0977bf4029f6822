"""Conversion of files, bytes, arrays, tensors and Pillow images to RGB arrays."""

from __future__ import annotations

import os
from io import BytesIO
from typing import BinaryIO, TypeAlias

import numpy as np
import torch
from PIL import Image

from ovseg.errors import OvsegError
from ovseg.io.images import decode_image, opened_to_rgb, read_image

ImageLike: TypeAlias = "str | os.PathLike | bytes | BinaryIO | np.ndarray | torch.Tensor | Image.Image"
_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_LONGEST_NAME = 4096  # characters; a longer text is not a file name


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
        return decode_image(BytesIO(image), "the image given as bytes"), None
    if isinstance(image, torch.Tensor):
        return _values_to_rgb(image, "tensor"), None
    if isinstance(image, np.ndarray):
        return _values_to_rgb(image, "array"), None
    if callable(getattr(image, "read", None)):
        return decode_image(BytesIO(_content(image)), "the image in the file object"), None
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
    if values.dtype not in (np.uint8, torch.uint8):
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
