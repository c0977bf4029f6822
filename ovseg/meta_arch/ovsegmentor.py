"""``OVSegmentor``: segments learnt from image-text pairs alone (Xu et al., CVPR 2023, arXiv 2301.09121).

::

    image I -> group encoder -> groups (8) -> mean -> img_projector --+
                    |             |                                   +-- contrast: the caption of the image
    caption ------- | ----------- | -> BERT -> text_projector --------+
    question ------ | ----------- | -> BERT --+
                    |             +---------> decoder -> bridge_projector --+
    answer -------- | -> BERT -> text_projector ----------------------------+-- contrast: the hidden entities
                    |
                    +-- queries of groups --+
    image I' -> teacher (moving average) ---+-- maps of I' by the groups of both images: mask consistency (stage 2)

At inference each pixel has the words of its group, in overlapping windows. Sections are those of the specification.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from ovseg.errors import OvsegError
from ovseg.grounding.contrast import contrastive_loss
from ovseg.grounding.mask_consistency import cross_maps, cut_least_similar, maps_at, mask_consistency_loss
from ovseg.meta_arch.per_pixel import PerPixel
from ovseg.meta_arch.pixel_scores import resize
from ovseg.meta_arch.propose_and_name import check_model, request_arguments
from ovseg.meta_arch.word_model import output_size
from ovseg.naming.entity_decoder import EntityDecoder
from ovseg.naming.group_embeddings import GroupEmbeddings, projection_heads
from ovseg.naming.group_pixels import GroupPixels
from ovseg.proposals.group_tokens import GroupTokens

logger = logging.getLogger(__name__)
GROUP_MAPS = "group_maps"


@META_ARCH_REGISTRY.register()
class OVSegmentor(PerPixel):
    """Model that segments images into groups of patches, and names the groups.

    Input and output: see :class:`PerPixel`. If the first word is "background", see :class:`GroupPixels`. One more
    output: ``group_maps`` float32 (K, height, width), the soft assignment of the pixels of the whole image to groups.

    In training a request has ``image`` (3, S, S), RGB 0 .. 255, and ``caption``; with the entity loss also ``question``
    and ``answer``; with the mask loss ``cross_image`` (3, S, S) and ``cross_entity``. Texts are dicts with
    ``input_ids`` and ``attention_mask``, int64 (L,). The losses are ``loss_matching``, ``loss_entity``, ``loss_mask``.

    Args:
        scorer: of pixels, which has both encoders.
        settings: ``MODEL.OVSEGMENTOR``: which losses to train, and their settings.
        model: the remaining arguments of :class:`PerPixel`.
    """

    # parts of the training, which files may have and models for inference lack
    unused_names = (
        "multimodal_groupingblock.",
        "bridge_projector.",
        "align_proj_",
        "img_encoder_momentum.",
        "logit_scale_mask",
    )
    copied_names = {"img_encoder_momentum.": "img_encoder."}  # what a file of stage 1 lacks
    initial_names = ("logit_scale_mask",)  # keep their value if a file lacks them

    @configurable
    def __init__(self, *, scorer: GroupPixels, settings: CfgNode, **model: Any):
        super().__init__(scorer=scorer, **model)
        self.settings = settings
        image, text = self.img_encoder.width, self.text_encoder.width
        if settings.USE_ENTITYLOSS:
            width, sizes = min(image, text), (settings.PROJ_HIDDEN_DIM, settings.OUTPUT_DIM)
            self.align_proj_img = nn.Linear(image, width) if image > width else nn.Identity()
            self.align_proj_text = nn.Linear(text, width) if text > width else nn.Identity()
            self.multimodal_groupingblock = EntityDecoder(width, settings.CROSS_LAYERS)
            self.bridge_projector = projection_heads(max(settings.PROJ_NUM_LAYERS, 0), width, width, *sizes)[0]
        if settings.USE_MASKLOSS:
            self.img_encoder_momentum = copy.deepcopy(self.img_encoder).requires_grad_(False)
            self.logit_scale_mask = nn.Parameter(self.logit_scale.detach().clone())  # unused, in published checkpoints

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_model(cfg, with_head=False)
        own = cfg.MODEL.OVSEGMENTOR
        proposer = GroupTokens(cfg)
        namer = GroupEmbeddings.from_keys(own, proposer.img_encoder.width)
        scorer = GroupPixels(proposer, namer, own.WINDOW, own.STRIDE, own.BG_THRESH)
        chunk = cfg.MODEL.MASK_FORMER.TEST.CLASS_CHUNK_SIZE
        return {"scorer": scorer, "settings": own, "class_chunk_size": chunk} | request_arguments(cfg)

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Segment images, or compute the losses in training mode; the class documents inputs and outputs."""
        if self.training:
            return self._losses(batched_inputs)
        asked = [GROUP_MAPS in request.get("outputs", ()) for request in batched_inputs]
        requests = [
            {**request, "outputs": [name for name in request["outputs"] if name != GROUP_MAPS]} if maps else request
            for request, maps in zip(batched_inputs, asked, strict=True)
        ]
        results = super().forward(requests)
        for request, maps, result in zip(batched_inputs, asked, results, strict=True):
            if maps:
                image = request["image"].to(self.device).float()
                result[GROUP_MAPS] = resize(self.scorer.proposer.group_maps(image), output_size(request))
        return results

    def encode_image(self, images: Tensor, momentum: bool = False, groups: bool = True) -> dict[str, Tensor]:
        """Return what the encoder, or with ``momentum`` the teacher, finds in normalised images (B, 3, H, W).

        Returns:
            ``assign_raw``, ``assign_soft``, ``assign_hard`` (B, 1, K, N); ``q`` (B, 1, K, D); ``k`` (B, 1, N, D);
            ``group_feat`` (B, K, D); ``pooled`` (B, D); ``image_emb`` (B, d); and, if ``groups``, ``group_emb``
            (B, K, d). Embeddings are projected, not normalised.
        """
        found = (self.img_encoder_momentum if momentum else self.img_encoder)(images)
        assignment = found.assignment
        result = {f"assign_{name}": getattr(assignment, name) for name in ("raw", "soft", "hard")}
        result |= {"q": assignment.q, "k": assignment.k, "group_feat": found.features, "pooled": found.pooled}
        result["image_emb"] = self.img_projector(found.pooled)
        return result | ({"group_emb": self.img_projector(found.features)} if groups else {})

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor, tokens: bool = True) -> dict[str, Tensor]:
        """Return what the text encoder finds in texts, int64 (B, L).

        Returns:
            ``last_hidden`` (B, L, Dt); ``cls`` (B, Dt); ``text_emb`` (B, d); and, if ``tokens``, ``token_emb``
            (B, L, d). Embeddings are projected, not normalised.
        """
        hidden = self.text_encoder(input_ids, attention_mask)
        result = {"last_hidden": hidden, "cls": hidden[:, 0], "text_emb": self.text_projector(hidden[:, 0])}
        return result | ({"token_emb": self.text_projector(hidden)} if tokens else {})

    def decode_entities(
        self, group_feat: Tensor, question_last_hidden: Tensor, attention_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the tokens of questions, completed from groups (section 5.2).

        Args:
            group_feat: (B, K, D).
            question_last_hidden: (B, L, Dt).
            attention_mask: (B, L), see :class:`EntityDecoder`.

        Returns:
            ``tokens`` (B, L, m), and ``bridge`` (B, d), the first of them, projected.
        """
        question, groups = self.align_proj_text(question_last_hidden), self.align_proj_img(group_feat)
        tokens = self.multimodal_groupingblock(question, groups, attention_mask)
        return {"tokens": tokens, "bridge": self.bridge_projector(tokens[:, 0])}

    def class_embeddings(self, names: Sequence[str], templates: str | Sequence[str] | None = None) -> Tensor:
        """Return unit vectors of words, (C, d): see :meth:`GroupEmbeddings.class_embeddings`."""
        return self.scorer.namer.class_embeddings(names, templates)

    @torch.no_grad()
    def update_teacher(self) -> None:
        """Move the teacher's parameters by 1 - ``MOMENTUM`` towards those of the image encoder (section 5.5)."""
        momentum = self.settings.MOMENTUM
        pairs = zip(self.img_encoder_momentum.parameters(), self.img_encoder.parameters(), strict=True)
        for average, current in pairs:
            average.mul_(momentum).add_(current, alpha=1 - momentum)

    def _losses(self, batch: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        own, extra = self.settings, self.settings.EXTRA_HEAD_RUNS
        images = self._images(batch, "image")
        with_masks = own.USE_MASKLOSS and (own.USE_ENTITYLOSS or not own.MASKLOSS_NEEDS_ENTITYLOSS)
        image = self.encode_image(images, groups=extra or with_masks)
        caption = self.encode_text(*self._texts(batch, "caption"), tokens=extra)
        losses = {"loss_matching": contrastive_loss(image["image_emb"], caption["text_emb"], self.scorer.namer.scale)}
        if own.USE_ENTITYLOSS:
            losses["loss_entity"] = own.ENTITY_WEIGHT * self._entity_loss(image["group_feat"], batch)
        if with_masks:
            others = self._images(batch, "cross_image")
            loss = self._mask_loss(image, others, batch)
            if own.DUAL_DICE:
                loss = (loss + self._mask_loss(self.encode_image(others), images, batch)) / 2
            losses["loss_mask"] = own.MASKLOSS_WEIGHT * loss
        return losses

    def _entity_loss(self, group_feat: Tensor, batch: Sequence[Mapping[str, Any]]) -> Tensor:
        """Compute the contrast of what the decoder finds for a question and of its answer (section 5.2)."""
        extra, (ids, mask) = self.settings.EXTRA_HEAD_RUNS, self._texts(batch, "question")
        question = self.encode_text(ids, mask)["last_hidden"] if extra else self.text_encoder(ids, mask)
        answer = self.encode_text(*self._texts(batch, "answer"), tokens=extra)
        found = self.decode_entities(group_feat, question, mask if self.settings.MASK_PADDING else None)
        return contrastive_loss(found["bridge"], answer["text_emb"], self.scorer.namer.scale)

    def _mask_loss(self, image: Mapping[str, Tensor], others: Tensor, batch: Sequence[Mapping[str, Any]]) -> Tensor:
        """Compute the consistency of the maps of other images by the groups of both (section 5.3)."""
        own, extra = self.settings, self.settings.EXTRA_HEAD_RUNS
        with torch.no_grad():
            if extra:
                teacher = self.encode_image(others, momentum=True)
            else:
                assignment = self.img_encoder_momentum(others).assignment
                teacher = {"q": assignment.q, "k": assignment.k}
            entity = self.encode_text(*self._texts(batch, "cross_entity"), tokens=extra)["text_emb"]
            similarity = (image["group_emb"] @ entity[:, :, None])[..., 0]  # (B, K)
        size, keys = others.shape[-1], teacher["k"][:, 0]
        theirs = maps_at(cross_maps(teacher["q"][:, 0], keys), size)
        ours = cut_least_similar(maps_at(cross_maps(image["q"][:, 0], keys), size), similarity, own.GROUP_RATIO)
        per_group = own.MASKLOSS_PER_GROUP
        return mask_consistency_loss(ours, theirs, own.CROSS_THRESHOLD, own.COST_TYPE, per_group)

    def _images(self, batch: Sequence[Mapping[str, Any]], name: str) -> Tensor:
        """Return the normalised images of a training batch, (B, 3, S, S)."""
        if absent := [request for request in batch if name not in request]:
            raise OvsegError(f"{len(absent)} of {len(batch)} training samples lack {name}: {_DATA}")
        images = [request[name].to(self.device).float() for request in batch]
        return self.scorer.proposer.normalise(torch.stack(images))

    def _texts(self, batch: Sequence[Mapping[str, Any]], name: str) -> tuple[Tensor, Tensor]:
        """Return the tokens and the attention masks of a training batch, int64 (B, L) each."""
        if absent := [request for request in batch if name not in request]:
            raise OvsegError(f"{len(absent)} of {len(batch)} training samples lack {name}: {_DATA}")
        keys = ("input_ids", "attention_mask")
        return tuple(torch.stack([request[name][key] for request in batch]).to(self.device) for key in keys)


_DATA = "train on image-text pairs, with DATASETS.IMAGE_TEXT set for the losses that MODEL.OVSEGMENTOR uses"
