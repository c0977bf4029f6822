"""Choice of a font that contains the letters of a text."""

from __future__ import annotations

import functools
import logging
import unicodedata
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from PIL import ImageFont

logger = logging.getLogger(__name__)


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


@functools.lru_cache(maxsize=64)
def _load_font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@functools.lru_cache(maxsize=1024)
def _font_file(letters: frozenset[str]) -> str:
    shipped = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    if _has_letters(shipped, letters):
        return shipped
    for path in sorted(font_manager.findSystemFonts()):  # Matplotlib's cached list lacks new fonts
        if "LastResort" in path:  # contains every letter, but draws boxes
            continue
        if _has_letters(path, letters):
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
        if not all(ord(letter) in known for letter in letters if _is_drawn(letter)):
            return False
        ImageFont.truetype(path, 12)  # colour emoji come as bitmaps of one size
    except (OSError, RuntimeError):  # removed meanwhile, damaged, or not scalable
        return False
    return True


def _is_drawn(letter: str) -> bool:
    return not letter.isspace() and unicodedata.category(letter) not in ("Cf", "Mn")
