"""Overlaps of class-agnostic mask proposals with true segments."""

from __future__ import annotations

import torch

_PIXELS_PER_CHUNK = 1 << 16


def segment_intersections(proposals: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """Count the pixels that each proposal shares with each segment.

    Args:
        proposals: (Q,N) bool, N pixels.
        segments: (N,) int64, index in [0,S) of the segment that each pixel belongs to.

    Returns:
        (Q,S) float64. Pixels are counted in chunks of at most 65,536, where float32 sums of ones are exact.
    """
    num_segments = int(segments.max()) + 1 if segments.numel() else 0
    inter = torch.zeros(len(proposals), num_segments, dtype=torch.float64, device=proposals.device)
    for start in range(0, len(segments), _PIXELS_PER_CHUNK):
        chunk = slice(start, start + _PIXELS_PER_CHUNK)
        one_hot = torch.nn.functional.one_hot(segments[chunk], num_segments).to(torch.float32)
        inter += (proposals[:, chunk].to(torch.float32) @ one_hot).to(torch.float64)
    return inter


def ious_of(intersections: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """Return the (Q,S) IoUs for the result of :func:`segment_intersections` with the same segments."""
    area = intersections.sum(dim=1, keepdim=True)  # segments cover all pixels, so this is each proposal's area
    sizes = torch.bincount(segments, minlength=intersections.shape[1]).to(torch.float64)
    return intersections / (area + sizes - intersections).clamp(min=1)


def segment_ious(proposals: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """Compute the (Q,S) float64 IoU of each proposal and segment; arguments as in :func:`segment_intersections`."""
    return ious_of(segment_intersections(proposals, segments), segments)
