"""Classes that are never true: what the two conventions of mean IoU make of them, and the example in the documents."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest

from ovseg.evaluation.confusion import confusion_matrix, scores_from_confusion

DOCUMENT = Path(__file__).parents[2] / "docs" / "evaluation.md"
CLASSES, ABSENT = 459, 114  # PASCAL Context's in validation


@pytest.mark.parametrize("predicted_absent", [0, 1, 20, 114])
def test_the_ratio_is_that_of_the_denominators(predicted_absent):
    """Every present class is half right; so many of the absent ones are predicted in one pixel."""
    present = CLASSES - ABSENT
    truth = np.repeat(np.arange(present), 10).reshape(present, 10)
    predicted = truth.copy()
    predicted[:, 5:] = np.roll(truth, 1, axis=0)[:, 5:]
    predicted[:predicted_absent, 9] = present + np.arange(predicted_absent)
    scores = scores_from_confusion(confusion_matrix(predicted, truth, CLASSES, 65535), [str(i) for i in range(CLASSES)])
    assert scores["mIoU-gt"] / scores["mIoU-union"] == pytest.approx((present + predicted_absent) / present)
    assert scores["mIoU-gt"] == pytest.approx(100 / 3, rel=0.03)


def test_the_example_in_the_documents_prints_what_stands_there():
    text = DOCUMENT.read_text()
    code, printed = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL).groups()
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, str(DOCUMENT), "exec"), {})
    assert out.getvalue() == printed
    assert "ratio 1.330" in printed
