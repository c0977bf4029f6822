"""Naming proposals: what the proposal network and CLIP each think of every mask, and the two as one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ovseg.clip.contextual_shift import Context
from ovseg.meta_arch.words import Words

LOG_EPSILON = 1e-8


@dataclass(frozen=True)
class Proposals:
    """What the proposal network found in one image, before CLIP looks at it.

    Attributes:
        words: K classes, and their S >= K names.
        text: (S + 1, D) unit vectors of the names, "no object" last.
        image: (3, H, W), 0 .. 255.
        masks: (Q, H, W) probabilities.
        own: (Q, K) the network's own class probabilities; what is missing to 1 is "no object".
        context: what CLIP shall know of the image when it sees the masks' crops, if anything.
        dataset_name: of the data set that the image belongs to, if any.
    """

    words: Words
    text: Tensor
    image: Tensor
    masks: Tensor
    own: Tensor
    context: Context | None = None
    dataset_name: str | None = None


@dataclass(frozen=True)
class ClipOpinion:
    """What CLIP thinks of the masks that it has seen.

    Attributes:
        valid: bool (Q,), the masks that have a pixel above the threshold: V of them.
        probabilities: (V, K) in their order; None when CLIP is not asked.
    """

    valid: Tensor
    probabilities: Tensor | None


def own_probabilities(logits: Tensor, drop_no_object_first: bool) -> Tensor:
    """Logits with "no object" last, (Q, K + 1), -> class probabilities (Q, K)."""
    return logits[:, :-1].softmax(-1) if drop_no_object_first else logits.softmax(-1)[:, :-1]


def fuse(own: Tensor, clip: ClipOpinion, weight: float) -> Tensor:
    """Geometric mean own^(1 - weight) * clip^weight (arXiv 2210.04150, equation 4; specification, section 2.3).

    Args:
        own: (Q, K).
        clip: of the same masks.
        weight: CLIP's; not positive means CLIP alone.

    Returns:
        (Q, K), not normalised. With CLIP alone the rows of invalid masks are zero, so they paint nothing; otherwise a
        mask that CLIP has not seen has no second opinion, which is the factor 1.
    """
    if clip.probabilities is None:
        return own
    seen = clip.valid[:, None]
    if weight <= 0:
        return torch.zeros_like(own).masked_scatter_(seen, clip.probabilities)
    opinion = torch.ones_like(own).masked_scatter_(seen, clip.probabilities)
    return own ** (1 - weight) * opinion**weight


def normalise_over_classes(fused: Tensor, own: Tensor) -> Tensor:
    """Scale each mask's scores to sum to the probability that it is an object, and smooth them (SCAN's variant "log").

    The original's detour by logarithms (specification of SCAN, section 9, step 5) comes to this.

    Args:
        fused: (Q, K) from :func:`fuse`.
        own: (Q, K) the network's own probabilities; what is missing to 1 is "no object".
    """
    objects = own.sum(-1, keepdim=True)
    scores = fused / fused.sum(-1, keepdim=True).clamp_min(torch.finfo(fused.dtype).tiny) * objects + LOG_EPSILON
    return scores / (scores.sum(-1, keepdim=True) + (1 - objects) + LOG_EPSILON)


def explain(found: Proposals, clip: ClipOpinion, fused: Tensor, threshold: float) -> dict[str, Tensor]:
    """The scores of every valid mask by each classifier, and where the mask is.

    Args:
        fused: (Q, K) from :func:`fuse`.
        threshold: probability above which a pixel belongs to the mask.

    Returns:
        ``own``, ``clip`` and ``fused`` float32 (V, K), ``clip`` NaN when CLIP was not asked; ``fractions`` (V,) of the
        image's area; ``boxes`` (V, 4) x0, y0, x1, y1 in parts of the image's width and height.
    """
    binary = found.masks[clip.valid] > threshold
    own = found.own[clip.valid]
    height, width = binary.shape[1:]
    sides = []
    for occupied, length in ((binary.any(1), width), (binary.any(2), height)):  # columns (V, W), rows (V, H)
        places = torch.arange(length, device=binary.device)
        first = torch.where(occupied, places, length).amin(1)
        sides.append((first / length, (torch.where(occupied, places, -1).amax(1) + 1) / length))
    (x0, x1), (y0, y1) = sides
    return {
        "own": own,
        "clip": torch.full_like(own, torch.nan) if clip.probabilities is None else clip.probabilities,
        "fused": fused[clip.valid],
        "fractions": binary.flatten(1).float().mean(1),
        "boxes": torch.stack((x0, y0, x1, y1), dim=1),
    }
