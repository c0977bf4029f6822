"""Colours of the classes of data sets, as they are usual in the field, and of words of one's own; uint8 RGB.

``palettes.json`` has those of ADE20K (as in mmsegmentation) and of COCO-Object (OVSegmentor's specification, appendix
C). PASCAL VOC's follow from the index of a class.
"""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path

import numpy as np
from PIL import ImageColor

from ovseg.result.drawing import word_color

LARGEST = 256  # colours of the palette of a label map of 8 bits
_BLACK = (0, 0, 0)
# Label sets, with the palette of their classes but for background, and the first row of it
_PUBLISHED = {
    **dict.fromkeys(("pascal_voc_20", "pascal_voc_21", "ovsegmentor_voc_21"), ("voc", 1)),
    **dict.fromkeys(("ade20k_150", "ovsegmentor_ade20k_150"), ("ade20k", 0)),
    # mmsegmentation has ADE20K's colours, of which background has the first
    **dict.fromkeys(("pascal_context_59_alphabetical", "pascal_context_60", "ovsegmentor_context_60"), ("ade20k", 1)),
    **dict.fromkeys(("coco_object_80", "coco_stuff_171", "coco_stuff_172"), ("coco", 0)),
}


def voc_palette() -> np.ndarray:
    """Return the palette of PASCAL VOC's label files, (256,3): black, then colours by the bits of the index.

    Bits 0, 1, 2 of the index are bit 7 of red, green and blue, bits 3 to 5 their bit 6, and so on.
    """
    index = np.arange(LARGEST)
    bits = (index[:, None] >> np.arange(9)) & 1  # (256, 9); an index has 8 bits
    weights = 1 << np.array([7, 6, 5])
    return np.stack([bits[:, channel::3] @ weights for channel in range(3)], axis=1).astype(np.uint8)


def word_palette(count: int, background: bool) -> np.ndarray:
    """Return the colours of drawings for words of one's own, (count,3), black for a background first."""
    colors = [word_color(place).as_rgb() for place in range(count - background)]
    return np.array([_BLACK] * background + colors, np.uint8)


def class_palette(label_set: str | None, count: int, background: bool) -> np.ndarray:
    """Return the colours of the classes of a data set, (count,3), black for a background first.

    They are the published ones, but a colour that an earlier class has, or black, is replaced: COCO-Object's palette
    has seven of these, and ADE20K's one. Classes without a published colour have those of PASCAL VOC that are left.

    Args:
        label_set: name, see :func:`ovseg.vocabulary.label_set`; None, or another one, for PASCAL VOC's colours.
        count: number of classes, with background.
        background: the first class is background.
    """
    name, first = _PUBLISHED.get(label_set or "", ("voc", 1))
    published = [tuple(color) for color in voc_palette().tolist()] if name == "voc" else _read(name)
    published, known = published[first : first + count - background], set(published)
    words = [word_color(place).as_rgb() for place in range(LARGEST)]
    others = (color for color in map(tuple, [*voc_palette().tolist(), *words]) if color not in {_BLACK, *known})
    others = itertools.chain(others, itertools.cycle(words))  # more classes than there are colours
    colors, taken = [_BLACK] * background, {_BLACK}
    for color in [*published, *[_BLACK] * (count - background - len(published))]:
        colors.append(next(others) if color in taken else color)
        taken.add(color)
    return np.array(colors, np.uint8).reshape(-1, 3)


@functools.cache
def _read(name: str) -> list[tuple[int, int, int]]:
    content = json.loads(Path(__file__).with_name("palettes.json").read_text(encoding="utf-8"))
    return [ImageColor.getrgb(f"#{color}") for color in content[name]]
