"""``MaskProposer``: images in, masks with class embeddings out; the part without words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone, build_backbone, build_sem_seg_head
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.checkpoint.state_dicts import constant_names
from ovseg.config import refuse_keys_without_effect
from ovseg.config.limits import check_kind
from ovseg.errors import OvsegError, shown
from ovseg.proposals.criterion import MaskClassificationCriterion

Predictions = Sequence[tuple[Tensor, Tensor]]


class MaskProposer(nn.Module):
    """Backbone, head and criterion, and what goes in and out of them.

    Args:
        backbone, sem_seg_head, criterion: the parts.
        pixel_mean, pixel_std: of the backbone's input, 0 .. 255, RGB.
        size_divisibility: inputs are padded to a multiple; negative means the backbone's own.
        deep_supervision: losses of all predictions, not of the last one only.
        class_chunk_size: classes painted at a time.
        ignore_label: value of pixels without a class in requests' ``sem_seg``.
        test_sets, train_sets: data sets whose words requests without words get in evaluation, and in training.
    """

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
        class_chunk_size: int = 64,
        ignore_label: int = 255,
        test_sets: Sequence[str] = (),
        train_sets: Sequence[str] = (),
    ):
        super().__init__()
        if class_chunk_size < 1:
            raise OvsegError("MODEL.MASK_FORMER.TEST.CLASS_CHUNK_SIZE must be at least 1")
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.size_divisibility = backbone.size_divisibility if size_divisibility < 0 else size_divisibility
        self.deep_supervision = deep_supervision
        self.class_chunk_size = class_chunk_size
        self.ignore_label = ignore_label
        self.test_sets, self.train_sets = tuple(test_sets), tuple(train_sets)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        refuse_keys_without_effect(cfg)
        for key in ("MODEL.SEM_SEG_HEAD.NAME", "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME"):
            check_kind(cfg, key)
        backbone, former = _build_backbone(cfg), cfg.MODEL.MASK_FORMER
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "criterion": MaskClassificationCriterion(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "size_divisibility": former.SIZE_DIVISIBILITY,
            "deep_supervision": former.DEEP_SUPERVISION,
            "class_chunk_size": former.TEST.CLASS_CHUNK_SIZE,
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "test_sets": cfg.DATASETS.TEST,
            "train_sets": cfg.DATASETS.TRAIN,
        }

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others: Any) -> None:
        """Leave out the constants that files hold, as the published ones do: every loader ignores them."""
        for name in constant_names(self):
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *others)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def images_of(self, requests: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """The requests' images on our device, float32 (3, H, W), 0 .. 255."""
        return [request["image"].to(self.device).float() for request in requests]

    def predict(self, images: Sequence[Tensor]) -> tuple[Predictions, torch.Size]:
        """Predictions in use, (B, Q, D) embeddings and stride-4 (B, Q, h, w) mask logits, and the padded size."""
        normalised = [(image - self.pixel_mean) / self.pixel_std for image in images]
        batch = ImageList.from_tensors(normalised, self.size_divisibility).tensor
        predictions = self.sem_seg_head(self.backbone(batch))
        in_use = predictions if self.training and self.deep_supervision else predictions[-1:]
        return in_use, batch.shape[-2:]

    def losses(
        self, requests: Sequence[Mapping[str, Any]], predictions: Predictions, padded_size: torch.Size
    ) -> dict[str, Tensor]:
        """The criterion's losses, from class logits (B, Q, K + 1) and mask logits, and the requests' truth."""
        instances = [self._instances(request) for request in requests]
        gt_classes = [truth.gt_classes.to(self.device) for truth in instances]
        gt_masks = [pad_masks(truth.gt_masks, padded_size).to(self.device) for truth in instances]
        return self.criterion(predictions, gt_classes, gt_masks)

    def _instances(self, request: Mapping[str, Any]) -> Instances:
        """The request's ``instances``, or one for each class of the label map that Detectron2's own mapper gives."""
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


def _build_backbone(cfg: CfgNode) -> Backbone:
    """Return the backbone, with the features that the head wants.

    Raises:
        OvsegError: it lacks one of them, or Detectron2 cannot build it.
    """
    try:
        backbone = build_backbone(cfg)
    except (AssertionError, KeyError, ValueError) as error:  # how Detectron2 and PyTorch refuse what they cannot build
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


def output_size(request: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of the result: those asked for, else the image's."""
    height, width = request["image"].shape[1:]
    return request.get("height", height), request.get("width", width)


def pad_masks(masks: Tensor, size: torch.Size) -> Tensor:
    """Pad (n, H, W) masks with False at right and bottom; accepts Detectron2's ``BitMasks``."""
    masks = getattr(masks, "tensor", masks)
    height, width = masks.shape[-2:]
    return F.pad(masks, (0, size[1] - width, 0, size[0] - height))
