from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovseg.data.custom.geometry import checked_points, whole_number


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
