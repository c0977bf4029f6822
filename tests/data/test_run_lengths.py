"""Run lengths: the masks of pycocotools, and no crash."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest
from pycocotools import mask as masks

from ovseg.io.run_lengths import decode_mask


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (40, 30), (1, 3000), (700, 900)])
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 1])
def test_masks_are_those_of_pycocotools(height, width, share):
    mask = np.random.default_rng(0).random((height, width)) < share
    mask[: height // 2] = mask[:1]  # long runs, too
    encoded = masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert np.array_equal(decode_mask(encoded["counts"], height, width), mask)
    assert np.array_equal(decode_mask(encoded["counts"].decode(), height, width), mask)
    flat = mask.T.reshape(-1)
    starts = [0, *(np.flatnonzero(flat[1:] != flat[:-1]) + 1).tolist(), flat.size]
    counts = np.diff(starts).tolist()
    assert np.array_equal(decode_mask([0, *counts] if flat[0] else counts, height, width), mask)


@pytest.mark.parametrize(
    "counts",
    ["", "é", b"\xff", "zzzz", "o" * 50, b"PPPPPPPPPPP0", [3, 4], [-5, 105], [1e9], ["a"], [2**70], [50.0, 50.0]],
)
def test_damaged_ones_are_refused(counts):
    with pytest.raises(ValueError):
        decode_mask(counts, 10, 10)


def test_random_bytes():
    """On these, pycocotools ends the process."""
    generator = random.Random(0)
    for _ in range(3000):
        text = bytes(generator.randrange(48, 112) for _ in range(generator.randrange(30)))
        with contextlib.suppress(ValueError):
            assert decode_mask(text, 4, 4).shape == (4, 4)
