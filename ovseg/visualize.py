"""Label maps -> pictures for people: regions coloured by supervision, names on them, a legend below."""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import supervision as sv
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

PICTURE_SIZES = (640, 2560)  # longest side of a saved picture in pixels: smaller ones are enlarged, larger ones reduced
_OPACITY = 0.5
_SMALLEST_NAMED = 0.004  # share of the picture that a region needs to carry its name
# Okabe & Ito's colours, then Paul Tol's "muted": chosen by them to be told apart with any kind of colour vision
_FIRST_COLORS = (
    *("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#F0E442", "#D55E00"),
    *("#332288", "#999933", "#882255", "#44AA99", "#AA4499", "#117733", "#CC6677"),
)
_GOLDEN_ANGLE = 0.381966


@functools.cache
def word_color(index: int) -> sv.Color:
    """The colour of a word by its place in the list of words; the same in every picture."""
    if index < len(_FIRST_COLORS):
        return sv.Color.from_hex(_FIRST_COLORS[index])
    step = index - len(_FIRST_COLORS)
    # hues go round by the golden angle, so neighbours differ; lightness differs too, for those who see few hues
    red, green, blue = colorsys.hls_to_rgb((step * _GOLDEN_ANGLE) % 1, (0.35, 0.6, 0.78)[step % 3], 0.75)
    return sv.Color(round(red * 255), round(green * 255), round(blue * 255))


def label_areas(label_map: np.ndarray, count: int) -> np.ndarray:
    """(count,) int64: pixels of each label 0..count-1 in an (H,W) map of integers; negative ones are left out."""
    areas = np.zeros(count, np.int64)
    for rows in np.array_split(label_map, max(1, label_map.size >> 22)):  # NumPy counts in copies of 8 bytes a pixel
        areas += np.bincount(rows[rows >= 0], minlength=count)
    return areas


def draw_regions(image: np.ndarray, label_map: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Colour every labelled region, draw its outline, and write its name where there is room.

    Args:
        image: (H,W,3) uint8 RGB.
        label_map: (H,W) integers, index into ``names``; negative = unlabelled, left as it is.
        names: K words.

    Returns:
        (H,W,3) uint8 RGB, new.
    """
    scene = np.ascontiguousarray(image[:, :, ::-1])  # supervision draws in OpenCV's BGR
    thickness = max(1, round(max(image.shape[:2]) / 500))
    tags = []
    # one word at a time: masks do not overlap, and K full-size masks at once could fill the memory
    for k in np.flatnonzero(label_areas(label_map, len(names))).tolist():
        mask = label_map == k
        color = word_color(k)
        region = sv.Detections(xyxy=sv.mask_to_xyxy(mask[None]), mask=mask[None], class_id=np.array([k]))
        scene = sv.MaskAnnotator(color=color, opacity=_OPACITY).annotate(scene, region)
        scene = sv.PolygonAnnotator(color=color, thickness=thickness).annotate(scene, region)
        tags += [(point, names[k], color) for point in _name_places(mask)]
    picture = Image.fromarray(np.ascontiguousarray(scene[:, :, ::-1]))
    _write_names(picture, tags)
    return np.array(picture)


def draw_picture(image: np.ndarray, label_map: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """:func:`draw_regions` at a size for people to look at, with a legend below.

    Args: as :func:`draw_regions`.

    Returns:
        (h,w,3) uint8 RGB; the picture's longest side is within ``PICTURE_SIZES`` and its shortest at least 1.
    """
    height, width = label_map.shape
    smallest, largest = PICTURE_SIZES
    scale = min(max(smallest / max(height, width), 1), largest / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shares = _shares(label_areas(label_map, len(names)) / label_map.size)
    picture = draw_regions(*resize_labelled(image, label_map, size), names)
    legend = draw_legend(max(size[0], 320), shares, names)
    canvas = np.full((picture.shape[0] + legend.shape[0], legend.shape[1], 3), 255, np.uint8)
    left = (legend.shape[1] - picture.shape[1]) // 2
    canvas[: picture.shape[0], left : left + picture.shape[1]] = picture
    canvas[picture.shape[0] :] = legend
    return canvas


def draw_legend(
    width: int, shares: Sequence[tuple[int, float]], names: Sequence[str], text_size: int | None = None
) -> np.ndarray:
    """A swatch, a name and a share for each word found, in as many columns as fit.

    Args:
        width: pixels.
        shares: (index into ``names``, share of the area) in the order of their telling; index -1 is "unlabelled".
        names: K words.
        text_size: height of letters in pixels; by default it fits a picture of this width.

    Returns:
        (h,width,3) uint8 RGB.
    """
    size = text_size or _text_size((width, width))
    line, margin, swatch = round(size * 1.6), round(size * 0.8), size
    entries = []
    for k, share in shares:
        name = names[k] if k >= 0 else "(unlabelled)"
        percent = f"{share:.1%}" if share >= 0.001 else "<0.1%"
        font = text_font(name, size)
        name = shorten_text(name, font, width - 2 * margin - 2 * swatch - font.getlength(f" {percent}"))
        entries.append((k, name, percent, font, 2 * swatch + font.getlength(f"{name}  {percent}") + margin))
    columns = max(1, min(len(entries), int((width - margin) // max(entry[-1] for entry in entries))))
    rows = -(-len(entries) // columns)
    legend = Image.new("RGB", (width, rows * line + 2 * margin), "white")
    draw = ImageDraw.Draw(legend)
    for position, (k, name, percent, font, _) in enumerate(entries):
        left = margin + (position // rows) * (width - margin) // columns
        middle = margin + (position % rows) * line + line / 2
        box = (left, middle - swatch / 2, left + 1.4 * swatch, middle + swatch / 2)
        if k >= 0:
            draw.rounded_rectangle(box, radius=swatch * 0.2, fill=word_color(k).as_rgb())
        else:
            draw.rounded_rectangle(box, radius=swatch * 0.2, outline="#999999")
        draw.text((left + 1.9 * swatch, middle), name, font=font, fill="#222222", anchor="lm")
        after = left + 1.9 * swatch + font.getlength(name) + 0.5 * size
        draw.text((after, middle), percent, font=text_font("", size), fill="#777777", anchor="lm")
    return np.asarray(legend)


def resize_labelled(image: np.ndarray, label_map: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """An (H,W,3) uint8 image and its (H,W) integer labels at (width,height); the same arrays if that is their size."""
    if size == (label_map.shape[1], label_map.shape[0]):
        return image, label_map
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    return resized, cv2.resize(label_map.astype(np.int32), size, interpolation=cv2.INTER_NEAREST_EXACT)


def _shares(fractions: np.ndarray) -> list[tuple[int, float]]:
    """(index, share of the picture) of the words found, the largest first; unlabelled is -1 and comes last."""
    found = [(int(k), float(fractions[k])) for k in np.argsort(-fractions, kind="stable") if fractions[k] > 0]
    rest = 1 - sum(share for _, share in found)
    return found + [(-1, rest)] * (rest > 1e-9)


def _name_places(mask: np.ndarray) -> list[tuple[int, int]]:
    """(x,y) of the most inner point of every connected part of a mask that is large enough to carry a name."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    places = []
    for part in range(1, count):
        x, y, w, h, area = stats[part].tolist()
        if area < _SMALLEST_NAMED * mask.size:
            continue
        # a frame of zeros, so that the picture's border counts as an edge
        inside = np.pad((parts[y : y + h, x : x + w] == part).astype(np.uint8), 1)
        inner = cv2.distanceTransform(inside, cv2.DIST_L2, 3)
        row, column = np.unravel_index(int(inner.argmax()), inner.shape)
        places.append((x + int(column) - 1, y + int(row) - 1))
    return places


def _write_names(picture: Image.Image, tags: Sequence[tuple[tuple[int, int], str, sv.Color]]) -> None:
    """Write each name on a plate of its word's colour; where plates would overlap, the later one is left out."""
    size = _text_size(picture.size)
    draw = ImageDraw.Draw(picture)
    taken: list[tuple[float, float, float, float]] = []
    for (x, y), name, color in tags:
        font = text_font(name, size)
        half_width = draw.textlength(name, font=font) / 2 + size * 0.4
        half_height = size * 0.75
        if 2 * half_width > picture.width or 2 * half_height > picture.height:
            continue
        x = min(max(x, half_width), picture.width - half_width)
        y = min(max(y, half_height), picture.height - half_height)
        box = (x - half_width, y - half_height, x + half_width, y + half_height)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            continue
        taken.append(box)
        draw.rounded_rectangle(box, radius=size * 0.3, fill=color.as_rgb())
        draw.text((x, y), name, font=font, fill=_ink(color), anchor="mm")


def _text_size(size: tuple[int, int]) -> int:
    """Height of letters in pixels for a picture of (width,height)."""
    return round(min(max(max(size) / 48, 11), 40))


def _ink(color: sv.Color) -> str:
    """Black or white, whichever is read better on a colour (luma of ITU-R BT.601)."""
    red, green, blue = color.as_rgb()
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 130 else "white"


def shorten_text(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, or its beginning and an ellipsis, at most ``width`` pixels wide."""
    if font.getlength(text) <= width:
        return text
    while len(text) > 1 and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def text_font(text: str, size: int) -> ImageFont.FreeTypeFont:
    """A font that has every letter of ``text`` if this machine has one; DejaVu Sans, which Matplotlib ships, if not."""
    return _load_font(_font_file(frozenset(text)), size)


@functools.lru_cache(maxsize=64)
def _load_font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@functools.lru_cache(maxsize=1024)
def _font_file(letters: frozenset[str]) -> str:
    shipped = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    if _has_letters(shipped, letters):
        return shipped
    for path in sorted(entry.fname for entry in font_manager.fontManager.ttflist):
        if "LastResort" in path:  # "has" every letter, and draws a box for each
            continue
        if _has_letters(path, letters):
            return path
    return shipped


def _has_letters(path: str, letters: frozenset[str]) -> bool:
    try:
        known = font_manager.get_font(path).get_charmap()
    except (OSError, RuntimeError):  # listed by Matplotlib's cache, since removed or damaged
        return False
    return all(ord(letter) in known for letter in letters if not letter.isspace())
