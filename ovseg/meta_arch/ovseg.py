"""``OVSeg``: MaskFormer's proposals, named by mask-adapted CLIP (Liang et al., CVPR 2023, arXiv 2210.04150)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, build_sem_seg_head
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.clip.adapter import ClipAdapter
from ovseg.config import refuse_keys_without_effect
from ovseg.errors import OvsegError
from ovseg.meta_arch.painting import class_winner_weights, paint_labels, paint_scores, resize
from ovseg.meta_arch.words import Words, requested_words
from ovseg.proposals.criterion import MaskClassificationCriterion, upsample

PAINTINGS = ("mask_sum", "class_winner")
OUTPUTS = ("sem_seg", "label_map", "proposals")


@META_ARCH_REGISTRY.register()
class OVSeg(nn.Module):
    """Open-vocabulary semantic segmentation by classifying proposals.

    Input: a list of dicts, one per image:

    * ``image``: (3, H, W) RGB, 0 .. 255, any dtype; ``height``, ``width``: size of the result (default: H, W)
    * the words: ``class_names``, K entries, each a str or a sequence of synonyms; or ``meta["dataset_name"]``
    * ``outputs``: what to return, a subset of ``("sem_seg", "label_map", "proposals")``; default the first
    * in training ``instances``: ``gt_classes`` int64 (n,), ``gt_masks`` bool (n, H, W)

    Output in evaluation: a list of dicts with

    * ``sem_seg``: float32 (K, height, width) scores, not probabilities
    * for ``label_map``: ``label_map`` int64 (height, width), the argmax of ``sem_seg``, and ``score_map`` float32,
      its maximum; much less memory than ``sem_seg``
    * ``proposals``: bool (Q, height, width), mask probability > 0.5

    With ``class_winner`` painting and a single word, a second class "others" is added. In training: a dict of losses.

    Args:
        backbone, sem_seg_head, clip_adapter, criterion: the parts.
        pixel_mean, pixel_std: of the backbone's input, 0 .. 255, RGB.
        size_divisibility: inputs are padded to a multiple; negative means the backbone's own.
        deep_supervision: losses after every decoder layer.
        clip_ensemble: let CLIP see the masks; otherwise the proposals' own classifier decides.
        clip_ensemble_weight: CLIP's weight lambda in the geometric mean; not positive means CLIP alone.
        painting: "mask_sum" or "class_winner" (the published demo's).
        class_chunk_size: classes painted at a time.
        drop_no_object_before_softmax: see the key of that name.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        clip_adapter: ClipAdapter,
        criterion: MaskClassificationCriterion,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int,
        deep_supervision: bool,
        clip_ensemble: bool,
        clip_ensemble_weight: float,
        painting: str = "mask_sum",
        class_chunk_size: int = 64,
        drop_no_object_before_softmax: bool = False,
    ):
        super().__init__()
        if painting not in PAINTINGS:
            raise OvsegError(f"MODEL.MASK_FORMER.TEST.PAINTING is {painting!r}; choose one of {', '.join(PAINTINGS)}")
        if class_chunk_size < 1:
            raise OvsegError("MODEL.MASK_FORMER.TEST.CLASS_CHUNK_SIZE must be at least 1")
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.clip_adapter = clip_adapter
        self.size_divisibility = backbone.size_divisibility if size_divisibility < 0 else size_divisibility
        self.deep_supervision = deep_supervision
        self.clip_ensemble = clip_ensemble
        self.clip_ensemble_weight = clip_ensemble_weight
        self.painting = painting
        self.class_chunk_size = class_chunk_size
        self.drop_no_object_before_softmax = drop_no_object_before_softmax
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        refuse_keys_without_effect(cfg)
        backbone = build_backbone(cfg)
        head, former, adapter = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER, cfg.MODEL.CLIP_ADAPTER
        clip_adapter = ClipAdapter(cfg)
        if clip_adapter.embed_dim != head.EMBEDDING_DIM:
            raise OvsegError(
                f"MODEL.SEM_SEG_HEAD.EMBEDDING_DIM is {head.EMBEDDING_DIM}, but CLIP {adapter.CLIP_MODEL_NAME} has "
                f"embeddings of {clip_adapter.embed_dim} dimensions: set the key to {clip_adapter.embed_dim}"
            )
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "clip_adapter": clip_adapter,
            "criterion": MaskClassificationCriterion(
                head.NUM_CLASSES, former.NO_OBJECT_WEIGHT, former.MASK_WEIGHT, former.DICE_WEIGHT
            ),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "size_divisibility": former.SIZE_DIVISIBILITY,
            "deep_supervision": former.DEEP_SUPERVISION,
            "clip_ensemble": adapter.CLIP_ENSEMBLE,
            "clip_ensemble_weight": adapter.CLIP_ENSEMBLE_WEIGHT,
            "painting": former.TEST.PAINTING,
            "class_chunk_size": former.TEST.CLASS_CHUNK_SIZE,
            "drop_no_object_before_softmax": adapter.DROP_NO_OBJECT_BEFORE_SOFTMAX,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Segment, or compute the losses in training mode: see the class for inputs and outputs."""
        images = [request["image"].to(self.device).float() for request in batched_inputs]
        normalised = [(image - self.pixel_mean) / self.pixel_std for image in images]
        batch = ImageList.from_tensors(normalised, self.size_divisibility)
        predictions = self.sem_seg_head(self.backbone(batch.tensor))
        if self.training:
            return self._losses(batched_inputs, predictions, batch.tensor.shape[-2:])

        embeddings, mask_logits = predictions[-1]
        mask_logits = upsample(mask_logits, batch.tensor.shape[-2:])  # (B, Q, Hp, Wp)
        return [
            self._segment(request, image, embedding, logits[:, : image.shape[1], : image.shape[2]])
            for request, image, embedding, logits in zip(batched_inputs, images, embeddings, mask_logits, strict=True)
        ]

    def _losses(self, batched_inputs, predictions, padded_size: torch.Size) -> dict[str, Tensor]:
        words = {requested_words(request) for request in batched_inputs}
        if len(words) > 1:
            raise OvsegError("the images of one training batch must share their words: train on one data set at a time")
        text = self.clip_adapter.text_matrix(words.pop().names)
        instances = [request["instances"] for request in batched_inputs]
        gt_classes = [truth.gt_classes.to(self.device) for truth in instances]
        gt_masks = [pad_masks(truth.gt_masks, padded_size).to(self.device) for truth in instances]
        layers = predictions if self.deep_supervision else predictions[-1:]
        logits = [(self.clip_adapter.similarity(embeddings, text), masks) for embeddings, masks in layers]
        return self.criterion(logits, gt_classes, gt_masks)

    def _segment(
        self, request: Mapping[str, Any], image: Tensor, embeddings: Tensor, mask_logits: Tensor
    ) -> dict[str, Tensor]:
        """Name, fuse and paint the proposals of one image.

        Args:
            image: (3, H, W), 0 .. 255.
            embeddings: (Q, D).
            mask_logits: (Q, H, W).
        """
        words = requested_words(request)
        if self.painting == "class_winner" and len(words) == 1:
            words = words.with_others()
        text = self.clip_adapter.text_matrix(words.names)
        masks = mask_logits.sigmoid()
        probabilities, valid = self._class_probabilities(words, text, image, embeddings, masks)

        size = (request.get("height", image.shape[1]), request.get("width", image.shape[2]))
        wanted = request.get("outputs", OUTPUTS[:1])
        result = {"proposals": resize(masks, size) > 0.5} if "proposals" in wanted else {}
        weights, maps = self._weights_and_maps(words, probabilities, masks, valid)
        if "sem_seg" in wanted:
            result["sem_seg"] = paint_scores(weights, maps, size, self.class_chunk_size)
        if "label_map" in wanted:
            result["label_map"], result["score_map"] = paint_labels(weights, maps, size, self.class_chunk_size)
        return result

    def _class_probabilities(
        self, words: Words, text: Tensor, image: Tensor, embeddings: Tensor, masks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Fused class probabilities (Q, K) and which masks are valid, bool (Q,).

        With CLIP alone the rows of invalid masks are zero, so they paint nothing.
        """
        logits = words.reduce(self.clip_adapter.similarity(embeddings, text))  # (Q, K + 1)
        if self.drop_no_object_before_softmax:
            own = logits[:, :-1].softmax(-1)
        else:
            own = logits.softmax(-1)[:, :-1]
        if not self.clip_ensemble:
            return own, self.clip_adapter.valid_masks(masks)
        clip_logits, valid = self.clip_adapter.classify_masks(image, masks, text)
        clip = words.reduce(clip_logits)[:, :-1].softmax(-1)  # (V, K)
        weight = self.clip_ensemble_weight
        if weight <= 0:
            return torch.zeros_like(own).masked_scatter_(valid[:, None], clip), valid
        # a mask that CLIP has not seen has no second opinion: factor 1
        opinion = torch.ones_like(own).masked_scatter_(valid[:, None], clip)
        return own ** (1 - weight) * opinion**weight, valid

    def _weights_and_maps(
        self, words: Words, probabilities: Tensor, masks: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What :mod:`ovseg.meta_arch.painting` adds up: class weights (n, K) and maps (n, H, W)."""
        if self.painting == "mask_sum":
            return probabilities, masks
        drop_last = len(words) == 2 and words.names[-1] == "others"
        weights = class_winner_weights(probabilities[valid], drop_last)
        return weights, (masks[valid] > self.clip_adapter.mask_threshold).float()


@META_ARCH_REGISTRY.register()
def OVSegDEMO(cfg) -> OVSeg:
    """The published name of :class:`OVSeg` with the demo's way of painting."""
    return OVSeg(cfg, painting="class_winner")


def pad_masks(masks: Tensor, size: torch.Size) -> Tensor:
    """Pad (n, H, W) masks with False at right and bottom; accepts Detectron2's ``BitMasks``."""
    masks = getattr(masks, "tensor", masks)
    height, width = masks.shape[-2:]
    return F.pad(masks, (0, size[1] - width, 0, size[0] - height))
