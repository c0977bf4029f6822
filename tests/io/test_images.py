"""Reading of image files, and of everything that a Segmenter takes as an image."""

from __future__ import annotations

import io
import os
import re
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ovseg.errors import OvsegError
from ovseg.io.images import LARGEST_IMAGE, as_rgb, read_image, read_labels, to_rgb

RED = (200, 30, 20)
RGB = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]
OPAQUE = np.dstack([RGB, np.full((30, 40), 255, np.uint8)])


def save(folder, image, name, **options):
    file = folder / name
    image.save(file, **options)
    return file


def test_rgb_is_exact_writable_and_contiguous(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    read = read_image(save(tmp_path, Image.fromarray(pixels), "a.png"))
    assert np.array_equal(read, pixels)
    assert read.flags.writeable and read.flags.c_contiguous and read.dtype == np.uint8


@pytest.mark.parametrize(
    ("mode", "name"),
    [("CMYK", "a.jpg"), ("CMYK", "a.tif"), ("P", "a.png"), ("P", "a.gif"), ("RGBA", "a.png"), ("YCbCr", "a.jpg")],
)
def test_modes_keep_their_colour(tmp_path, mode, name):
    image = Image.new("RGB", (6, 4), RED)
    file = save(tmp_path, image.quantize(4) if mode == "P" else image.convert(mode), name)
    read = read_image(file)
    assert read.shape == (4, 6, 3)
    assert np.abs(read.astype(int) - RED).max() <= 6  # JPEG loses a little


@pytest.mark.parametrize(("mode", "colour"), [("1", 1), ("L", 90), ("LA", (90, 255))])
def test_grey_modes_become_three_equal_channels(tmp_path, mode, colour):
    read = read_image(save(tmp_path, Image.new(mode, (3, 2), colour), "a.png"))
    assert (read == (255 if mode == "1" else 90)).all() and read.shape == (2, 3, 3)


def test_transparency_is_put_on_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (*RED, 255))
    assert read_image(save(tmp_path, image, "a.png")).tolist() == [[[255, 255, 255], list(RED)]]
    palette = Image.new("P", (1, 1), 3)
    palette.putpalette([0, 0, 0] * 4)
    assert read_image(save(tmp_path, palette, "p.png", transparency=3)).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, name):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    read = read_image(save(tmp_path, Image.fromarray(values), name))
    assert read[..., 0].tolist() == [[0, 1, 128, 255]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[-1.0, 0.0, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, np.nan, 1.0]], np.float32), [0, 0, 255]),
        (np.array([[7.0, 7.0, 7.0]], np.float32), [7, 7, 7]),
        (np.array([[0, 30000, 65535]], np.int32), [0, 117, 255]),
        (np.array([[0, 100, 200]], np.int32), [0, 100, 200]),
        (np.array([[0, 600000, 1000000]], np.int32), [0, 153, 255]),
        (np.array([[300, 300, 300]], np.int32) * 1000, [0, 0, 0]),
    ],
)
def test_float_and_32_bit_images(tmp_path, values, expected):
    assert read_image(save(tmp_path, Image.fromarray(values), "a.tif"))[0, :, 0].tolist() == expected


def test_camera_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (4, 2), RED)
    image.putpixel((0, 0), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees clockwise
    read = read_image(save(tmp_path, image, "a.png", exif=exif))
    assert read.shape == (4, 2, 3)
    assert read[0, 1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "P"])
@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 255])
def test_every_orientation_is_that_of_pillow(tmp_path, orientation, mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation  # values beyond 8 mean nothing
    file = save(tmp_path, image, "a.tif", exif=exif)
    with Image.open(file) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    np.testing.assert_array_equal(read_image(file), expected)


@pytest.mark.parametrize("suffix", [".tif", ".gif", ".webp", ".png"])
def test_first_of_several_pages(tmp_path, suffix):
    pages = [Image.new("RGB", (3, 3), colour) for colour in ("white", "black", "black")]
    file = save(tmp_path, pages[0], f"a{suffix}", save_all=True, append_images=pages[1:])
    assert (read_image(file) == 255).all()


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("white", "black")]
    file = save(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert (read_image(file) == 255).all()


def test_one_pixel(tmp_path):
    assert read_image(save(tmp_path, Image.new("RGB", (1, 1), RED), "a.png")).tolist() == [[list(RED)]]


def test_20000_pixels_long(tmp_path):
    assert read_image(save(tmp_path, Image.new("1", (20_000, 500)), "a.png")).shape == (500, 20_000, 3)


def bomb(side):
    """A PNG whose header says side x side pixels; nothing of that size is ever allocated."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg():
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


DAMAGED = {
    "empty": (b"", r"a\.jpg is empty \(0 bytes\)"),
    "truncated": (jpeg()[:2000], r"a\.jpg is truncated or damaged"),
    "header only": (jpeg()[:20], r"a\.jpg "),
    "web page": (b"\n<!DOCTYPE html><html>404</html>", r"a\.jpg is a web page or XML text, not an image"),
    "text": (b"hello", r"a\.jpg is not an image in a format that can be read"),
    "too many pixels": (bomb(20_000), rf"a\.jpg has more than {LARGEST_IMAGE:,} pixels"),
    "no data": (bomb(50), r"a\.jpg is truncated or damaged"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused_with_their_name(tmp_path, case):
    data, message = DAMAGED[case]
    file = tmp_path / "a.jpg"
    file.write_bytes(data)
    with pytest.raises(OvsegError, match=message) as error:
        read_image(file)
    assert "\n" not in str(error.value)


def test_every_truncation_and_flipped_byte_gives_an_image_or_a_sentence(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(stream, "PNG")
    good = stream.getvalue()
    file = tmp_path / "a.png"
    for position in range(len(good)):
        flipped = bytearray(good)
        flipped[position] ^= 0x55
        for data in (good[:position], bytes(flipped)):
            file.write_bytes(data)
            try:
                assert read_image(file).dtype == np.uint8
            except OvsegError as error:
                assert "a.png" in str(error)


@pytest.mark.parametrize("reader", [read_image, read_labels])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n",
        b"%!PS-Adobe-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n",
        b"\xc5\xd0\xd3\xc6" + (30).to_bytes(4, "little") + bytes(400),  # EPS of DOS
        b"\xd7\xcd\xc6\x9a\0\0" + bytes(16) + b"\x01\x00\x09\x00" + bytes(200),  # WMF
        b"\x01\0\0\0" + bytes(36) + b" EMF" + bytes(200),
    ],
)
def test_no_program_is_started(tmp_path, monkeypatch, content, suffix, reader):
    def start(*command, **options):
        raise AssertionError(f"started {command}")

    for module, name in ((subprocess, "Popen"), (os, "system"), (os, "posix_spawn"), (os, "fork")):
        monkeypatch.setattr(module, name, start)
    file = tmp_path / f"a{suffix}"
    file.write_bytes(content)
    with pytest.raises(OvsegError, match=r"a\..* (is not an image|cannot be read)"):
        reader(file)


@pytest.mark.parametrize(
    ("mode", "limit"),  # bytes a pixel: Pillow's image (1, 2 or 4), the result's 3, and strips
    [("L", 5), ("P", 5), ("I;16", 6), ("RGB", 8), ("RGBA", 8), ("CMYK", 8), ("I", 8), ("F", 8)],
)
def test_memory_a_pixel(tmp_path, mode, limit):
    file = save(tmp_path, Image.new(mode, (5000, 5000)), "a.tif", compression="tiff_lzw")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = memory("VmRSS")
    except OSError:
        pytest.skip("this system does not measure peaks of memory")
    read_image(file)
    assert (memory("VmHWM") - before) / 5000**2 < limit + 3, "strips take 3 bytes at most"


def memory(name):
    """Bytes that the system counts for this process."""
    return int(re.search(rf"{name}:\s*(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def test_what_is_no_file(tmp_path):
    with pytest.raises(OvsegError, match="there is no image"):
        read_image(tmp_path / "absent.jpg")
    with pytest.raises(OvsegError, match="is a folder"):
        read_image(tmp_path)
    with pytest.raises(OvsegError, match=r"cannot read|there is no image"):
        read_image("a\0b.jpg")


def test_a_mode_without_conversion_is_named():
    with pytest.raises(OvsegError, match="mode La"):
        to_rgb(Image.new("La", (2, 2)))


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
