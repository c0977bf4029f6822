"""Refinement of scores by a dense CRF (specification, section 10.3); needs the package ``pydensecrf``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovseg.errors import OvsegError
from ovseg.io.images import read_image

ITERATIONS = 5
GAUSSIAN = {"sxy": 3, "compat": 3}
BILATERAL = {"sxy": 80, "srgb": 13, "compat": 10}


class DenseCRF:
    """Mean-field inference in a fully connected CRF (Kraehenbuehl and Koltun, 2011).

    Raises:
        OvsegError: ``pydensecrf`` is not installed; the message gives the command that installs it.
    """

    def __init__(self) -> None:
        try:
            from pydensecrf import densecrf, utils
        except ImportError as error:
            raise OvsegError(
                "TEST.DENSE_CRF needs the package pydensecrf, which is not installed: run `pip install pydensecrf`; "
                "where that fails to compile, unpack its source, delete densecrf.cpp and eigen.cpp in its pydensecrf "
                "folder, and install it from there with `cython<3`; or set TEST.DENSE_CRF to False"
            ) from error
        self._densecrf, self._utils = densecrf, utils

    def __call__(self, image: np.ndarray, scores: Tensor) -> Tensor:
        """Refine the scores of an image along its edges.

        Args:
            image: (H,W,3) uint8 RGB.
            scores: (K,H,W) float, any scale; their softmax over K is the unary term.

        Returns:
            (K,H,W) float32 probabilities, on the device of ``scores``.

        Raises:
            OvsegError: image and scores differ in size.
        """
        num_classes, height, width = scores.shape
        if image.shape != (height, width, 3):
            raise OvsegError(f"image and scores must have the same size, not {image.shape[:2]} and {(height, width)}")
        probabilities = scores.float().softmax(dim=0).cpu().numpy()
        crf = self._densecrf.DenseCRF2D(width, height, num_classes)
        crf.setUnaryEnergy(np.ascontiguousarray(self._utils.unary_from_softmax(probabilities)))
        crf.addPairwiseGaussian(**GAUSSIAN)
        crf.addPairwiseBilateral(rgbim=np.ascontiguousarray(image), **BILATERAL)
        refined = np.asarray(crf.inference(ITERATIONS), dtype=np.float32).reshape(num_classes, height, width)
        return torch.from_numpy(refined.copy()).to(scores.device)

    def refine(self, sample: Mapping[str, Any], scores: Tensor) -> Tensor:
        """Refine the scores of a model input, whose image is read from ``file_name``."""
        return self(read_image(sample["file_name"]), scores)
