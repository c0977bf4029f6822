"""Overlaps of class-agnostic mask proposals with true segments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

_PIXELS_PER_CHUNK = 1 << 16


def segment_intersections(proposals: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """Count the pixels that each proposal shares with each segment.

    Args:
        proposals: (Q,N) bool, N pixels.
        segments: (N,) int64, index in [0,S) of the segment that each pixel belongs to.

    Returns:
        (Q,S) float64.
    """
    num_segments = int(segments.max()) + 1 if segments.numel() else 0
    return _shared_pixels(
        proposals,
        num_segments,
        lambda chunk: torch.nn.functional.one_hot(segments[chunk], num_segments).to(torch.float32),
    )


def ious_of(intersections: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """Return the (Q,S) IoUs for the result of :func:`segment_intersections` with the same segments."""
    area = intersections.sum(dim=1, keepdim=True)  # segments cover all pixels, so this is each proposal's area
    sizes = torch.bincount(segments, minlength=intersections.shape[1]).to(torch.float64)
    return intersections / (area + sizes - intersections).clamp(min=1)


def segment_ious(proposals: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """Compute the (Q,S) float64 IoU of each proposal and segment; arguments as in :func:`segment_intersections`."""
    return ious_of(segment_intersections(proposals, segments), segments)


def best_ious(proposals: torch.Tensor, labels: torch.Tensor, ignore: torch.Tensor | None = None) -> torch.Tensor:
    """Return the best IoU of each true mask over the proposals of an image.

    Args:
        proposals: bool (N, H, W).
        labels: bool (M, H, W), true masks, which may overlap.
        ignore: bool (H, W), pixels that are in no mask; default: none.

    Returns:
        float64 (M,), 0 where there is no proposal or a mask has no pixel.
    """
    proposals, masks = proposals.flatten(1).bool(), labels.flatten(1).bool()
    if ignore is not None:
        counted = ~ignore.flatten().bool()
        proposals, masks = proposals[:, counted], masks[:, counted]
    if not len(proposals):
        return torch.zeros(len(masks), dtype=torch.float64, device=masks.device)
    shared = _shared_pixels(proposals, len(masks), lambda chunk: masks[:, chunk].to(torch.float32).T)
    areas, sizes = proposals.sum(1, keepdim=True), masks.sum(1)
    return (shared / (areas + sizes - shared).clamp(min=1)).amax(0)


def recall_at(best_ious: torch.Tensor, thresholds: Sequence[float]) -> list[float]:
    """Return the share of true masks whose best IoU is at least each threshold, in percent; NaN without masks."""
    return [100 * float((best_ious >= threshold).double().mean()) for threshold in thresholds]


def _shared_pixels(proposals: torch.Tensor, number: int, masks_of: Callable[[slice], torch.Tensor]) -> torch.Tensor:
    """Count the pixels that each proposal shares with each of ``number`` masks.

    Args:
        proposals: (Q,N) bool.
        number: S.
        masks_of: a range of n pixels -> the masks there, float32 (n,S) of 0 and 1.

    Returns:
        (Q,S) float64. Pixels are counted in chunks of at most 65,536, where float32 sums of ones are exact.
    """
    shared = torch.zeros(len(proposals), number, dtype=torch.float64, device=proposals.device)
    for start in range(0, proposals.shape[1], _PIXELS_PER_CHUNK):
        chunk = slice(start, start + _PIXELS_PER_CHUNK)
        shared += (proposals[:, chunk].to(torch.float32) @ masks_of(chunk)).to(torch.float64)
    return shared
