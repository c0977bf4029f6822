"""Pseudo-masks: the binary masks that a class-agnostic model is sure of, as labels of images that have none.

OpenSeg labels caption-only images with a teacher (Ghiasi et al., ECCV 2022, arXiv 2112.12143), but does not
describe how soft proposals become labels; the rule and its numbers are choices of this package (specification,
section 4).
"""

from __future__ import annotations

import torch
from torch import Tensor


def pseudo_masks(
    mask_logits: Tensor,
    valid: Tensor | None = None,
    threshold: float = 0.5,
    min_area: float = 0.001,
    min_confidence: float = 0.75,
    max_iou: float = 0.8,
    max_masks: int = 64,
) -> Tensor:
    """Return the confident, distinct masks of one image; see :func:`confident_masks`.

    Returns:
        bool (M, H, W), by descending confidence, and by index among equals; M may be 0.
    """
    return confident_masks(mask_logits, valid, threshold, min_area, min_confidence, max_iou, max_masks)[0]


def confident_masks(
    mask_logits: Tensor,
    valid: Tensor | None = None,
    threshold: float = 0.5,
    min_area: float = 0.001,
    min_confidence: float = 0.75,
    max_iou: float = 0.8,
    max_masks: int = 64,
) -> tuple[Tensor, Tensor]:
    """Return the confident, distinct masks of one image, and how confident they are.

    A mask is the set of valid pixels whose probability is above ``threshold``; its confidence is the mean probability
    of these pixels.

    Args:
        mask_logits: (N, H, W).
        valid: bool (H, W), pixels that are no padding; default: all.
        threshold: probability above which a pixel belongs to a mask.
        min_area: smallest area, as a part of the valid pixels.
        min_confidence: smallest confidence.
        max_iou: largest IoU of a mask with one of higher confidence that is returned.
        max_masks: largest number of masks.

    Returns:
        masks, bool (M, H, W), by descending confidence, and by index among equals; M may be 0. Their confidences,
        float64 (M,).
    """
    logits = mask_logits.detach()
    probabilities = logits.sigmoid() if logits.dtype in (torch.float32, torch.float64) else logits.float().sigmoid()
    masks = probabilities > threshold
    if valid is not None:
        masks &= valid
    num_valid = masks[:1].numel() if valid is None else int(valid.sum())
    areas = masks.flatten(1).sum(1).double()
    confidences = (probabilities * masks).flatten(1).sum(1, dtype=torch.float64) / areas
    kept = (areas > 0) & (areas / max(num_valid, 1) >= min_area) & (confidences >= min_confidence)
    found = kept.nonzero()[:, 0]
    found = found[confidences[found].sort(descending=True, stable=True).indices]
    found = found[distinct(masks[found], max_iou, max_masks)]
    return masks[found], confidences[found]


def distinct(masks: Tensor, max_iou: float, max_masks: int) -> list[int]:
    """Return the indices of the masks that remain when those are left out that repeat an earlier one.

    Args:
        masks: bool (n, H, W), each with a pixel, the best ones first.
        max_iou: largest IoU of a mask with an earlier one that remains.
        max_masks: largest number of indices.
    """
    flat = masks.flatten(1).float()
    shared = (flat @ flat.T).double()  # exact: counts of less than 2 ** 24 pixels
    areas = shared.diagonal()
    repeats = (shared / (areas[:, None] + areas - shared) > max_iou).cpu()
    kept: list[int] = []
    for index in range(len(masks)):
        if len(kept) == max_masks:
            break
        if not repeats[index, kept].any():
            kept.append(index)
    return kept
