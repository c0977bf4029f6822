"""Losses of OVSegmentor's training on image-text pairs (specification, section 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ovseg.errors import OvsegError
from ovseg.grounding.contrast import contrastive_loss, multi_label_loss
from ovseg.grounding.mask_consistency import cross_maps, cut_least_similar, maps_at, mask_consistency_loss
from ovseg.grounding.sync import num_processes

Batch = Sequence[Mapping[str, Any]]
_REMEDY = "train on image-text pairs, DATASETS.IMAGE_TEXT, with what the losses of MODEL.OVSEGMENTOR need"


@dataclass(frozen=True)
class LossSettings:
    """Losses and their settings, as the keys of ``MODEL.OVSEGMENTOR`` with the same names in capitals."""

    use_entityloss: bool = False
    entity_weight: float = 1.0
    mask_padding: bool = False
    use_maskloss: bool = False
    maskloss_weight: float = 0.1
    maskloss_needs_entityloss: bool = False
    maskloss_per_group: bool = True
    cost_type: str = "L2"
    cross_threshold: float = 0.6
    group_ratio: float = 0.5
    dual_dice: bool = False
    extra_head_runs: bool = True
    sync_bridge: bool = True
    multi_label: int = 0
    multi_label_loss_weight: float = 1.0
    share_temperature: bool = False

    @classmethod
    def from_keys(cls, keys: CfgNode) -> LossSettings:
        return cls(**{field.name: keys[field.name.upper()] for field in fields(cls)})

    @property
    def adds_maskloss(self) -> bool:
        """Whether the mask loss is trained."""
        return self.use_maskloss and (self.use_entityloss or not self.maskloss_needs_entityloss)


def image_text_losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Compute the weighted losses of a batch.

    Args:
        model: :class:`ovseg.meta_arch.ovsegmentor.OVSegmentor`, in training mode.
        batch: as that class documents it.

    Returns:
        ``loss_matching``, ``loss_labels``, ``loss_entity``, ``loss_mask``, those that are trained.

    Raises:
        OvsegError: a sample lacks what a loss needs, or there is only one.
    """
    own = model.losses
    if len(batch) * num_processes() < 2:
        raise OvsegError("OVSegmentor learns from contrasts of pairs: set SOLVER.IMS_PER_BATCH to at least 2")
    images = normalised_images(model, batch, "image")
    image = model.encode_image(images, groups=own.extra_head_runs or own.adds_maskloss)
    caption = model.encode_text(*_texts(model, batch, "caption"), tokens=own.extra_head_runs)
    losses = {"loss_matching": contrastive_loss(image["image_emb"], caption["text_emb"], model.scorer.namer.scale)}
    if own.multi_label:
        losses["loss_labels"] = own.multi_label_loss_weight * _labels_loss(model, image["image_emb"], batch)
    if own.use_entityloss:
        losses["loss_entity"] = own.entity_weight * _entity_loss(model, image["group_feat"], batch)
    if own.adds_maskloss:
        others = normalised_images(model, batch, "cross_image")
        loss = _mask_loss(model, image, others, batch)
        if own.dual_dice:
            loss = (loss + _mask_loss(model, model.encode_image(others), images, batch)) / 2
        losses["loss_mask"] = own.maskloss_weight * loss
    return losses


def _labels_loss(model: nn.Module, image_emb: Tensor, batch: Batch) -> Tensor:
    """Compute the contrast of images and the words of their captions."""
    ids, mask = _texts(model, batch, "labels")  # (B, M, L)
    length = int(mask.sum(dim=-1).max())  # prompts of one word: most of a caption's tokens would be padding
    ids, mask = (tensor.flatten(0, 1)[:, :length] for tensor in (ids, mask))
    labels = model.encode_text(ids, mask, tokens=False)["text_emb"].unflatten(0, (len(batch), -1))
    return multi_label_loss(image_emb, labels, model.label_scale)


def _entity_loss(model: nn.Module, group_feat: Tensor, batch: Batch) -> Tensor:
    """Compute the contrast of what the decoder finds for questions and of the answers (section 5.2)."""
    own, (ids, mask) = model.losses, _texts(model, batch, "question")
    question = model.encode_text(ids, mask)["last_hidden"] if own.extra_head_runs else model.text_encoder(ids, mask)
    answer = model.encode_text(*_texts(model, batch, "answer"), tokens=own.extra_head_runs)
    found = model.decode_entities(group_feat, question, mask if own.mask_padding else None)
    return contrastive_loss(found["bridge"], answer["text_emb"], model.scorer.namer.scale)


def _mask_loss(model: nn.Module, image: Mapping[str, Tensor], others: Tensor, batch: Batch) -> Tensor:
    """Compute the consistency of the maps of other images by the groups of both (section 5.3).

    Args:
        image: of :meth:`OVSegmentor.encode_image`.
        others: (B, 3, S, S), normalised.
    """
    own = model.losses
    with torch.no_grad():
        if own.extra_head_runs:
            teacher = model.encode_image(others, momentum=True)
            theirs, keys = teacher["q"][:, 0], teacher["k"][:, 0]
        else:
            teacher = model.img_encoder_momentum(others).assignment
            theirs, keys = teacher.q[:, 0], teacher.k[:, 0]
        entity = model.encode_text(*_texts(model, batch, "cross_entity"), tokens=own.extra_head_runs)["text_emb"]
        similarity = (image["group_emb"] @ entity[:, :, None])[..., 0]  # (B, K)
    teacher_maps, student_maps = (
        maps_at(cross_maps(queries, keys), others.shape[-1]) for queries in (theirs, image["q"][:, 0])
    )
    student_maps = cut_least_similar(student_maps, similarity, own.group_ratio)
    return mask_consistency_loss(student_maps, teacher_maps, own.cross_threshold, own.cost_type, own.maskloss_per_group)


def normalised_images(model: nn.Module, batch: Batch, name: str) -> Tensor:
    """Return the images of a training batch as the encoder takes them, (B, 3, S, S)."""
    images = [image.to(model.device).float() for image in _of_all(batch, name)]
    if len({image.shape for image in images}) > 1:
        raise OvsegError(f"the images {name} of one training batch must have one size: set INPUT.IMG_AUG.IMG_SIZE")
    return model.scorer.proposer.normalise(torch.stack(images))


def _texts(model: nn.Module, batch: Batch, name: str) -> tuple[Tensor, Tensor]:
    """Return the tokens and the attention masks of a training batch, int64 (B, L), of labels (B, M, L), each."""
    texts = _of_all(batch, name)
    ids, masks = (torch.stack([text[key] for text in texts]) for key in ("input_ids", "attention_mask"))
    return ids.to(model.device), masks.to(model.device)


def _of_all(batch: Batch, name: str) -> list[Any]:
    if absent := sum(name not in sample for sample in batch):
        raise OvsegError(f"{absent} of {len(batch)} training samples lack {name}: {_REMEDY}")
    return [sample[name] for sample in batch]
