"""Words and images of requests."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import PurePath

import numpy as np
from PIL import Image

from ovseg.errors import OvsegError
from ovseg.io.images import decode_image, open_image
from ovseg.vocabulary import Vocabulary
from ovseg.vocabulary.reading import fold_text
from ovseg.web.limits import MEGABYTE, Limits, Refused


def read_vocabulary(words: str, label_set: str, background: str, limits: Limits) -> Vocabulary:
    """Return the words of a request; a background word that is also looked for is not background.

    Args:
        words: between commas or lines; with semicolons between words, commas are between synonyms.
        label_set: name of a label set, in place of words.
        background: words between commas or lines.

    Raises:
        OvsegError: there are no words, words and a label set, or too many; or words are not valid.
    """
    if bool(words.strip()) == bool(label_set.strip()):
        both = "both are given" if words.strip() else "none is given"
        raise OvsegError(f"words or a label set are needed, and {both}: write for example 'cat, sofa'")
    written = len(_split(words)) + len(_split(background))  # before they are checked, which takes longer
    if written > limits.texts:
        raise OvsegError(f"there are {written} words and synonyms, and this server takes {limits.texts} at most")
    if label_set.strip():
        vocabulary = Vocabulary.from_label_set(label_set.strip())
    elif ";" in words:
        vocabulary = Vocabulary.from_string(words, "the words")
    else:
        vocabulary = Vocabulary.from_words(_split(words), "the words")
    known = {fold_text(text) for text in (*vocabulary.names, *vocabulary.texts)}
    if void := [word for word in _split(background) if fold_text(word) not in known]:
        vocabulary = vocabulary.with_background(void)
    return vocabulary


def _split(text: str) -> list[str]:
    """Return the words between commas, semicolons or lines; blank ones are left out."""
    return [word.strip() for word in re.split(r"[,;\n]", text) if word.strip()]


def file_name(name: str | None) -> str:
    """Return the name of an uploaded file without its folders and control characters, for messages and downloads."""
    base = PurePath((name or "").replace("\\", "/")).name
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "", base)[-100:] or "image"


def check_image(content: bytes, name: str, limits: Limits) -> None:
    """Check the kind and size of an image by its header.

    Raises:
        Refused: 400, it is empty; 413, it has too many pixels; 415, it is not an image that can be read.
    """
    if not content:
        raise Refused(400, f"{name} is empty (0 bytes): choose an image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with open_image(io.BytesIO(content)) as image:
                pixels = image.width * image.height
    except Image.DecompressionBombError:
        pixels = limits.pixels + 1
    except Exception as error:  # Pillow's decoders raise almost anything on damaged data
        raise Refused(415, f"{name} is not an image: give a JPEG, PNG, WebP, TIFF, BMP or GIF file") from error
    if pixels > limits.pixels:
        raise Refused(
            413,
            f"{name} has more than {limits.pixels / MEGABYTE:g} million pixels, the largest image that this server "
            "takes: make it smaller first",
        )


def read_image(content: bytes, name: str) -> np.ndarray:
    """Return a checked image as (H, W, 3) uint8 RGB.

    Raises:
        OvsegError: it is damaged.
    """
    return decode_image(io.BytesIO(content), name)
