"""Outlines of masks as polygons along the edges of pixels, simplified, with holes.

Coordinates are continuous: the pixel in column x and row y covers [x, x + 1] x [y, y + 1], as in COCO, YOLO and CVAT.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True, eq=False)
class Outline:
    """The polygons of one connected mask.

    Attributes:
        outer: (N,2) float32, x and y in pixels.
        holes: (M,2) float32 each.
    """

    outer: np.ndarray
    holes: tuple[np.ndarray, ...] = ()

    def joined(self) -> np.ndarray:
        """Return one polygon (N,2), in which a slit of no width leads to each hole.

        It has the area of the outline with its holes, for formats that have no holes. Where a line is drawn along the
        polygon, the slit is visible.
        """
        from scipy.spatial import cKDTree  # imports slowly, and few formats need it

        ring = self.outer
        for hole in sorted(self.holes, key=lambda points: points[:, 0].min()):
            i = int(cKDTree(hole).query(ring)[0].argmin())  # memory grows by N + M, not by N times M
            j = int(((hole - ring[i]) ** 2).sum(-1).argmin())
            around = np.concatenate([hole[j:], hole[: j + 1]])  # ends where it begins
            ring = np.concatenate([ring[: i + 1], around, ring[i:]])
        return ring


def outline_of(
    mask: np.ndarray, tolerance: float = 0.0, offset: tuple[float, float] = (0, 0), smallest_hole: float = 0
) -> Outline:
    """Return the outline of a mask that is connected by the sides of its pixels.

    Args:
        mask: (H,W) bool with one part.
        tolerance: no point of the exact outline is farther than this from the simplified one, pixels (Douglas-Peucker);
            0 keeps every corner. A polygon that would have fewer than three points keeps all of them.
        offset: x and y of the mask's first pixel in the image.
        smallest_hole: holes of fewer pixels are left out.
    """
    double = cv2.resize(mask.astype(np.uint8), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    # each of the four quarters of a pixel stands for the corner of the pixel next to it
    corners = [(contour[:, 0] + 1) // 2 for contour in contours]
    areas = [abs(cv2.contourArea(points.astype(np.int32))) for points in corners]
    outer = int(np.argmax(areas))
    shift = np.array(offset, np.float32)
    rings = [
        simplified(points, tolerance).astype(np.float32) + shift
        for number, (points, area) in enumerate(zip(corners, areas, strict=True))
        if number == outer or area >= max(smallest_hole, 1)
    ]
    first = sum(area >= max(smallest_hole, 1) for area in areas[:outer])
    return Outline(rings[first], (*rings[:first], *rings[first + 1 :]))


def simplified(points: np.ndarray, tolerance: float) -> np.ndarray:
    """Return the points (N,2) of a closed polygon without those within ``tolerance`` of the line of the others."""
    exact = cv2.approxPolyDP(points.astype(np.int32), 0, True)[:, 0]
    if tolerance <= 0:
        return exact
    fewer = cv2.approxPolyDP(exact, tolerance, True)[:, 0]
    return fewer if len(fewer) >= 3 and cv2.contourArea(fewer) > 0 else exact


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return x, y, width and height of the box around the pixels of a mask (H,W) that has some."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)
