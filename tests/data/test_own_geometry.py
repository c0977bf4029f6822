from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as run_lengths

from ovseg.data.own.geometry import NoArea, _decompressed, checked_points, checked_run_lengths, whole_number

MASKS = arrays.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 1))


@settings(deadline=None)
@given(MASKS)
def test_compressed_run_lengths_are_what_pycocotools_writes(mask):
    text = run_lengths.encode(np.asfortranarray(mask))["counts"].decode()
    runs = _decompressed(text)
    pixels = np.repeat(np.arange(len(runs)) % 2, runs)
    np.testing.assert_array_equal(pixels.reshape(mask.shape[::-1]).T, mask)
    rle = checked_run_lengths({"size": list(mask.shape), "counts": text}, mask.shape)
    np.testing.assert_array_equal(run_lengths.decode(rle), mask)


@settings(deadline=None, max_examples=300)
@given(MASKS, st.data())
def test_damaged_run_lengths_never_reach_pycocotools(mask, data):
    """Whatever passes covers the image exactly: nothing else is safe in C."""
    text = run_lengths.encode(np.asfortranarray(mask))["counts"].decode()
    place = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:place] + data.draw(st.text(max_size=3)) + text[place + data.draw(st.integers(0, 2)) :]
    try:
        rle = checked_run_lengths({"size": list(mask.shape), "counts": damaged}, mask.shape)
    except (NoArea, ValueError):
        return
    assert run_lengths.decode(rle).shape == mask.shape
    assert _decompressed(damaged).sum() == mask.size


@given(st.lists(st.floats(-10_000, 10_000), min_size=2, max_size=20))
def test_points_near_the_image_are_taken(values):
    values = values[: len(values) // 2 * 2]
    expected = np.reshape(values, (-1, 2))
    np.testing.assert_array_equal(checked_points(values, (40, 32)), expected)
    np.testing.assert_array_equal(checked_points(expected.tolist(), (40, 32)), expected)


@pytest.mark.parametrize("bad", [1e9, -1e9, 10**30, float("nan"), float("inf"), "3", None, [1], {}])
def test_points_that_no_image_has_are_refused(bad):
    with pytest.raises(ValueError, match=r"point|odd number"):
        checked_points([1, 2, bad, 4], (40, 32))


def test_whole_numbers():
    assert [whole_number(value, "x") for value in (3, 3.0, "3", " 3 ", "-3")] == [3, 3, 3, 3, -3]
    for value in (True, None, 3.5, "x", "", "3.5", [3], float("nan"), float("inf"), "9" * 5000, 1e300):
        with pytest.raises(ValueError, match=r"x is .*(not a whole number|too large)"):
            whole_number(value, "x")
