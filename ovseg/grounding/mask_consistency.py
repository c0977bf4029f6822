"""Consistency of group masks across two images that show the same thing (OVSegmentor, specification 5.3).

The groups of an image look for their patches in the other image (student). There they should find what the other
image's own groups find (teacher), as matched by their maps::

    queries of I  (K, D) --+--> student maps M1 --> min-max ------------------+--> Dice
    patches of I' (N, D) --+                                                  |
    queries of I' (K, D) --+--> teacher maps M2 --> sigmoid, threshold -------+
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_maps(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the scores (B, K, N) of patches for groups, scaled, without softmax.

    Args:
        queries: (B, K, D) of groups.
        keys: (B, N, D) of patches, of the same image or another one.
    """
    return queries @ keys.transpose(1, 2) * queries.shape[-1] ** -0.5


def maps_at(scores: Tensor, size: int) -> Tensor:
    """Return scores (B, K, N) of a square grid of patches as maps (B, K, size, size), bilinear with aligned corners."""
    side = round(scores.shape[2] ** 0.5)
    maps = scores.float().unflatten(2, (side, side))
    return F.interpolate(maps, (size, size), mode="bilinear", align_corners=True)


def cut_least_similar(maps: Tensor, similarity: Tensor, ratio: float) -> Tensor:
    """Return maps (B, K, ...) with the same values, of which the int(K ratio) of least similarity have no gradient.

    Args:
        similarity: (B, K) of the groups and what both images show.
    """
    count = int(maps.shape[1] * ratio)
    cut = torch.zeros_like(similarity, dtype=torch.bool)
    cut.scatter_(1, similarity.topk(count, dim=1, largest=False).indices, True)
    return torch.where(cut[:, :, None, None], maps.detach(), maps)


@torch.no_grad()
def match_maps(student: Tensor, teacher: Tensor, cost: str = "L2") -> Tensor:
    """Return which of the teacher's maps belongs to each of the student's, at the lowest total cost, int64 (B, K).

    Args:
        student, teacher: (B, K, H, W).
        cost: L2, the distance of the normalised maps; or cosine, minus their cosine.
    """
    from scipy.optimize import linear_sum_assignment  # imports slowly, and inference does not need it

    ours, theirs = (F.normalize(maps.flatten(2), dim=-1) for maps in (student, teacher))
    costs = torch.cdist(ours, theirs) if cost == "L2" else -ours @ theirs.transpose(1, 2)
    pairs = [linear_sum_assignment(of_image)[1] for of_image in costs.float().cpu().numpy()]  # bfloat16 under autocast
    return torch.stack([torch.as_tensor(columns) for columns in pairs]).to(student.device)


def mask_consistency_loss(
    student: Tensor, teacher: Tensor, threshold: float = 0.6, cost: str = "L2", per_group: bool = True
) -> Tensor:
    """Compute the Dice loss of the student's maps and the masks of the teacher's that match them.

    A pixel is in the mask of a map if the sigmoid is at least ``threshold`` times the sigmoid's maximum. The student's
    maps are scaled to 0 .. 1; their extreme pixels have a gradient, too. The maps of an image are compared jointly.

    Args:
        student: (B, K, H, W), raw scores.
        teacher: (B, K, H, W), raw scores; has no gradient.
        cost: see :func:`match_maps`.
        per_group: divide the sum over images by K, as published models were trained; False: by B.

    Returns:
        scalar.
    """
    matched = match_maps(student, teacher, cost)
    teacher = teacher.detach().gather(1, matched[:, :, None, None].expand_as(teacher)).sigmoid()
    target = (teacher >= threshold * teacher.amax((2, 3), keepdim=True)).float().flatten(1)
    low, high = student.amin((2, 3), keepdim=True), student.amax((2, 3), keepdim=True)
    spread = torch.where(high > low, high - low, 1.0)  # a constant map becomes 0
    predicted = ((student - low) / spread).flatten(1)
    dice = 1 - (2 * (predicted * target).sum(1) + 1) / (predicted.sum(1) + target.sum(1) + 1)
    return dice.sum() / (student.shape[1] if per_group else len(student))
