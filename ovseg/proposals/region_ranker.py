"""The trained part of the boundary tree: projections of deep features, and a small network that ranks regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ovseg.errors import OvsegError, reason_of
from ovseg.proposals.region_ranking import Candidates, candidates
from ovseg.proposals.regions import MergeTree, Pieces, agglomerate

FILE = Path(__file__).with_name("region_ranker.safetensors")
# weights of boundary, colour and deep features, and exponent of the area: see agglomerate
TREES = (
    (1.0, 1.0, 0.17, 0.3),
    (1.0, 1.0, 0.0, 0.3),
    (1.0, 0.0, 0.0, 0.3),
    (1.0, 0.0, 0.17, 0.3),
    (0.2, 1.0, 0.17, 0.3),
    (1.0, 1.0, 0.17, 0.6),
    (1.0, 0.5, 0.35, 0.3),
    (0.5, 2.0, 0.17, 0.2),
)
UNIONS = 400
RANKED = ("hed", "gradient")  # boundaries that the packaged file has a ranker for; others propose from one tree


class RegionRanker:
    """Projections and networks, made by ``tools/train_boundary_tree.py``.

    Args:
        tensors: ``deep.mean`` (C,), ``deep.matrix`` (C, D), ``look.mean`` (C,), ``look.matrix`` (C, L), of the features
            (n, C) of pieces; ``net.mean`` (F,), ``net.scale`` (F,), and for each network k and layer l
            ``net.k.l.weight`` (in, out) and ``net.k.l.bias`` (out,).
    """

    def __init__(self, tensors: dict[str, np.ndarray]):
        self.tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}

    @classmethod
    @lru_cache
    def load(cls, boundary: str) -> RegionRanker:
        """Return the packaged ranker for the pieces of a boundary, one of RANKED, read once."""
        prefix = f"{boundary}."
        try:
            stored = load_file(FILE)
        except (OSError, SafetensorError) as error:
            raise OvsegError(f"cannot read {FILE} ({reason_of(error)}): install ovseg again") from error
        return cls({name[len(prefix) :]: tensor for name, tensor in stored.items() if name.startswith(prefix)})

    def project(self, pieces: Pieces, features: np.ndarray) -> Pieces:
        """Return the pieces with their deep features (n, C) projected."""
        deep, look = (
            (features - self.tensors[f"{name}.mean"]) @ self.tensors[f"{name}.matrix"] for name in ("deep", "look")
        )
        return replace(pieces, deep=deep, look=look)

    def chances(self, features: np.ndarray) -> np.ndarray:
        """Return the chance of each candidate (c, F) to be a segment, (c,)."""
        start = (features - self.tensors["net.mean"]) / self.tensors["net.scale"]
        logits, nets = np.zeros(len(features), np.float32), 0
        while f"net.{nets}.0.weight" in self.tensors:
            x, layer = start, 0
            while (name := f"net.{nets}.{layer}") + ".weight" in self.tensors:
                x = (np.maximum(x, 0) if layer else x) @ self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]
                layer += 1
            logits += x[:, 0]
            nets += 1
        return 1 / (1 + np.exp(-logits / nets))


def grow(pieces: Pieces, settings: Sequence[tuple[float, ...]] = TREES, unions: int = UNIONS) -> Candidates:
    """Return the candidates of the trees of projected pieces, see :func:`ovseg.proposals.regions.agglomerate`."""
    trees: list[MergeTree] = [agglomerate(pieces, *weights) for weights in settings]
    return candidates(pieces, trees, unions)
