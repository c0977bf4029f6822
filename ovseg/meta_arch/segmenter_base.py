"""``ProposalNamer``: propose masks, name them, paint them; what the systems of the family share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import configurable
from torch import Tensor

from ovseg.clip.adapter import ClipAdapter, MaskedImage
from ovseg.clip.contextual_shift import Context
from ovseg.config.limits import check_config
from ovseg.errors import OvsegError
from ovseg.meta_arch.mask_proposer import MaskProposer, output_size
from ovseg.meta_arch.naming import ClipOpinion, Proposals, explain, fuse, own_probabilities
from ovseg.meta_arch.pixel_scores import class_winner_weights, paint_labels, paint_scores, resize
from ovseg.meta_arch.words import Words, requested_words
from ovseg.proposals.mask_comparison import upsample

PAINTINGS = ("mask_sum", "class_winner")
OUTPUTS = ("sem_seg", "label_map", "proposals", "soft_proposals", "explanations")
WITHOUT_NAMES = {"proposals", "soft_proposals"}  # outputs for which CLIP need not be asked


class ProposalNamer(MaskProposer):
    """Open-vocabulary semantic segmentation by classifying proposals.

    A system is this class with its own :meth:`look`, :meth:`calibrate`, :meth:`context` and :meth:`fuse` where it
    differs; as they are here, CLIP sees masked crops and nothing else.

    Input: a list of dicts, one per image:

    * ``image``: (3, H, W) RGB, 0 .. 255, any dtype; ``height``, ``width``: size of the result (default: H, W)
    * the words: ``class_names``, K entries, each a str or a sequence of synonyms; or ``meta["dataset_name"]``; without
      both, those of the configuration's first data set
    * ``templates``: prompts for the words, in place of the model's own
    * ``outputs``: what to return, a subset of :data:`OUTPUTS`; default the first, ``("sem_seg",)``
    * in training ``instances``: ``gt_classes`` int64 (n,), ``gt_masks`` bool (n, H, W); or ``sem_seg``, labels (H, W)

    Output in evaluation: a list of dicts with

    * ``sem_seg``: float32 (K, height, width) scores, not probabilities
    * for ``label_map``: ``label_map`` int64 (height, width), the argmax of ``sem_seg``, and ``score_map`` float32,
      its maximum; much less memory than ``sem_seg``
    * ``proposals``: bool (Q, height, width), mask probability > 0.5; ``soft_proposals``: float32, the probability
    * ``explanations``: each mask's scores by each classifier, see :func:`ovseg.meta_arch.naming.explain`

    A single word may get a second class "others", see ``add_others``. In training: a dict of losses.

    Args:
        clip_adapter: CLIP.
        clip_ensemble: let CLIP see the masks; otherwise the proposals' own classifier decides.
        clip_ensemble_weight: CLIP's weight lambda in the geometric mean; not positive means CLIP alone.
        painting: "mask_sum" or "class_winner" (OVSeg's published demo's).
        add_others: a single word gets a second class "others"; "class_winner" painting always does that.
        drop_no_object_before_softmax: see the key of that name.
        proposer: the arguments of :class:`MaskProposer`.
    """

    @configurable
    def __init__(
        self,
        *,
        clip_adapter: ClipAdapter,
        clip_ensemble: bool,
        clip_ensemble_weight: float,
        painting: str = "mask_sum",
        add_others: bool = False,
        drop_no_object_before_softmax: bool = False,
        **proposer: Any,
    ):
        super().__init__(**proposer)
        if painting not in PAINTINGS:
            raise OvsegError(f"MODEL.MASK_FORMER.TEST.PAINTING is {painting!r}; choose one of {', '.join(PAINTINGS)}")
        self.clip_adapter = clip_adapter
        self.clip_ensemble = clip_ensemble
        self.clip_ensemble_weight = clip_ensemble_weight
        self.painting = painting
        self.add_others = add_others or painting == "class_winner"
        self.drop_no_object_before_softmax = drop_no_object_before_softmax

    adapter_class: type[ClipAdapter] = ClipAdapter

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        check_config(cfg)  # again: it may come from Detectron2's own get_cfg
        head, former, adapter = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER, cfg.MODEL.CLIP_ADAPTER
        clip_adapter = cls.adapter_class(cfg)
        if clip_adapter.embed_dim != head.EMBEDDING_DIM:
            raise OvsegError(
                f"MODEL.SEM_SEG_HEAD.EMBEDDING_DIM is {head.EMBEDDING_DIM}, but CLIP {adapter.CLIP_MODEL_NAME} has "
                f"embeddings of {clip_adapter.embed_dim} dimensions: set the key to {clip_adapter.embed_dim}"
            )
        return super().from_config(cfg) | {
            "clip_adapter": clip_adapter,
            "clip_ensemble": adapter.CLIP_ENSEMBLE,
            "clip_ensemble_weight": adapter.CLIP_ENSEMBLE_WEIGHT,
            "painting": former.TEST.PAINTING,
            "add_others": former.TEST.ADD_OTHERS,
            "drop_no_object_before_softmax": adapter.DROP_NO_OBJECT_BEFORE_SOFTMAX,
        }

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Segment, or compute the losses in training mode: see the class for inputs and outputs."""
        if self.training:
            return self._losses(batched_inputs)
        proposals = self.propose(batched_inputs)
        to_name = [index for index, request in enumerate(batched_inputs) if _outputs_of(request) - WITHOUT_NAMES]
        opinions = dict(zip(to_name, self.ask_clip([proposals[index] for index in to_name]), strict=True))
        return [
            self._answer(request, found, opinions.get(index))
            for index, (request, found) in enumerate(zip(batched_inputs, proposals, strict=True))
        ]

    def look(self, images: Sequence[Tensor]) -> Any:
        """What CLIP sees in whole images, (3, H, W) each, 0 .. 255: nothing here."""
        return None

    def calibrate(self, embeddings: Tensor, seen: Any) -> Tensor:
        """Make queries' embeddings (B, N, D) comparable with texts, knowing what CLIP saw: as they are here."""
        return embeddings

    def context(self, request: Mapping[str, Any], seen: Any, index: int) -> Context | None:
        """What CLIP shall know of an image, the batch's ``index``-th, when it sees crops of it: nothing here."""
        return None

    def fuse(self, found: Proposals, clip: ClipOpinion, weight: float) -> Tensor:
        """Both opinions as one, float32 (Q, K), see :func:`ovseg.meta_arch.naming.fuse`; ``weight``: CLIP's."""
        return fuse(found.own, clip, weight)

    def propose(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[Proposals]:
        """What the proposal network finds in each image, in evaluation mode; CLIP has not yet seen any crop."""
        images = self.images_of(batched_inputs)
        seen, predictions, padded_size = self._predict(images)
        embeddings, mask_logits = predictions[-1]
        found = []
        for index, (request, image) in enumerate(zip(batched_inputs, images, strict=True)):
            words = self.words_of(request)
            text = self.clip_adapter.text_matrix(words.names, words.templates)
            class_logits = words.reduce(self.clip_adapter.similarity(embeddings[index], text))  # (Q, K + 1)
            own = own_probabilities(class_logits, self.drop_no_object_before_softmax)
            masks = upsample(mask_logits[index : index + 1], padded_size)[0, :, : image.shape[1], : image.shape[2]]
            masks = masks.contiguous().sigmoid_()
            context = self.context(request, seen, index)
            found.append(Proposals(words, text, image, masks, own, context, _dataset_of(request)))
        return found

    def ask_clip(self, proposals: Sequence[Proposals]) -> list[ClipOpinion]:
        """Let CLIP name the masks of several images, unless ``clip_ensemble`` is off."""
        if not self.clip_ensemble:
            return [ClipOpinion(self.clip_adapter.valid_masks(found.masks), None) for found in proposals]
        images = [MaskedImage(found.image, found.masks, found.context) for found in proposals]
        named = self.clip_adapter.classify(images, [found.text for found in proposals])
        return [
            ClipOpinion(valid, found.words.reduce(logits)[:, :-1].softmax(-1))
            for found, (logits, valid) in zip(proposals, named, strict=True)
        ]

    def name_masks(self, request: Mapping[str, Any], masks: Tensor) -> Tensor:
        """CLIP's names for masks from elsewhere; no proposal is made.

        Args:
            request: see the class.
            masks: (n, H, W) of the image's size, each with a pixel.

        Returns:
            float32 (n, K) class probabilities.
        """
        words, images = self.words_of(request), self.images_of([request])
        text = self.clip_adapter.text_matrix(words.names, words.templates)
        context = self.context(request, self.look(images), 0)
        logits, _ = self.clip_adapter.classify_masks(images[0], masks.to(self.device).float(), text, context)
        return words.reduce(logits)[:, :-1].softmax(-1)

    def words_of(self, request: Mapping[str, Any]) -> Words:
        """The request's words, with "others" where that is to be added."""
        words = requested_words(request, self.test_sets)
        return words.with_others() if self.add_others and len(words) == 1 else words

    def _predict(self, images: Sequence[Tensor]) -> tuple[Any, list[tuple[Tensor, Tensor]], torch.Size]:
        """What CLIP saw; calibrated embeddings and stride-4 mask logits of the layers in use; the padded size."""
        layers, padded_size = self.predict(images)
        embeddings, masks = zip(*layers, strict=True)
        seen = self.look(images)
        calibrated = self.calibrate(torch.cat(embeddings, dim=1), seen).chunk(len(layers), dim=1)  # all at once
        return seen, list(zip(calibrated, masks, strict=True)), padded_size

    def _losses(self, batched_inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        words = {requested_words(request, self.train_sets) for request in batched_inputs}
        if len(words) > 1:
            raise OvsegError("the images of one training batch must share their words: train on one data set at a time")
        asked = words.pop()
        text = self.clip_adapter.text_matrix(asked.names, asked.templates)
        _, predictions, padded_size = self._predict(self.images_of(batched_inputs))
        logits = [(self.clip_adapter.similarity(embeddings, text), masks) for embeddings, masks in predictions]
        return self.losses(batched_inputs, logits, padded_size)

    def _answer(self, request: Mapping[str, Any], found: Proposals, clip: ClipOpinion | None) -> dict[str, Any]:
        """Fuse and paint the proposals of one image; ``clip``: None where no output needs names."""
        size, wanted = output_size(request), _outputs_of(request)
        result: dict[str, Any] = {}
        if wanted & WITHOUT_NAMES:
            probabilities = resize(found.masks, size)
            result["soft_proposals"], result["proposals"] = probabilities, probabilities > 0.5
        if clip is not None:
            result |= self.paint(found, clip, self.clip_ensemble_weight, size, wanted)
        return {name: value for name, value in result.items() if name in (*wanted, "score_map")}

    def paint(
        self, found: Proposals, clip: ClipOpinion, weight: float, size: tuple[int, int], wanted: Collection[str]
    ) -> dict[str, Any]:
        """The outputs ``wanted`` that need names, at ``size``, with CLIP's weight in the geometric mean."""
        fused = self.fuse(found, clip, weight)
        weights, maps = fused, found.masks
        if self.painting == "class_winner":
            drop_last = len(found.words) == 2 and found.words.names[-1] == "others"
            weights = class_winner_weights(fused[clip.valid], drop_last)
            maps = (found.masks[clip.valid] > self.clip_adapter.mask_threshold).float()
        result: dict[str, Any] = {}
        if "sem_seg" in wanted:
            result["sem_seg"] = paint_scores(weights, maps, size, self.class_chunk_size)
        if "label_map" in wanted:
            result["label_map"], result["score_map"] = paint_labels(weights, maps, size, self.class_chunk_size)
        if "explanations" in wanted:
            result["explanations"] = explain(found, clip, fused, self.clip_adapter.mask_threshold)
        return result


def _outputs_of(request: Mapping[str, Any]) -> set[str]:
    return set(request.get("outputs", OUTPUTS[:1]))


def _dataset_of(request: Mapping[str, Any]) -> str | None:
    return request.get("meta", {}).get("dataset_name")
