"""Drawings of label maps: coloured and named regions next to the original image, above a legend; colours and fonts."""

from __future__ import annotations

import functools
import itertools
import logging
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import cv2
import matplotlib
import numpy as np
import supervision as sv
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from ovseg.io.images import label_areas
from ovseg.result.label_runs import LabelRuns, Part, parts_of

logger = logging.getLogger(__name__)
_load_font = functools.lru_cache(maxsize=64)(ImageFont.truetype)

DRAWING_SIZES = (1280, 2560)  # limits of the longest side of image and regions together, in pixels
_OPACITY = 0.5
_SMALLEST_NAMED = 0.004  # share of the image from which a region is named
_GAP = 8  # pixels between the image and its regions
_MOST_ENTRIES = 200  # of a legend, whose height image formats limit
# colours of Okabe and Ito, distinguishable with any kind of colour vision
_FIRST_COLORS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#F0E442", "#D55E00")
_COUNT = 128
_LIGHTNESS = (25, 92)  # CIE L*; excludes black and white


def draw_regions(
    image: np.ndarray,
    label_map: np.ndarray,
    names: Sequence[str],
    colors: Mapping[int, sv.Color] | None = None,
    *,
    outlined: bool = True,
    named: bool = True,
    every_name: bool = False,
) -> np.ndarray:
    """Colour every labelled region, draw its outline, and write its name where there is room.

    Args:
        image: (H,W,3) uint8 RGB.
        label_map: (H,W) integers, index into ``names``; negative = unlabelled, left as it is.
        names: K words.
        colors: colour of each label, for series of images; by default those of the labels in the map.
        outlined, named: draw the outlines, and write the names.
        every_name: write the name of each label at least once, next to its region if another name is there.

    Returns:
        (H,W,3) uint8 RGB, new.
    """
    runs = LabelRuns.of(label_map)
    found = [k for k in runs.found if k < len(names)]
    colors = colors_of(found) if colors is None else colors
    table = np.zeros((max(found, default=0) + 1, 3), np.uint8)
    for k in found:
        table[k] = colors[k].as_rgb()
    scene = _blend(image, label_map, table)
    if outlined:
        _draw_outlines(scene, label_map, runs, found, table)
    tags, others = [], []
    parts = parts_of(label_map) if named else []
    for k, of_word in itertools.groupby(parts, key=lambda part: part.label):
        if k < len(names):
            places = _places(list(of_word), label_map.size, every_name)
            first, *rest = [(point, names[k], colors[k]) for point in places] or [None]
            tags += [first] if first else []
            (others if every_name else tags).extend(rest)
    drawn = Image.fromarray(scene)
    _write_names(drawn, tags + others, len(tags) if every_name else 0)
    return np.array(drawn)


def draw_result(
    image: np.ndarray, label_map: np.ndarray, names: Sequence[str], colors: Mapping[int, sv.Color] | None = None
) -> np.ndarray:
    """Draw the image, its regions on the right (below a wide image), and a legend, at a size suited to a screen.

    Args:
        image: (H,W,3) uint8 RGB.
        label_map: (H,W) integers, index into ``names``; negative = unlabelled.
        names: K words.
        colors: colour of each label; by default those of the labels in the map.

    Returns:
        (h,w,3) uint8 RGB; the longest side of image and regions together is within ``DRAWING_SIZES``.
    """
    height, width = label_map.shape
    across, down = (2, 1) if width <= 2 * height else (1, 2)
    smallest, largest = (
        min((side - _GAP * (across - 1)) / (width * across), (side - _GAP * (down - 1)) / (height * down))
        for side in DRAWING_SIZES
    )
    scale = min(max(smallest, 1), largest)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shares = _shares(label_areas(label_map, len(names)) / label_map.size)
    # of the full-size map: small regions may vanish when reduced
    colors = colors_of(k for k, _ in shares if k >= 0) if colors is None else colors
    image, label_map = resize_labelled(image, label_map, size)
    pair_size = (size[0] * across + _GAP * (across - 1), size[1] * down + _GAP * (down - 1))
    legend_width = max(pair_size[0], 320)
    text_size = min(_text_size(size), _text_size((legend_width, legend_width)))
    legend = draw_legend(legend_width, shares, names, max(text_size, 14), colors)
    canvas = np.full((pair_size[1] + legend.shape[0], legend_width, 3), 255, np.uint8)
    left, top = (legend_width - pair_size[0]) // 2, 0
    for panel in (image, draw_regions(image, label_map, names, colors)):
        canvas[top : top + size[1], left : left + size[0]] = panel
        left, top = (left + size[0] + _GAP, 0) if across == 2 else (left, size[1] + _GAP)
    canvas[pair_size[1] :] = legend
    return canvas


def draw_legend(
    width: int,
    shares: Sequence[tuple[int, float]],
    names: Sequence[str],
    text_size: int | None = None,
    colors: Mapping[int, sv.Color] | None = None,
) -> np.ndarray:
    """Draw a swatch, a name and a share for each word found, in as many columns as fit.

    Args:
        width: pixels.
        shares: (index into ``names``, share of the area) in the order of the entries; index -1 is "unlabelled".
        names: K words.
        text_size: height of letters in pixels; by default chosen for an image of this width.
        colors: colour of each label; by default those of the labels in ``shares``.

    Returns:
        (h,width,3) uint8 RGB.
    """
    size = text_size or _text_size((width, width))
    colors = colors_of(k for k, _ in shares if k >= 0) if colors is None else colors
    shown = [(k, names[k] if k >= 0 else "(unlabelled)", share) for k, share in shares]
    if len(shown) > _MOST_ENTRIES:
        rest = shown[_MOST_ENTRIES - 1 :]
        shown[_MOST_ENTRIES - 1 :] = [(-1, f"({len(rest)} more)", sum(share for *_, share in rest))]
    line, margin, swatch = round(size * 1.6), round(size * 0.8), size
    entries = []
    for k, name, share in shown:
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
            draw.rounded_rectangle(box, radius=swatch * 0.2, fill=colors[k].as_rgb())
        else:
            draw.rounded_rectangle(box, radius=swatch * 0.2, outline="#999999")
        draw.text((left + 1.9 * swatch, middle), name, font=font, fill="#222222", anchor="lm")
        after = left + 1.9 * swatch + font.getlength(name) + 0.5 * size
        draw.text((after, middle), percent, font=text_font("", size), fill="#777777", anchor="lm")
    return np.asarray(legend)


def resize_labelled(image: np.ndarray, label_map: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Resize an (H,W,3) uint8 image and its (H,W) integer labels to (width,height), if their size differs."""
    if size == (label_map.shape[1], label_map.shape[0]):
        return image, label_map
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    return resized, cv2.resize(label_map.astype(np.int32), size, interpolation=cv2.INTER_NEAREST_EXACT)


def _shares(fractions: np.ndarray) -> list[tuple[int, float]]:
    """Return (index, share of the image) of the words found, largest first; unlabelled is -1 and comes last."""
    found = [(int(k), float(fractions[k])) for k in np.argsort(-fractions, kind="stable") if fractions[k] > 0]
    rest = 1 - sum(share for _, share in found)
    return found + [(-1, rest)] * (rest > 1e-9)


def name_places(mask: np.ndarray, largest_first: bool = False) -> list[tuple[int, int]]:
    """Return (x,y) of the innermost point of each connected part of a mask that is large enough to be named.

    With ``largest_first`` the first is that of the largest part, of any size.
    """
    return _places(parts_of(mask.astype(np.int32) - 1), mask.size, largest_first)


def _places(parts: Sequence[Part], image_size: int, largest_first: bool) -> list[tuple[int, int]]:
    places = []
    for part in sorted(parts, key=lambda part: -part.area) if largest_first else parts:
        if part.area < _SMALLEST_NAMED * image_size and (places or not largest_first):
            continue
        # a frame of zeros, so that the border of the image counts as an edge
        inner = cv2.distanceTransform(np.pad(part.mask.astype(np.uint8), 1), cv2.DIST_L2, 3)
        row, column = np.unravel_index(int(inner.argmax()), inner.shape)
        places.append((part.left + int(column) - 1, part.top + int(row) - 1))
    return places


def _blend(image: np.ndarray, label_map: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return the image half in the colours (n,3) of the labels below n, new."""
    shown = (label_map >= 0) & (label_map < len(table))
    colored = np.where(shown[:, :, None], np.take(table, label_map, axis=0, mode="clip"), image)
    return cv2.addWeighted(colored, _OPACITY, np.ascontiguousarray(image), 1 - _OPACITY, 0)


def _draw_outlines(
    scene: np.ndarray, label_map: np.ndarray, runs: LabelRuns, found: Sequence[int], table: np.ndarray
) -> None:
    """Draw the outline of each word over those of earlier words, which are half in its colour inside of its region."""
    thickness = max(1, round(max(scene.shape[:2]) / 500))
    outlines = np.full(label_map.shape, -1, np.int32)
    for k in found:
        window = runs.window(k)
        offset = np.array([window[1].start, window[0].start])
        for polygon in sv.mask_to_polygons(label_map[window] == k):
            cv2.polylines(outlines, [polygon + offset], isClosed=True, color=k, thickness=thickness)
    drawn = np.nonzero(outlines >= 0)
    if not len(drawn[0]):
        return
    words, regions = outlines[drawn], label_map[drawn]
    colors = table[words]
    mixed = cv2.addWeighted(np.take(table, regions, axis=0, mode="clip"), _OPACITY, colors, 1 - _OPACITY, 0)
    scene[drawn] = np.where(((regions > words) & (regions < len(table)))[:, None], mixed, colors)


def _write_names(image: Image.Image, tags: Sequence[tuple[tuple[int, int], str, sv.Color]], moved: int = 0) -> None:
    """Write each name on a plate of its word's colour.

    Plates that would overlap an earlier one are left out, except that the first ``moved`` are moved up or down to the
    nearest free place.
    """
    size = _text_size(image.size)
    draw = ImageDraw.Draw(image)
    taken: list[tuple[float, float, float, float]] = []
    for index, ((x, y), name, color) in enumerate(tags):
        font = text_font(name, size)
        half_width = draw.textlength(name, font=font) / 2 + size * 0.4
        half_height = size * 0.75
        if 2 * half_width > image.width or 2 * half_height > image.height:
            continue
        x = min(max(x, half_width), image.width - half_width)
        y = min(max(y, half_height), image.height - half_height)
        steps = range(round(image.height / half_height) if index < moved else 1)
        heights = (
            min(max(y + s * k * half_height, half_height), image.height - half_height) for k in steps for s in (1, -1)
        )
        boxes = ((x - half_width, y - half_height, x + half_width, y + half_height) for y in heights)
        free = (a for a in boxes if not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in taken))
        if (box := next(free, None)) is None:
            continue
        y = (box[1] + box[3]) / 2
        taken.append(box)
        draw.rounded_rectangle(box, radius=size * 0.3, fill=color.as_rgb())
        draw.text((x, y), name, font=font, fill=_ink(color), anchor="mm")


def _text_size(size: tuple[int, int]) -> int:
    """Return the height of letters in pixels for an image of (width,height)."""
    return round(min(max(max(size) / 48, 11), 40))


def _ink(color: sv.Color) -> str:
    """Return "black" or "white", whichever is more readable on a colour (luma of ITU-R BT.601)."""
    red, green, blue = color.as_rgb()
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 130 else "white"


def colors_of(labels: Iterable[int], before: Mapping[int, sv.Color] = MappingProxyType({})) -> dict[int, sv.Color]:
    """Return ``before`` with the next free colour of the palette for each new label, in ascending order."""
    new = sorted(set(labels) - before.keys())
    return {**before, **{label: word_color(place) for place, label in enumerate(new, start=len(before))}}


def word_color(place: int) -> sv.Color:
    """Return the colour at a position of the palette, modulo its size."""
    red, green, blue = _palette()[place % _COUNT].tolist()
    return sv.Color(red, green, blue)


@functools.cache
def _palette() -> np.ndarray:
    """Return the palette, (128,3) uint8 RGB.

    After the given first colours, each one is the colour farthest from all previous ones in CIE L*a*b*.
    """
    levels = np.linspace(0, 255, 12).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    lightness = _lab(grid)[:, 0]
    grid = grid[(lightness > _LIGHTNESS[0]) & (lightness < _LIGHTNESS[1])]
    chosen = [np.array(sv.Color.from_hex(color).as_rgb(), np.uint8) for color in _FIRST_COLORS]
    candidates = _lab(grid)
    nearest = np.full(len(grid), np.inf)
    for place in range(_COUNT):
        if place == len(chosen):
            chosen.append(grid[nearest.argmax()])
        nearest = np.minimum(nearest, np.linalg.norm(candidates - _lab(chosen[place]), axis=1))
    return np.stack(chosen)


def _lab(rgb: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(rgb.reshape(1, -1, 3).astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]


def shorten_text(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Truncate a text with an ellipsis so that it is at most ``width`` pixels wide."""
    if font.getlength(text) <= width:
        return text
    while len(text) > 1 and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def text_font(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Return an installed font with all letters of ``text``; if there is none, DejaVu Sans, which Matplotlib ships."""
    return _load_font(_font_file(frozenset(text)), size)


def has_font(text: str) -> bool:
    """Return whether an installed font has all letters of ``text``."""
    return _has_letters(_font_file(frozenset(text)), frozenset(text))


@functools.lru_cache(maxsize=1024)
def _font_file(letters: frozenset[str]) -> str:
    shipped = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    if _has_letters(shipped, letters):
        return shipped
    for path in sorted(font_manager.findSystemFonts()):  # Matplotlib's cached list lacks new fonts
        if "LastResort" not in path and _has_letters(path, letters):  # that font draws every letter as a box
            return path
    for script in sorted({_script(letter) for letter in letters if not _has_letters(shipped, frozenset(letter))}):
        _warn_once(script)
    return shipped


def _script(letter: str) -> str:
    """Return the script of a letter for messages: "Arabic", "CJK", "emoji and symbols"."""
    if unicodedata.category(letter) in ("So", "Sk", "Cn", "Co"):
        return "emoji and symbols"
    name = unicodedata.name(letter, "other").split()[0]
    return name if name == "CJK" else name.capitalize()


@functools.cache
def _warn_once(script: str) -> None:
    logger.warning(
        "this machine has no font for all letters of a word (%s): they are drawn as boxes; INSTALL.md (Fonts) lists "
        "packages of fonts",
        script,
    )


def _has_letters(path: str, letters: frozenset[str]) -> bool:
    try:
        known = font_manager.get_font(path).get_charmap()
        ImageFont.truetype(path, 12)  # colour emoji come as bitmaps of one size
    except (OSError, RuntimeError):  # removed meanwhile, damaged, or not scalable
        return False
    drawn = (letter for letter in letters if not letter.isspace() and unicodedata.category(letter) not in ("Cf", "Mn"))
    return all(ord(letter) in known for letter in drawn)
