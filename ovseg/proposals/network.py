"""``MaskNetwork``: the trainable proposer, a backbone with the head of MaskFormer or Mask2Former."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import Backbone, build_backbone, build_sem_seg_head
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.errors import OvsegError, shown
from ovseg.io.devices import DTYPES
from ovseg.proposals.criterion import MaskClassificationCriterion
from ovseg.proposals.views import PROPOSERS, Masks, Part, Views


class PixelNormalizer(nn.Module):
    """Module that subtracts a mean and divides by a standard deviation, of RGB values 0 .. 255."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return the normalised image (3, H, W)."""
        return (image - self.mean) / self.std


class MaskNetwork(Part):
    """Proposer whose queries predict masks and class embeddings (MaskFormer, arXiv 2107.06278, and Mask2Former).

    Args:
        backbone, sem_seg_head, criterion: the network and its losses.
        pixel_mean, pixel_std: of the backbone's input, RGB, 0 .. 255.
        size_divisibility: inputs are padded to a multiple; negative means the backbone's own.
        deep_supervision: train with the losses of all predictions, not of the last one only.
        ignore_label: value of pixels without a class in requests' ``sem_seg``.
        refine: module that returns refined class embeddings, called with embeddings (B, N, D) and :class:`Views`.
        precision: of the backbone and the head in evaluation mode, a key of :data:`ovseg.io.devices.DTYPES` (autocast).
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        criterion: MaskClassificationCriterion,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int,
        deep_supervision: bool,
        ignore_label: int = 255,
        refine: Part | None = None,
        precision: str = "fp32",
    ):
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.normalize = PixelNormalizer(pixel_mean, pixel_std)
        self.size_divisibility = backbone.size_divisibility if size_divisibility < 0 else size_divisibility
        self.deep_supervision = deep_supervision
        self.ignore_label = ignore_label
        self.refine = refine
        self.precision = precision

    @classmethod
    def from_config(cls, cfg: CfgNode, refine: Part | None = None) -> dict[str, Any]:
        backbone, former = checked_backbone(cfg), cfg.MODEL.MASK_FORMER
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "criterion": MaskClassificationCriterion(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "size_divisibility": former.SIZE_DIVISIBILITY,
            "deep_supervision": former.DEEP_SUPERVISION,
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "refine": refine,
            "precision": cfg.MODEL.PROPOSER.PRECISION,
        }

    def forward(self, views: Views) -> list[Masks]:
        """Return the masks of each image, in evaluation mode."""
        predictions, padded_size = self.predict(views)
        embeddings, logits = predictions[-1]
        found = []
        for index, image in enumerate(views.images):
            enlarged = F.interpolate(logits[index : index + 1], padded_size, mode="bilinear", align_corners=False)
            cropped = enlarged[0, :, : image.shape[1], : image.shape[2]].contiguous()
            found.append(Masks(cropped.sigmoid_(), embeddings[index], logits[index]))
        return found

    def predict(self, views: Views) -> tuple[list[tuple[Tensor, Tensor]], torch.Size]:
        """Return the predictions and the padded size of the batch.

        A prediction is a pair of refined class embeddings (B, Q, D) and mask logits (B, Q, h, w) at stride 4. In
        training with deep supervision there is one for each layer of the decoder, in their order; else only the last.
        """
        batch = views.batch([self.normalize(image) for image in views.images])
        if self.training and self.deep_supervision:
            predictions = self.sem_seg_head(self.backbone(batch))
        else:
            predictions = [self.last_prediction(batch)]
        if self.refine is not None:
            embeddings, logits = zip(*predictions, strict=True)
            refined = self.refine(torch.cat(embeddings, dim=1), views).chunk(len(predictions), dim=1)  # all at once
            predictions = list(zip(refined, logits, strict=True))
        return predictions, batch.shape[-2:]

    def last_prediction(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last prediction, see :meth:`predict`, before it is refined, float32; batch (B, 3, H, W)."""
        lower = self.precision != "fp32" and not self.training
        with torch.autocast(batch.device.type, DTYPES[self.precision], enabled=lower):
            embeddings, logits = self.sem_seg_head(self.backbone(batch))[-1]
        return (embeddings.float(), logits.float()) if lower else (embeddings, logits)

    def losses(self, views: Views, class_logits: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Compute the losses of the criterion against the ground truth of the requests.

        Args:
            class_logits: embeddings (B, Q, D) -> logits (B, Q, K + 1), "no object" last.
        """
        predictions, padded_size = self.predict(views)
        instances = [self._instances(request) for request in views.requests]
        device = views.images[0].device
        gt_classes = [truth.gt_classes.to(device) for truth in instances]
        gt_masks = [pad_masks(truth.gt_masks, padded_size).to(device) for truth in instances]
        return self.criterion([(class_logits(e), logits) for e, logits in predictions], gt_classes, gt_masks)

    def _instances(self, request: Mapping[str, Any]) -> Instances:
        """Return the request's ``instances``, or one for each class of its label map (Detectron2's mapper)."""
        if "instances" in request:
            return request["instances"]
        if "sem_seg" not in request:
            raise OvsegError(
                "a training sample has neither instances nor sem_seg: map data sets with "
                "ovseg.data.mapper.SemSegTrainMapper, or give label files (sem_seg_file_name)"
            )
        labels = request["sem_seg"]
        classes = labels.unique()
        classes = classes[classes != self.ignore_label]
        return Instances(tuple(labels.shape), gt_classes=classes, gt_masks=labels == classes[:, None, None])


@PROPOSERS.register()
class MaskFormer(MaskNetwork):
    """:class:`MaskNetwork` with MaskFormer's head."""

    head = "OpenVocabMaskFormerHead"

    @classmethod
    def from_config(cls, cfg: CfgNode, refine: Part | None = None) -> dict[str, Any]:
        if cls.head != cfg.MODEL.SEM_SEG_HEAD.NAME:
            raise OvsegError(
                f"MODEL.PROPOSER.NAME is {cls.__name__}, but MODEL.SEM_SEG_HEAD.NAME is "
                f"{cfg.MODEL.SEM_SEG_HEAD.NAME}: set that to {cls.head}"
            )
        return super().from_config(cfg, refine)


@PROPOSERS.register()
class Mask2Former(MaskFormer):
    """:class:`MaskNetwork` with Mask2Former's head."""

    head = "OpenVocaMask2FormerHead"


def checked_backbone(cfg: CfgNode) -> Backbone:
    """Return the backbone, with the features that the head reads.

    Raises:
        OvsegError: the backbone lacks a feature, or Detectron2 cannot build it.
    """
    try:
        backbone = build_backbone(cfg)
    except (AssertionError, KeyError, ValueError) as error:  # raised by Detectron2 and PyTorch
        raise OvsegError(
            f"the backbone {cfg.MODEL.BACKBONE.NAME} cannot be built ({error}): check MODEL.BACKBONE, "
            "MODEL.RESNETS and MODEL.FPN"
        ) from error
    there, wanted = list(backbone.output_shape()), list(cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES)
    if not wanted or not set(wanted) <= set(there):
        raise OvsegError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {shown(wanted)}: give features of the backbone "
            f"{cfg.MODEL.BACKBONE.NAME}, which has {', '.join(there)}"
        )
    return backbone


def pad_masks(masks: Tensor, size: torch.Size) -> Tensor:
    """Pad (n, H, W) masks with False at right and bottom; accepts Detectron2's ``BitMasks``."""
    masks = getattr(masks, "tensor", masks)
    height, width = masks.shape[-2:]
    return F.pad(masks, (0, size[1] - width, 0, size[0] - height))
