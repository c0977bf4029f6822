from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
import torch

from ovseg.errors import OvsegError
from ovseg.evaluation.crf import DenseCRF


def test_says_how_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(OvsegError, match=r"DENSE_CRF needs the package pydensecrf.*pip install"):
        DenseCRF()


@pytest.mark.skipif(importlib.util.find_spec("pydensecrf") is None, reason="pydensecrf is not installed")
def test_moves_a_border_to_the_edge_in_the_image():
    image = np.zeros((30, 40, 3), np.uint8)
    image[:, 20:] = 200
    scores = torch.zeros(2, 30, 40)
    scores[0, :, :18], scores[1, :, 18:] = 3, 3
    refined = DenseCRF()(image, scores)
    torch.testing.assert_close(refined.sum(0), torch.ones(30, 40))
    expected = torch.arange(40).ge(20).long().expand(30, 40)
    torch.testing.assert_close(refined.argmax(0), expected)
    with pytest.raises(OvsegError, match="the same size"):
        DenseCRF()(image[1:], scores)
