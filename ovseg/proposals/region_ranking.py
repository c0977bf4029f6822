"""Candidates out of trees of regions: unions of two, features, and the choice of a few that differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ovseg.proposals.regions import MergeTree, Pieces

TINY = 1e-6


@dataclass(frozen=True)
class Candidates:
    """Different regions of an image.

    Attributes:
        members: bool (c, n), the pieces of each.
        features: float32 (c, F): sizes, shape and place; the boundary around and inside; contrasts of colour and deep
            features with the neighbours and inside; costs and ranks in each tree; what is seen.
    """

    members: np.ndarray
    features: np.ndarray


def candidates(
    pieces: Pieces, trees: Sequence[MergeTree], unions: int = 0, base: int = 0, smallest: float = 2e-4
) -> Candidates:
    """Collect the regions of several trees, and unions of similar ones, each set of pieces once.

    Args:
        pieces: the pieces of the image.
        trees: over these.
        unions: number of :func:`similar_unions` of the tree ``base``.
        base: index of a tree.
        smallest: share of the image's area below which regions are left out, except if all are so small.
    """
    sources = [(tree.members, _life(tree)) for tree in trees]
    if unions:
        joined = similar_unions(pieces, trees[base], unions)
        order = np.log1p(np.arange(len(joined)))
        sources.append((joined, np.stack([np.ones(len(joined)), 8 - order, np.zeros(len(joined))], 1)))
    members = np.concatenate([source for source, _ in sources])
    keys = np.random.default_rng(0).integers(1, 1 << 60, len(pieces), dtype=np.uint64)
    codes = members @ keys  # modulo 2^64: equal for equal sets, else different but for a chance of about 2^-40
    _, first, which = np.unique(codes, return_index=True, return_inverse=True)
    lives, start = np.zeros((len(first), len(sources), 3)), 0
    for column, (source, life) in enumerate(sources):
        lives[which[start : start + len(source)], column] = life
        start += len(source)
    members = members[first]
    areas = members @ pieces.areas
    kept = areas >= min(smallest * pieces.areas.sum(), areas.max())
    members, lives = members[kept], lives[kept]
    lives = np.concatenate([lives.reshape(len(lives), -1), lives.max(1), lives.mean(1)], 1)
    return Candidates(members, np.concatenate([_appearance(pieces, members), lives], 1).astype(np.float32))


def similar_unions(pieces: Pieces, tree: MergeTree, count: int, regions: int = 80) -> np.ndarray:
    """Return unions of two regions that share no piece and look alike, wherever they are, bool (u, n).

    The parts of a sky behind trees, or of a floor between chairs, do not touch.

    Args:
        pieces: the pieces of the image.
        tree: the tree; of its regions those are joined that live longest and have 0.2 % of the image's area.
        count: of unions at most, the most similar ones.
        regions: number of the regions that are compared.
    """
    longest = tree.members[np.argsort(-tree.deaths, kind="stable")[1:regions]]
    areas, total = longest @ pieces.areas, pieces.areas.sum()
    longest, areas = longest[areas >= 0.002 * total], areas[areas >= 0.002 * total]
    weights = longest * pieces.areas / areas[:, None]
    colours, deep = weights @ pieces.colours, weights @ pieces.deep
    one, other = np.triu_indices(len(longest), 1)
    rows = longest.astype(np.float32)
    apart = (rows @ rows.T)[one, other] == 0
    one, other = one[apart], other[apart]
    costs = np.linalg.norm(colours[one] - colours[other], axis=1) + np.linalg.norm(deep[one] - deep[other], axis=1) / 6
    costs *= (np.minimum(areas[one], areas[other]) / total) ** 0.1
    best = np.argsort(costs, kind="stable")[:count]
    return longest[one[best]] | longest[other[best]]


def choose(members: np.ndarray, areas: np.ndarray, chances: np.ndarray, count: int, pool: int = 1500) -> np.ndarray:
    """Return the indices of at most ``count`` regions, best first, that are expected to find most segments.

    One after another, the region of the highest chance is taken, and the chance of each other is multiplied by the
    share ``1 - g`` that it finds another segment; g rises from 0 at an IoU of 0.3 with the region to 1 at 0.8.

    Args:
        members: bool (c, n).
        areas: (n,), of the pieces.
        chances: (c,), that the region is a segment, with an IoU of at least 0.5.
        count: of regions.
        pool: number of the regions of the highest chances, of which ``count`` are taken.
    """
    order = np.argsort(-chances, kind="stable")[:pool]
    rows, areas = members[order].astype(np.float32), areas.astype(np.float32)
    sizes, common = rows @ areas, (rows * areas) @ rows.T
    others = 1 - np.clip((common / (sizes[:, None] + sizes - common) - 0.3) / 0.5, 0, 1)
    left, chosen = chances[order].astype(np.float64), []
    for _ in range(min(count, len(order))):
        best = int(np.argmax(left))
        chosen.append(best)
        left *= others[best]
        left[chosen] = -1
    return order[chosen]


def _life(tree: MergeTree) -> np.ndarray:
    """Return of each region of a tree: 1, how late it is merged, and how much later than it was made."""
    count = len(tree.births)
    late = np.empty(count)
    late[np.argsort(-tree.deaths, kind="stable")] = np.log1p(np.arange(count))
    deaths = np.minimum(tree.deaths, tree.costs.max(initial=TINY) * 2)
    ratio = np.log(np.maximum(deaths, TINY)) - np.log(np.maximum(tree.births, TINY))
    return np.stack([np.ones(count), 8 - late, np.minimum(ratio, 5)], 1)


def _appearance(pieces: Pieces, members: np.ndarray) -> np.ndarray:
    total, rows, areas = pieces.areas.sum(), members.astype(np.float32), members @ pieces.areas
    share = areas / total

    def mean(values: np.ndarray) -> np.ndarray:
        return rows @ (values * pieces.areas[:, None]).astype(np.float32) / areas[:, None]

    length, seams, outer, inner, weakest, strongest = _seams(pieces, members)
    moments, colours, deep = mean(pieces.moments), mean(pieces.colours), mean(pieces.deep)
    spread = np.sqrt(np.maximum(moments[:, 2:] - moments[:, :2] ** 2, 0))
    height, width = pieces.labels.shape
    borders = members @ pieces.borders / np.array([width, width, height, height])
    perimeter = length + members @ pieces.borders.sum(1)
    ring = _ring(pieces, members)
    colour_apart, deep_apart = colours - ring @ pieces.colours, deep - ring @ pieces.deep
    deep_spread = np.sqrt(np.maximum(mean(pieces.deep**2) - deep**2, 0))
    low, high = pieces.boxes[:, :2], pieces.boxes[:, 2:]
    box_width, box_height = (
        np.where(members, high[:, axis], 0).max(1) - np.where(members, low[:, axis], 1 << 30).min(1) for axis in (0, 1)
    )
    return np.column_stack(
        [
            np.log(share),
            np.log(share) ** 2 / 10,
            np.log(np.sqrt(areas) / np.maximum(perimeter, 1)),
            np.minimum(share / (12 * spread[:, 0] * spread[:, 1] + 1e-4), 3),
            np.log(members.sum(1)),
            moments[:, :2],
            spread,
            borders,
            (borders > 0).sum(1),
            outer,
            inner,
            outer - inner,
            np.minimum(weakest, 1),
            strongest,
            np.log1p(seams) - np.log1p(length),
            mean(pieces.edges[:, None]),
            colours,
            np.sqrt(np.maximum(mean(pieces.spreads) - colours**2, 0)),
            np.linalg.norm(deep_apart, axis=1),
            np.linalg.norm(deep_apart[:, :8], axis=1),
            np.linalg.norm(colour_apart, axis=1),
            np.abs(colour_apart[:, 0]),
            np.linalg.norm(deep_spread, axis=1),
            np.linalg.norm(deep_spread[:, :8], axis=1),
            areas / (box_width * box_height),
            np.log(box_width / box_height),
            np.abs(np.log(box_width / box_height)),
            np.log(box_width / width),
            np.log(box_height / height),
            mean(pieces.look),
        ]
    )


def _seams(pieces: Pieces, members: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the lengths of the boundaries around and inside regions, means along them, and two extremes.

    The means (c, 4) are of the boundary's strength, its square, and the contrasts of colour and deep features.
    """
    one, other = pieces.pairs.T
    in_one, in_other = members[:, one], members[:, other]
    around, inside = (in_one != in_other).astype(np.float32), (in_one & in_other).astype(np.float32)
    colour = np.linalg.norm(pieces.colours[one] - pieces.colours[other], axis=1)
    deep = np.linalg.norm(pieces.deep[one] - pieces.deep[other], axis=1)
    strengths = pieces.strengths.astype(np.float32)
    values = np.stack([np.ones(len(one)), strengths, strengths**2, colour, deep], 1)
    values = (values * pieces.lengths[:, None]).astype(np.float32)
    outer, inner = around @ values, inside @ values
    return (
        outer[:, 0],
        inner[:, 0],
        outer[:, 1:] / np.maximum(outer[:, :1], 1),
        inner[:, 1:] / np.maximum(inner[:, :1], 1),
        np.where(around > 0, strengths, 2).min(1, initial=2),
        (inside * strengths).max(1, initial=0),
    )


def _ring(pieces: Pieces, members: np.ndarray) -> np.ndarray:
    """Return weights (c, n) of the pieces around each region, by the length of the contact; sums are 1, or 0."""
    from scipy import sparse  # imports slowly, and other proposers do not need it

    one, other = pieces.pairs.T
    places, shape = np.arange(len(one)), (len(one), len(pieces))
    lengths = pieces.lengths.astype(np.float32)
    of_one, of_other = (sparse.csr_matrix((lengths, (places, side)), shape=shape) for side in (one, other))
    leaves, enters = members[:, one] & ~members[:, other], members[:, other] & ~members[:, one]
    ring = sparse.csr_matrix(leaves, dtype=np.float32) @ of_other + sparse.csr_matrix(enters, dtype=np.float32) @ of_one
    ring = ring.toarray()
    return ring / np.maximum(ring.sum(1, keepdims=True), 1)
