"""Losses of mask classification (MaskFormer, arXiv 2107.06278, section 3.2; specification 9.2).

Mask2Former has the same losses, computed at points (arXiv 2112.01527, section 3.3; specification of SCAN, 5.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.errors import OvsegError
from ovseg.proposals.mask_comparison import EveryPixel, MaskComparison, RandomPoints, dice
from ovseg.proposals.matcher import match

POINT_HEAD = "OpenVocaMask2FormerHead"  # the head whose masks are compared at points


class MaskClassificationCriterion(nn.Module):
    """Losses of mask classification: cross entropy of all queries, and losses of the matched masks.

    Args:
        num_classes: size K of the training vocabulary.
        no_object_weight: class weight of unmatched queries in the cross entropy; 0 ignores them.
        mask_weight, dice_weight, class_weight: weights of the loss of the comparison, of dice and of the cross
            entropy, in the matching and in the total.
        comparison: where masks are compared and how; default :class:`EveryPixel`, MaskFormer's.
        drop_last_auxiliary: leave out the losses of the prediction before the last, but draw its random numbers, as
            the original.
    """

    @configurable
    def __init__(
        self,
        num_classes: int,
        no_object_weight: float,
        mask_weight: float,
        dice_weight: float,
        *,
        class_weight: float = 1.0,
        comparison: MaskComparison | None = None,
        drop_last_auxiliary: bool = False,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.class_weight = class_weight
        self.comparison = comparison or EveryPixel()
        self.drop_last_auxiliary = drop_last_auxiliary
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = max(no_object_weight, 0.0)
        self.register_buffer("empty_weight", empty_weight, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        former = cfg.MODEL.MASK_FORMER
        at_points = cfg.MODEL.SEM_SEG_HEAD.NAME == POINT_HEAD
        points = (former.TRAIN_NUM_POINTS, former.OVERSAMPLE_RATIO, former.IMPORTANCE_SAMPLE_RATIO)
        return {
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "no_object_weight": former.NO_OBJECT_WEIGHT,
            "mask_weight": former.MASK_WEIGHT,
            "dice_weight": former.DICE_WEIGHT,
            "class_weight": former.CLASS_WEIGHT,
            "comparison": RandomPoints(*points) if at_points else EveryPixel(),
            "drop_last_auxiliary": at_points and not former.LAST_AUXILIARY_LOSS,
        }

    def forward(
        self, predictions: Sequence[tuple[Tensor, Tensor]], gt_classes: Sequence[Tensor], gt_masks: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Compute the weighted losses.

        Args:
            predictions: of each layer, the last one last: class logits (B, Q, K + 1) and mask logits (B, Q, h, w).
            gt_classes: per image int64 (n,).
            gt_masks: per image bool (n, H, W), padded to the batch's size.

        Returns:
            Scalars ``loss_ce``, ``loss_mask`` and ``loss_dice`` of the last prediction; with suffix ``_i`` of the i-th.

        Raises:
            OvsegError: the vocabulary's size is not ``num_classes``.
        """
        columns = predictions[-1][0].shape[-1]
        if columns != self.num_classes + 1:
            raise OvsegError(
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {self.num_classes} but the training vocabulary has "
                f"{columns - 1} words: set the key to {columns - 1}"
            )
        mask_count = torch.tensor(float(sum(map(len, gt_classes))), device=predictions[-1][0].device)
        num_masks = _average_over_processes(mask_count).clamp(min=1)
        *auxiliary, final = predictions
        losses = self._losses(*final, gt_classes, gt_masks, num_masks)
        dropped = 1 if auxiliary and self.drop_last_auxiliary else 0
        for i, prediction in enumerate(auxiliary[: len(auxiliary) - dropped]):
            auxiliary_losses = self._losses(*prediction, gt_classes, gt_masks, num_masks)
            losses |= {f"{name}_{i}": loss for name, loss in auxiliary_losses.items()}
        if dropped:
            self.comparison.skip(final[1].shape[1], [*map(len, gt_classes)], final[1].device)
        return losses

    def _losses(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        gt_classes: Sequence[Tensor],
        gt_masks: Sequence[Tensor],
        num_masks: Tensor,
    ) -> dict[str, Tensor]:
        matches = match(
            class_logits,
            mask_logits,
            gt_classes,
            gt_masks,
            mask_weight=self.mask_weight,
            dice_weight=self.dice_weight,
            class_weight=self.class_weight,
            comparison=self.comparison,
        )
        wanted = torch.full(class_logits.shape[:2], self.num_classes, device=class_logits.device)  # (B, Q)
        for row, (queries, targets), classes in zip(wanted, matches, gt_classes, strict=True):
            row[queries] = classes[targets]
        matched = torch.cat([masks[queries] for masks, (queries, _) in zip(mask_logits, matches, strict=True)])
        truth = torch.cat([masks[targets] for masks, (_, targets) in zip(gt_masks, matches, strict=True)])
        matched, truth = self.comparison.for_loss(matched.float(), truth.float())  # (M, P) both
        return {
            "loss_ce": self.class_weight * self._cross_entropy(class_logits.float(), wanted),
            "loss_mask": self.mask_weight * self.comparison.loss(matched, truth).sum() / num_masks,
            "loss_dice": self.dice_weight * dice(matched, truth).sum() / num_masks,
        }

    def _cross_entropy(self, class_logits: Tensor, wanted: Tensor) -> Tensor:
        """Return the mean over all queries, weighted by class; class logits (B, Q, K + 1), wanted int64 (B, Q).

        The weights are summed over all processes: the mean does not depend on the number of processes.
        """
        total = F.cross_entropy(class_logits.transpose(1, 2), wanted, self.empty_weight, reduction="sum")
        # the sum is 0 where unmatched queries are ignored and there is nothing to match
        return total / _average_over_processes(self.empty_weight[wanted].sum()).clamp(min=1e-12)


def _average_over_processes(value: Tensor) -> Tensor:
    """Return the mean over all processes of a scalar without gradient."""
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(value)
    return value / comm.get_world_size()
