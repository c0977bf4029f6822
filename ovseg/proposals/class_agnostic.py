"""Dice loss of class-agnostic masks that only asks each label to be covered (OpenSeg, arXiv 2112.12143, equation 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ovseg.errors import OvsegError, argument

FORMS = ("vnet", "linear")


def dice(masks: Tensor, labels: Tensor, valid: Tensor | None = None, form: str = "vnet") -> Tensor:
    """Compute the Dice coefficient of each mask and label, without smoothing.

    Args:
        masks: (N, H, W) probabilities.
        labels: bool (M, H, W).
        valid: bool (H, W), pixels that enter the sums; None for all.
        form: of the denominator, "vnet", sum(s^2) + sum(g^2) (arXiv 1606.04797); or "linear", sum(s) + sum(g).

    Returns:
        (N, M); 0 where mask and label are empty.

    Raises:
        OvsegError: another form.
    """
    if form not in FORMS:
        raise OvsegError(f"{argument('form')} is {form!r}: choose one of {', '.join(FORMS)}")
    labels = labels.to(masks.dtype)
    if valid is not None:
        masks, labels = masks * valid, labels * valid
    masks, labels = masks.flatten(1), labels.flatten(1)
    areas = (masks**2 if form == "vnet" else masks).sum(1)[:, None] + labels.sum(1)  # a label is its own square
    both = 2 * masks @ labels.T
    return torch.where(areas > 0, both / torch.where(areas > 0, areas, 1), 0)


def best_match_dice_loss(
    mask_logits: Tensor, labels: Sequence[Tensor], valid: Tensor | None = None, form: str = "vnet"
) -> Tensor:
    """Compute 1 - Dice of each label and the mask that covers it best, the mean over labels and then over images.

    Masks that are best for no label have a zero gradient: they are free to be anything.

    Args:
        mask_logits: (B, N, H, W).
        labels: for each image bool (M, H, W), any M.
        valid: bool (B, H, W), see :func:`dice`.
        form: see :func:`dice`.

    Returns:
        scalar; 0, with zero gradients, without any label.
    """
    losses = []
    for index, of_image in enumerate(labels):
        if len(of_image):
            where = None if valid is None else valid[index]
            best = dice(mask_logits[index].sigmoid(), of_image, where, form).amax(dim=0)  # (M,)
            losses.append(1 - best.mean())
    return torch.stack(losses).mean() if losses else 0 * mask_logits.sum()
