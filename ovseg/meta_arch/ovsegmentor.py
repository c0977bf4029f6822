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
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from ovseg.checkpoint.first_weights import POOLER, TEACHER, FirstWeights, check_stage, freeze_vit, load_vit
from ovseg.errors import OvsegError
from ovseg.meta_arch.image_text_losses import LossSettings, image_text_losses
from ovseg.meta_arch.mask_sums import resize
from ovseg.meta_arch.per_pixel import PerPixel
from ovseg.meta_arch.propose_and_name import check_model, request_arguments
from ovseg.meta_arch.word_model import output_size
from ovseg.naming.entity_decoder import EntityDecoder
from ovseg.naming.group_embeddings import GroupEmbeddings, projection_heads, scale_of
from ovseg.naming.group_pixels import GroupPixels
from ovseg.proposals.group_tokens import GroupTokens

GROUP_MAPS = "group_maps"


@META_ARCH_REGISTRY.register()
class OVSegmentor(PerPixel):
    """Model that segments images into groups of patches, and names the groups.

    Input and output: see :class:`PerPixel`. If the first word is "background", see :class:`GroupPixels`. One more
    output: ``group_maps`` float32 (K, height, width), the soft assignment of the pixels of the whole image to groups.

    In training a request has ``image`` (3, S, S), RGB 0 .. 255, and ``caption``; with the entity loss also ``question``
    and ``answer``; with the mask loss ``cross_image`` (3, S, S) and ``cross_entity``. Texts are dicts with
    ``input_ids`` and ``attention_mask``, int64 (L,). With the multi-label loss also ``labels``, M texts in one dict,
    int64 (M, L). The losses are ``loss_matching``, ``loss_labels``, ``loss_entity``, ``loss_mask``.

    Args:
        scorer: of pixels, which has both encoders.
        losses: to train; those of entities and masks have modules of their own.
        decoder: (blocks, layers of its projection head, hidden channels and channels of that), of the entity loss.
        momentum: of the teacher of the mask loss.
        first_weights: what :meth:`load_first_weights` reads.
        model: the remaining arguments of :class:`PerPixel`.
    """

    # parts of the training, which files may have and models for inference lack
    unused_names = (
        *("multimodal_groupingblock.", "bridge_projector.", "align_proj_", TEACHER, "logit_scale_mask"),
        "multi_label_logit_scale",
        "text_encoder.transformer.embeddings.position_ids",  # a constant of old files
    )
    copied_names = {TEACHER: "img_encoder."}  # what a file of stage 1 lacks
    initial_names = ("logit_scale_mask", "multi_label_logit_scale")  # keep their value if a file lacks them
    has_unused_parameters = True  # BERT's pooler, the decoder's assignment, logit_scale_mask

    @configurable
    def __init__(
        self,
        *,
        scorer: GroupPixels,
        losses: LossSettings,
        decoder: tuple[int, int, int, int] = (1, 2, 4096, 256),
        momentum: float = 0.99,
        first_weights: FirstWeights | None = None,
        **model: Any,
    ):
        super().__init__(scorer=scorer, **model)
        self.losses, self.momentum, self.first_weights = losses, momentum, first_weights or FirstWeights()
        image, text = self.img_encoder.width, self.text_encoder.width
        if losses.use_entityloss:
            width, (depth, layers, *sizes) = min(image, text), decoder
            self.align_proj_img = nn.Linear(image, width) if image > width else nn.Identity()
            self.align_proj_text = nn.Linear(text, width) if text > width else nn.Identity()
            self.multimodal_groupingblock = EntityDecoder(width, depth)
            self.bridge_projector = projection_heads(max(layers, 0), width, width, *sizes, shared=losses.sync_bridge)[0]
        if losses.multi_label and not losses.share_temperature:
            self.multi_label_logit_scale = nn.Parameter(self.logit_scale.detach().clone())
        if losses.use_maskloss:
            self.img_encoder_momentum = copy.deepcopy(self.img_encoder).requires_grad_(False)
            self.logit_scale_mask = nn.Parameter(self.logit_scale.detach().clone())  # unused, in published checkpoints
        if self.first_weights.fixed:
            freeze_vit(self.img_encoder, self.first_weights.kind)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_model(cfg, with_head=False)
        own = cfg.MODEL.OVSEGMENTOR
        proposer = GroupTokens(cfg)
        namer = GroupEmbeddings.from_keys(own, proposer.img_encoder.width)
        scorer = GroupPixels(proposer, namer, own.WINDOW, own.STRIDE, own.BG_THRESH)
        return request_arguments(cfg) | {
            "scorer": scorer,
            "losses": LossSettings.from_keys(own),
            "decoder": (own.CROSS_LAYERS, own.PROJ_NUM_LAYERS, own.PROJ_HIDDEN_DIM, own.OUTPUT_DIM),
            "momentum": own.MOMENTUM,
            "first_weights": FirstWeights.from_keys(own),
            "class_chunk_size": cfg.MODEL.MASK_FORMER.TEST.CLASS_CHUNK_SIZE,
        }

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Segment images, or compute the losses in training mode; the class documents inputs and outputs."""
        if self.training:
            return image_text_losses(self, batched_inputs)
        if not any(GROUP_MAPS in request.get("outputs", ()) for request in batched_inputs):
            return super().forward(batched_inputs)
        return [self._with_maps(request) for request in batched_inputs]

    def _with_maps(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outputs of a request, of which ``group_maps`` may be one."""
        others = [name for name in request.get("outputs", ("sem_seg",)) if name != GROUP_MAPS]
        result = super().forward([{**request, "outputs": others}])[0] if others else {}
        if GROUP_MAPS in request.get("outputs", ()):
            maps = self.scorer.proposer.group_maps(request["image"].to(self.device).float())
            result[GROUP_MAPS] = resize(maps, output_size(request))
        return result

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
        """Move the teacher, if there is one, by 1 - :attr:`momentum` towards the image encoder (section 5.5)."""
        if self.losses.use_maskloss:
            pairs = zip(self.img_encoder_momentum.parameters(), self.img_encoder.parameters(), strict=True)
            for average, current in pairs:
                average.mul_(self.momentum).add_(current, alpha=1 - self.momentum)

    @property
    def label_scale(self) -> Tensor:
        """Factor of the cosines in the multi-label loss."""
        own = self.losses.multi_label and not self.losses.share_temperature
        return scale_of(self.multi_label_logit_scale) if own else self.scorer.namer.scale

    def complete_weights(self, missing: Sequence[str], path: str) -> None:
        """Load what the weights that training starts from lack: those of the text encoder.

        Args:
            missing: names of the tensors that they lack.
            path: their file, ``MODEL.WEIGHTS``.

        Raises:
            OvsegError: they lack the image encoder, or are those of the other stage.
        """
        if image := [name for name in missing if name.startswith("img_encoder.")]:
            raise OvsegError(
                f"{path} lacks {len(image)} tensors of the image encoder, such as {image[0]}: give a checkpoint of "
                "OVSegmentor as MODEL.WEIGHTS, or a vision transformer as "
                "MODEL.OVSEGMENTOR.IMG_ENCODER.IMGNET_PRETRAINED_CHECKPOINT"
            )
        check_stage(path, 2 if self.losses.use_maskloss else 1, first=False)
        if any(name.startswith("text_encoder.") and POOLER not in name for name in missing):
            self.text_encoder.start_from(self.first_weights.text, self.first_weights.text_pretrained)

    def load_first_weights(self) -> None:
        """Load the weights that training starts from: a checkpoint of stage 1, or those of both encoders.

        Raises:
            OvsegError: a file is not named, cannot be read, or is another model's.
        """
        first = self.first_weights
        if first.stage1:
            first.load_stage1(self)
        else:
            if first.fixed and first.kind == "none":
                raise OvsegError(
                    "MODEL.OVSEGMENTOR.IMG_ENCODER.FIXED is True, but IMGNET_PRETRAINED is none: random weights would "
                    "be kept; set FIXED to False, or name weights"
                )
            load_vit(self.img_encoder, first.kind, first.image, len(self.img_encoder.layers[0].blocks))
            self.text_encoder.start_from(first.text, first.text_pretrained)
        if self.losses.use_maskloss:
            self.img_encoder_momentum.load_state_dict(self.img_encoder.state_dict())
