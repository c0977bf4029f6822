"""Pieces of an image, their neighbours, and trees of merged pieces."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


@dataclass(frozen=True)
class Pieces:
    """The pieces of an image, and what is known of them. There are n pieces and E pairs that touch.

    Attributes:
        labels: int64 (h, w), the piece of each pixel.
        areas: float64 (n,), pixels.
        moments: float64 (n, 4), means of y, x, y^2 and x^2 in parts of the image's height and width.
        borders: float64 (n, 4), pixels at the upper, lower, left and right border of the image.
        edges: float64 (n,), mean strength of the boundary inside.
        colours: float64 (n, 3), mean Lab colour, L 0 .. 1.
        spreads: float64 (n, 3), mean of the squared colours.
        boxes: int64 (n, 4), x0, y0, x1, y1, the latter two exclusive.
        pairs: int64 (E, 2), each pair once.
        lengths: float64 (E,), pairs of pixels along the common boundary.
        strengths: float64 (E,), mean strength of the common boundary, 0 .. 1.
        deep: float32 (n, D), deep features by which segments of one image differ; D may be 0.
        look: float32 (n, L), deep features of what is seen; L may be 0.
    """

    labels: np.ndarray
    areas: np.ndarray
    moments: np.ndarray
    borders: np.ndarray
    edges: np.ndarray
    colours: np.ndarray
    spreads: np.ndarray
    boxes: np.ndarray
    pairs: np.ndarray
    lengths: np.ndarray
    strengths: np.ndarray
    deep: np.ndarray
    look: np.ndarray

    def __len__(self) -> int:
        return len(self.areas)


@dataclass(frozen=True)
class MergeTree:
    """A binary tree of regions: the n pieces, then the n - 1 unions in the order of their making.

    Attributes:
        children: int64 (n - 1, 2), the two regions of each union.
        costs: float64 (n - 1,), at which these were merged.
    """

    children: np.ndarray
    costs: np.ndarray

    @cached_property
    def members(self) -> np.ndarray:
        """The pieces of each region, bool (2 n - 1, n)."""
        count = len(self.children) + 1
        members = np.zeros((2 * count - 1, count), dtype=bool)
        members[:count] = np.eye(count, dtype=bool)
        for union, (one, other) in enumerate(self.children, count):
            members[union] = members[one] | members[other]
        return members

    @cached_property
    def births(self) -> np.ndarray:
        """The cost at which each region was made, float64 (2 n - 1,); 0 for pieces."""
        return np.concatenate([np.zeros(len(self.children) + 1), self.costs])

    @cached_property
    def deaths(self) -> np.ndarray:
        """The cost at which each region was merged with another, float64 (2 n - 1,); infinite for the last."""
        deaths = np.full(2 * len(self.children) + 1, np.inf)
        deaths[self.children.ravel()] = np.repeat(self.costs, 2)
        return deaths


def watershed(boundary: np.ndarray, sigma: float = 1.0) -> np.ndarray:
    """Divide an image into the basins of the minima of its boundary.

    Every pixel flows to the lowest of its eight neighbours, where equal ones are ordered by their index.

    Args:
        boundary: float32 (h, w).
        sigma: of a Gaussian that smooths it before, in pixels.

    Returns:
        int64 (h, w), 0 .. n - 1.
    """
    surface = cv2.GaussianBlur(boundary, (0, 0), sigma) if sigma else boundary
    height, width = surface.shape
    padded = np.pad(surface, 1, constant_values=np.inf)
    index = np.arange(height * width).reshape(height, width)
    lowest, target = surface, index
    for dy, dx in NEIGHBOURS:
        value = padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        place = index + dy * width + dx
        lower = (value < lowest) | ((value == lowest) & (place < target))
        lowest, target = np.where(lower, value, lowest), np.where(lower, place, target)
    target = target.ravel()
    while not np.array_equal(further := target[target], target):
        target = further
    return np.unique(target, return_inverse=True)[1].reshape(height, width)


def describe(labels: np.ndarray, boundary: np.ndarray, lab: np.ndarray) -> Pieces:
    """Describe pieces, without deep features.

    Args:
        labels: int64 (h, w), 0 .. n - 1.
        boundary: float32 (h, w), 0 .. 1.
        lab: float32 (h, w, 3), Lab colours, L 0 .. 1.
    """
    from scipy import ndimage  # imports slowly, and other proposers do not need it

    (height, width), flat, count = labels.shape, labels.ravel(), int(labels.max()) + 1
    areas = np.bincount(flat, minlength=count).astype(np.float64)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(flat, values.ravel(), minlength=count) / areas

    y = np.broadcast_to(((np.arange(height) + 0.5) / height)[:, None], labels.shape)
    x = np.broadcast_to((np.arange(width) + 0.5) / width, labels.shape)
    sides = (labels[0], labels[-1], labels[:, 0], labels[:, -1])
    one = np.concatenate([labels[:, :-1].ravel(), labels[:-1].ravel()])
    other = np.concatenate([labels[:, 1:].ravel(), labels[1:].ravel()])
    between = [np.maximum(boundary[:, :-1], boundary[:, 1:]), np.maximum(boundary[:-1], boundary[1:])]
    apart = one != other
    one, other, between = one[apart], other[apart], np.concatenate([part.ravel() for part in between])[apart]
    codes, which = np.unique(np.minimum(one, other) * count + np.maximum(one, other), return_inverse=True)
    lengths = np.bincount(which, minlength=len(codes)).astype(np.float64)
    empty = np.zeros((count, 0), np.float32)
    return Pieces(
        labels=labels,
        areas=areas,
        moments=np.stack([mean(y), mean(x), mean(y * y), mean(x * x)], 1),
        borders=np.stack([np.bincount(side, minlength=count) for side in sides], 1).astype(np.float64),
        edges=mean(boundary),
        colours=np.stack([mean(lab[..., channel]) for channel in range(3)], 1),
        spreads=np.stack([mean(lab[..., channel] ** 2) for channel in range(3)], 1),
        boxes=np.array([(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels + 1)]),
        pairs=np.stack([codes // count, codes % count], 1),
        lengths=lengths,
        strengths=np.bincount(which, between, minlength=len(codes)) / np.maximum(lengths, 1),
        deep=empty,
        look=empty,
    )


def pooled(labels: np.ndarray, maps: Sequence[np.ndarray]) -> np.ndarray:
    """Return deep features of pieces, float32 (n, C): means of each map, brought to unit length.

    Args:
        labels: int64 (h, w), 0 .. n - 1.
        maps: float32 (C, y, x) each, of the same image on grids of any size; a pixel has the feature of its cell.
    """
    from scipy import sparse

    count, found = int(labels.max()) + 1, []
    for features in maps:
        channels, rows, columns = features.shape
        y, x = (
            ((np.arange(side) + 0.5) * cells / side).astype(np.int64)
            for side, cells in zip(labels.shape, (rows, columns), strict=True)
        )
        places = (y[:, None] * columns + x).ravel()
        ones = np.ones(labels.size, np.float32)
        shares = sparse.coo_matrix((ones, (labels.ravel(), places)), shape=(count, rows * columns)).tocsr()
        sums = shares @ features.reshape(channels, -1).T
        found.append(sums / np.sqrt((sums**2).sum(1, keepdims=True) + 1e-6))
    return np.concatenate(found, 1).astype(np.float32)


def agglomerate(pieces: Pieces, boundary: float, colour: float, deep: float, exponent: float) -> MergeTree:
    """Merge the pair of touching regions of the lowest cost until one is left.

    The cost is (boundary x mean strength of the common boundary + colour x distance of the mean Lab colours + deep x
    distance of the mean deep features) x (area of the smaller region / area of the image) ^ exponent.
    """
    count, total = len(pieces), pieces.areas.sum()
    areas = np.zeros(2 * count - 1)
    means = np.zeros((2 * count - 1, 3 + pieces.deep.shape[1]))
    areas[:count] = pieces.areas
    means[:count] = np.concatenate([pieces.colours * colour, pieces.deep * deep], 1)
    if not deep:
        means = means[:, :3]

    def costs(one: np.ndarray | int, others: np.ndarray, strengths: np.ndarray) -> list[float]:
        squares = (means[one] - means[others]) ** 2
        cost = boundary * strengths + np.sqrt(squares[:, :3].sum(1))
        if means.shape[1] > 3:
            cost += np.sqrt(squares[:, 3:].sum(1))
        return (cost * (np.minimum(areas[one], areas[others]) / total) ** exponent).tolist()

    near: list[dict[int, tuple[float, float]]] = [{} for _ in range(2 * count - 1)]  # summed strength, length
    pairs = pieces.pairs.tolist()
    for (one, other), strength, length in zip(pairs, pieces.strengths.tolist(), pieces.lengths.tolist(), strict=True):
        near[one][other] = near[other][one] = (strength * length, length)
    first = costs(pieces.pairs[:, 0], pieces.pairs[:, 1], pieces.strengths)
    queue = [(cost, one, other) for cost, (one, other) in zip(first, pairs, strict=True)]
    heapq.heapify(queue)
    alive = [True] * count + [False] * (count - 1)
    children, paid = [], []
    while queue:
        cost, one, other = heapq.heappop(queue)
        if not (alive[one] and alive[other]):
            continue
        union = count + len(children)
        children.append((one, other))
        paid.append(cost)
        alive[one] = alive[other] = False
        alive[union] = True
        areas[union] = areas[one] + areas[other]
        means[union] = (means[one] * areas[one] + means[other] * areas[other]) / areas[union]
        mine, theirs = near[one], near[other]
        for place, (strength, length) in theirs.items():
            before = mine.get(place, (0.0, 0.0))
            mine[place] = (before[0] + strength, before[1] + length)
        mine.pop(one, None)
        mine.pop(other, None)
        near[union], near[one], near[other] = mine, {}, {}
        if not mine:
            continue
        others = list(mine)
        sums = np.array(list(mine.values()))
        for place, value in zip(others, costs(union, np.array(others), sums[:, 0] / sums[:, 1]), strict=True):
            around = near[place]
            around.pop(one, None)
            around.pop(other, None)
            around[union] = mine[place]
            heapq.heappush(queue, (value, union, place))
    return MergeTree(np.array(children, dtype=np.int64).reshape(-1, 2), np.array(paid))
