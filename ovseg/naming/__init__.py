"""Namers, which compute class scores of masks from an image and words, and the fusion of their scores.

Importing this package registers the namers and fusions for ``MODEL.NAMER.NAME`` and ``MODEL.FUSION.NAME``.
"""

from ovseg.naming.aligned_crops import AlignedCrops
from ovseg.naming.contextual_shift import ContextCrops
from ovseg.naming.crops import MaskedCrops
from ovseg.naming.dense import DenseScores
from ovseg.naming.native_crops import NativeCrops
from ovseg.naming.pooled import PooledMap, TrainedRegions
from ovseg.naming.scores import (
    FUSIONS,
    NAMERS,
    GeometricMean,
    ObjectNormalizedMean,
    QueryEmbedding,
    Scores,
    SeenAveragedMean,
    SeenUnseenMean,
    SingleNamer,
)

__all__ = [
    "FUSIONS",
    "NAMERS",
    "AlignedCrops",
    "ContextCrops",
    "DenseScores",
    "GeometricMean",
    "MaskedCrops",
    "NativeCrops",
    "ObjectNormalizedMean",
    "PooledMap",
    "QueryEmbedding",
    "Scores",
    "SeenAveragedMean",
    "SeenUnseenMean",
    "SingleNamer",
    "TrainedRegions",
]
