"""``Mask2Former``: proposals with a closed vocabulary of their own (Cheng et al., CVPR 2022, arXiv 2112.01527).

The proposal generator of SCAN by itself: no CLIP, no words. The head is the same, ``OpenVocaMask2FormerHead``; what it
gives as a class embedding is read as the logits of the training classes and "no object", so
``MODEL.SEM_SEG_HEAD.EMBEDDING_DIM`` is ``NUM_CLASSES + 1``, and with ``EMBED_LAYERS: 1`` the classifier is a linear
layer, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from ovseg.config.limits import check_config
from ovseg.errors import OvsegError
from ovseg.meta_arch.mask_proposer import MaskProposer, output_size
from ovseg.meta_arch.pixel_scores import paint_labels, paint_scores, resize
from ovseg.meta_arch.words import requested_words
from ovseg.proposals.mask_comparison import upsample


@META_ARCH_REGISTRY.register()
class Mask2Former(MaskProposer):
    """Semantic segmentation into the classes of the training set.

    Input: a list of dicts as of :class:`ovseg.meta_arch.segmenter_base.ProposalNamer`. Words are not needed; where
    there are, they must be as many as the classes. Output in evaluation: ``sem_seg``, and on request ``label_map``,
    ``score_map``, ``proposals``, ``soft_proposals``, as there; in training a dict of losses.

    Args:
        num_classes: K.
        parts: the arguments of :class:`MaskProposer`.
    """

    @configurable
    def __init__(self, *, num_classes: int, **parts: Any):
        super().__init__(**parts)
        self.num_classes = num_classes

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_config(cfg)  # again: it may come from Detectron2's own get_cfg
        head = cfg.MODEL.SEM_SEG_HEAD
        if head.EMBEDDING_DIM != head.NUM_CLASSES + 1:
            raise OvsegError(
                f"MODEL.SEM_SEG_HEAD.EMBEDDING_DIM is {head.EMBEDDING_DIM}: in Mask2Former it must be NUM_CLASSES + 1 "
                f"(one logit per class and one for no object), set it to {head.NUM_CLASSES + 1}"
            )
        return super().from_config(cfg) | {"num_classes": head.NUM_CLASSES}

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Segment, or compute the losses in training mode: see the class for inputs and outputs."""
        for request in batched_inputs:
            self._check_words(request)
        images = self.images_of(batched_inputs)
        predictions, padded_size = self.predict(images)
        if self.training:
            return self.losses(batched_inputs, predictions, padded_size)
        logits, masks = predictions[-1]
        probabilities = logits.softmax(-1)[..., :-1]  # (B, Q, K)
        masks = upsample(masks, padded_size).sigmoid()
        return [
            self._answer(request, weights, maps[:, : image.shape[1], : image.shape[2]])
            for request, image, weights, maps in zip(batched_inputs, images, probabilities, masks, strict=True)
        ]

    def _answer(self, request: Mapping[str, Any], weights: Tensor, maps: Tensor) -> dict[str, Tensor]:
        wanted, size = set(request.get("outputs", ("sem_seg",))), output_size(request)
        result: dict[str, Tensor] = {}
        if wanted & {"proposals", "soft_proposals"}:
            probabilities = resize(maps, size)
            result["soft_proposals"], result["proposals"] = probabilities, probabilities > 0.5
        if "sem_seg" in wanted:
            result["sem_seg"] = paint_scores(weights, maps, size, self.class_chunk_size)
        if "label_map" in wanted:
            result["label_map"], result["score_map"] = paint_labels(weights, maps, size, self.class_chunk_size)
        return {name: value for name, value in result.items() if name in (*wanted, "score_map")}

    def _check_words(self, request: Mapping[str, Any]) -> None:
        if "class_names" in request or "meta" in request:
            words = len(requested_words(request))
            if words != self.num_classes:
                raise OvsegError(
                    f"Mask2Former knows the {self.num_classes} classes it was trained on, and was given {words} words: "
                    "use OVSeg or SCAN for words of your own"
                )
