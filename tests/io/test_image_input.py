"""What a Segmenter takes as an image: everything whose meaning is clear, and a sentence for the rest."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ovseg.errors import OvsegError
from ovseg.io.images import as_rgb

RGB = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]
OPAQUE = np.dstack([RGB, np.full((30, 40), 255, np.uint8)])


def png(array=RGB):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file  # at its end, as after writing


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (torch.from_numpy(RGB), RGB),
        (torch.from_numpy(RGB).permute(2, 0, 1), RGB),
        (torch.from_numpy(GREY.copy()), np.dstack([GREY] * 3)),
        (torch.from_numpy(GREY.copy())[None], np.dstack([GREY] * 3)),
        (GREY[:, :, None], np.dstack([GREY] * 3)),
        (GREY[None], np.dstack([GREY] * 3)),
        (RGB.transpose(2, 0, 1), RGB),
        (OPAQUE, RGB),
        (torch.from_numpy(OPAQUE), RGB),
        (RGB[:3], RGB[:3]),  # 3 pixels high, and channels last as arrays have them
        (RGB[:1, :1], RGB[:1, :1]),
        (RGB[::-1, ::-2], RGB[::-1, ::-2]),
        (Image.fromarray(RGB), RGB),
        (png().getvalue(), RGB),
        (bytearray(png().getvalue()), RGB),
        (png(), RGB),
    ],
)
def test_images_of_any_kind(image, expected):
    pixels, source = as_rgb(image)
    assert source is None and pixels.dtype == np.uint8 and np.array_equal(pixels, expected)


def test_an_open_file(tmp_path):
    (tmp_path / "a.png").write_bytes(png().getvalue())
    with open(tmp_path / "a.png", "rb") as file:
        assert np.array_equal(as_rgb(file)[0], RGB)
    with open(tmp_path / "a.png", encoding="latin-1") as file, pytest.raises(OvsegError, match="binary mode"):
        as_rgb(file)


def test_transparent_arrays_are_put_on_white():
    assert (as_rgb(np.zeros((5, 6, 4), np.uint8))[0] == 255).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(3, 30, 40), r"tensor must be uint8 .* not float32: .* give \(image \* 255\)\.round\(\)\.to\(torch"),
        (RGB / 255, r"array must be uint8 .* not float64: .*\(image \* 255\)\.round\(\)\.astype\(np\.uint8\)"),
        (RGB.astype(np.uint16), "not uint16"),
        (GREY > 100, "not bool"),
        (torch.zeros(3, 40, 3, dtype=torch.uint8), "may be the first or the last axis"),
        (torch.zeros(1, 3, 30, 40, dtype=torch.uint8), r"not \(1, 3, 30, 40\): give one image at a time"),
        (np.zeros((4, 40, 4), np.uint8), "may be the first or the last axis"),
        (np.zeros((30, 40, 2), np.uint8), r"\(height, width, 3\) RGB or \(height, width\) grey, not \(30, 40, 2\)"),
        (np.zeros((0, 40), np.uint8), r"not \(0, 40\)"),
        (np.zeros(7, np.uint8), r"not \(7,\)"),
        (Image.new("RGB", (0, 5)), "0x5 pixels has no pixel"),
        ("https://example.org/a.jpg", "is a web address, and nothing is downloaded"),
        ("A" * 100_000, "a text of 100,000 characters: give a file's name"),
        (b"", "the image given as bytes is empty"),
        (b"photo.jpg", "the image given as bytes is not an image"),
        (b"<html></html>", "the image given as bytes is a web page"),
        (png().getvalue()[:200], "the image given as bytes is truncated or damaged"),
        (io.BytesIO(b"x"), "the image in the file object is not an image"),
        (None, "an image must be a file, a NumPy array or a Pillow image, not NoneType"),
        ([[1, 2], [3, 4]], "not list"),
        ({"image": RGB}, "not dict"),
    ],
)
def test_what_is_no_image(image, message):
    with pytest.raises(OvsegError, match=message) as error:
        as_rgb(image)
    assert len(str(error.value)) < 300


def test_a_lazy_pillow_image_that_cannot_be_loaded(tmp_path):
    (tmp_path / "a.png").write_bytes(png().getvalue()[:2000])
    with pytest.raises(OvsegError, match=r"a\.png is truncated or damaged"):
        as_rgb(Image.open(tmp_path / "a.png"))
