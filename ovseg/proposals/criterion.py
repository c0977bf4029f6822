"""Losses of mask classification (MaskFormer, arXiv 2107.06278, section 3.2; specification 9.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.utils import comm
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.errors import OvsegError
from ovseg.proposals.matcher import FOCAL_ALPHA, FOCAL_GAMMA, match


class MaskClassificationCriterion(nn.Module):
    """Cross entropy of all queries, and focal and dice loss of the matched masks, after every decoder layer.

    Args:
        num_classes: size K of the training vocabulary.
        no_object_weight: class weight of unmatched queries in the cross entropy.
        mask_weight, dice_weight: weights of focal and dice loss, in the matching and in the total.
    """

    def __init__(self, num_classes: int, no_object_weight: float, mask_weight: float, dice_weight: float):
        super().__init__()
        self.num_classes = num_classes
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = max(no_object_weight, 0.0)
        # the published checkpoints lack this key when the weight is not positive
        self.register_buffer("empty_weight", empty_weight, persistent=no_object_weight > 0)

    def forward(
        self,
        predictions: Sequence[tuple[Tensor, Tensor]],
        gt_classes: Sequence[Tensor],
        gt_masks: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Compute the weighted losses.

        Args:
            predictions: per decoder layer, the last one last, class logits (B, Q, K + 1) and mask logits (B, Q, h, w).
            gt_classes: per image int64 (n,).
            gt_masks: per image bool (n, H, W), padded to the batch's size.

        Returns:
            Scalars ``loss_ce``, ``loss_mask``, ``loss_dice`` of the last layer, and with suffix ``_i`` of layer i.

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
        losses = self._layer_losses(*final, gt_classes, gt_masks, num_masks)
        for i, layer in enumerate(auxiliary):
            layer_losses = self._layer_losses(*layer, gt_classes, gt_masks, num_masks)
            losses |= {f"{name}_{i}": loss for name, loss in layer_losses.items()}
        return losses

    def _layer_losses(
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
        )
        wanted = torch.full(class_logits.shape[:2], self.num_classes, device=class_logits.device)  # (B, Q)
        for row, (queries, targets), classes in zip(wanted, matches, gt_classes, strict=True):
            row[queries] = classes[targets]
        matched = torch.cat([masks[queries] for masks, (queries, _) in zip(mask_logits, matches, strict=True)])
        truth = torch.cat([masks[targets] for masks, (_, targets) in zip(gt_masks, matches, strict=True)]).float()
        matched = upsample(matched[:, None], truth.shape[-2:])[:, 0].flatten(1).float()  # (M, HW)
        truth = truth.flatten(1)
        focal = sigmoid_focal_loss(matched, truth, alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA).mean(1).sum()
        return {
            "loss_ce": self._cross_entropy(class_logits.float(), wanted),
            "loss_mask": self.mask_weight * focal / num_masks,
            "loss_dice": self.dice_weight * _dice(matched, truth).sum() / num_masks,
        }

    def _cross_entropy(self, class_logits: Tensor, wanted: Tensor) -> Tensor:
        """Mean over all queries of the batch, weighted by class; class logits (B, Q, K + 1), wanted int64 (B, Q).

        The weights are summed over all processes, so several of them give the loss of one with the whole batch.
        """
        total = F.cross_entropy(class_logits.transpose(1, 2), wanted, self.empty_weight, reduction="sum")
        return total / _average_over_processes(self.empty_weight[wanted].sum())


def _average_over_processes(value: Tensor) -> Tensor:
    """Mean of a scalar without gradient over all processes."""
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(value)
    return value / comm.get_world_size()


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of (B, C, h, w) to (B, C, *size); batches may be empty."""
    if len(maps) == 0:
        return maps.new_zeros(0, maps.shape[1], *size) + maps.sum()
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def _dice(logits: Tensor, truth: Tensor) -> Tensor:
    probability = logits.sigmoid()
    return 1 - (2 * (probability * truth).sum(1) + 1) / (probability.sum(1) + truth.sum(1) + 1)
