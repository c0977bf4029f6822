"""Decoding COCO's run-length encoded masks; pycocotools crashes the process on damaged ones."""

from __future__ import annotations

import numpy as np


def decode_mask(counts: str | bytes | list[int], height: int, width: int) -> np.ndarray:
    """Return the (H,W) bool mask of COCO's run lengths.

    Args:
        counts: lengths of runs of 0 and 1 in turn, down the columns, or COCO's compressed text of them.
        height: H.
        width: W.

    Raises:
        ValueError: they are damaged, or do not fill the mask.
    """
    lengths = counts if isinstance(counts, list) else _lengths(counts)
    if not all(isinstance(length, int) and 0 <= length <= height * width for length in lengths):
        raise ValueError("its run lengths are damaged")
    if sum(lengths) != height * width:
        raise ValueError(f"its run lengths fill {sum(lengths)} of {height} x {width} pixels")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T


def _lengths(text: str | bytes) -> list[int]:
    """Lengths of the compressed text: 5 bits a character, from the third on as the difference to the last but one."""
    lengths: list[int] = []
    value = shift = 0
    for character in text.encode("ascii") if isinstance(text, str) else text:
        bits = character - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("its run lengths are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("its run lengths end early")
    return lengths
