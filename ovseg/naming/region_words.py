"""``RegionWords``: OpenSeg's namer, cosines of pooled pixel embeddings to words, learnt from captions.

Ghiasi et al., ECCV 2022, arXiv 2112.12143, sections 3.1 and 3.2::

    F -> semantic branch -> pixel embeddings F_z -> sum in each mask -> regions z (N, D_text) -+-> cosine (N, K)
    words -> text tower, frozen -> text embeddings w (K, D_text) ------------------------------+
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.clip.adapter import ClipAdapter
from ovseg.errors import OvsegError
from ovseg.grounding import best_word, grounding_loss, image_caption_similarity, region_word_cosine
from ovseg.grounding.sync import gather_rows, gather_words
from ovseg.naming.scores import Scores
from ovseg.naming.text_space import PixelMap, TextSpace, bound_temperature
from ovseg.proposals.fpn import FusedTrunk, PixelBranch
from ovseg.proposals.pooling import pool_regions
from ovseg.proposals.region_queries import STRIDE, RegionQueries
from ovseg.proposals.views import Masks, Part, Views
from ovseg.vocabulary import Vocabulary


class RegionWords(TextSpace, Part):
    """Namer by the embeddings of pixels, summed in each mask; see the module.

    The scores are raw cosines, -1 .. 1, without softmax: that of a word does not depend on the other words.

    Args:
        trunk: backbone and fused pyramid, shared with the proposer.
        clip_adapter: CLIP's text tower, frozen.
        dim: channels of the pyramid.
        norm: Detectron2's name of the branch's normalisation.
        tau, tau_min: temperature of the grounding loss at the start, and its lower bound.
        loss_weight: of the grounding loss; with 0 the branch does not train.
        sync: compute the grounding loss over the batches of all processes.
        synonyms: "region", the score of a word is the maximum over its texts; or "pixel", the scores are those of
            texts, (N, S), for a rendering that takes the maximum: :class:`ovseg.meta_arch.pixel_scores.TextMaximum`.
    """

    explains: ClassVar[str] = "own"
    scores_are_independent: ClassVar[bool] = True

    def __init__(
        self,
        trunk: FusedTrunk,
        clip_adapter: ClipAdapter,
        *,
        dim: int,
        norm: str = "GN",
        tau: float = 0.07,
        tau_min: float = 0.01,
        loss_weight: float = 1.0,
        sync: bool = False,
        synonyms: str = "region",
    ):
        super().__init__()
        self.trunk, self.clip_adapter = trunk, clip_adapter
        self.semantic_branch = PixelBranch(dim, clip_adapter.embed_dim, norm)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(tau)))  # log(1 / tau)
        self.tau_min, self.loss_weight, self.sync, self.synonyms = tau_min, loss_weight, sync, synonyms
        self._rows: dict[str, Tensor] = {}  # of all words of captions so far, each encoded alone
        if loss_weight == 0:
            self.semantic_branch.requires_grad_(False)
            self.log_scale.requires_grad_(False)

    @classmethod
    def from_config(cls, cfg: CfgNode, clip_adapter: ClipAdapter, trunk: FusedTrunk) -> RegionWords:
        own = cfg.MODEL.OPENSEG
        return cls(
            trunk,
            clip_adapter,
            dim=own.HEAD_DIM,
            norm=own.NORM,
            tau=own.TAU_INIT,
            tau_min=own.TAU_MIN,
            loss_weight=own.GROUNDING_LOSS_WEIGHT,
            sync=own.GROUNDING_SYNC,
            synonyms=own.SYNONYM_MAX,
        )

    @property
    def tau(self) -> Tensor:
        """The temperature, a tensor without dimensions; the losses bound it."""
        return (-self.log_scale).exp()

    def forward(self, views: Views, masks: Sequence[Masks], words: Sequence[Vocabulary | None]) -> list[Scores | None]:
        """Return the cosines of each image, of all masks; None for images without a vocabulary."""
        scores: list[Scores | None] = []
        for index, (found, vocabulary) in enumerate(zip(masks, words, strict=True)):
            if vocabulary is None:
                scores.append(None)
                continue
            cosines = self.cosines(self.region_embeddings(views, found, index)[0], vocabulary)
            scores.append(Scores(cosines if self.synonyms == "pixel" else best_text(cosines, vocabulary)))
        return scores

    def cosines(self, embeddings: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Return the cosines of embeddings (..., D_text) to the S texts of a vocabulary, float32 (..., S)."""
        text = self.clip_adapter.text_matrix(vocabulary.texts, vocabulary.templates)[:-1]
        with torch.autocast(embeddings.device.type, enabled=False):
            return region_word_cosine(embeddings.float(), text.float())

    def pixels(self, views: Views) -> Tensor:
        """Return the embeddings of pixels (B, D_text, h, w) at stride 4; computed once for all parts."""
        return views.once(("pixel embeddings", id(self)), lambda: self.semantic_branch(self.trunk(views)))

    def regions(self, views: Views, weights: Tensor) -> Tensor:
        """Return the embeddings of regions, float32 (B, N, D_text), for masks (B, N, h, w) at stride 4."""
        return pool(weights * self.trunk.valid(views)[:, None], self.pixels(views))

    def pixel_map(self, views: Views, index: int) -> PixelMap:
        return PixelMap(self.pixels(views)[index].float(), tuple(self.trunk.padded_size(views)))

    def region_embeddings(self, views: Views, masks: Masks, index: int) -> tuple[Tensor, Tensor | None]:
        weights = self._weights(masks, views) * self.trunk.valid(views)[index]
        return pool(weights[None], self.pixels(views)[index : index + 1])[0], None

    def caption_losses(self, views: Views, proposer: RegionQueries) -> dict[str, Tensor]:
        """Compute the grounding loss of a batch with the ``caption_words`` of its requests."""
        if self.loss_weight == 0:
            return {"loss_grounding": self.log_scale.new_zeros(())}
        bound_temperature(self.log_scale, self.tau_min)
        regions = self.regions(views, proposer.mask_logits(views).float().sigmoid())
        with torch.autocast(regions.device.type, enabled=False):
            words, num_words = self._caption_words(views)
            tau = self.tau.float()
            if self.sync:
                words, num_words = gather_words(words, num_words)
            similarity = image_caption_similarity(regions, words, num_words, tau)  # (B, C)
            similarity = gather_rows(similarity) if self.sync else similarity
            return {"loss_grounding": self.loss_weight * grounding_loss(similarity, tau, num_words > 0)}

    def _caption_words(self, views: Views) -> tuple[Tensor, Tensor]:
        """Return the embeddings of the words of captions (B, Kmax, D), and their numbers (B,)."""
        captions = []
        for request in views.requests:
            given = request.get("caption_words", ())
            if isinstance(given, str) or not all(isinstance(word, str) and word.strip() for word in given):
                raise OvsegError(f"caption_words is {given!r}: give a list of words, which may be empty")
            captions.append(tuple(dict.fromkeys(given)))
        device = self.log_scale.device
        num_words = torch.tensor([len(caption) for caption in captions], device=device)
        padded = torch.zeros(len(captions), max(1, *map(len, captions), 1), self.clip_adapter.embed_dim, device=device)
        for target, caption in zip(padded, captions, strict=True):
            self._encode(caption)
            for place, word in enumerate(caption):
                target[place] = self._rows[word]
        return padded, num_words

    @torch.no_grad()
    def _encode(self, words: Iterable[str]) -> None:
        """Encode the words that are new, one at a time.

        In a batch the last bits of an embedding depend on the other words, and the weights on where a run was resumed.
        """
        for word in words:
            if word not in self._rows:
                self._rows[word] = self.clip_adapter.text_rows((word,))[0].float()

    def _weights(self, masks: Masks, views: Views) -> Tensor:
        """Return the weights of the places of the map in each mask, (N, h, w): a network's own, or shares of area."""
        if masks.logits is not None:
            return masks.logits.float().sigmoid()
        (height, width), canvas = masks.probabilities.shape[-2:], views.canvas
        padded = F.pad(masks.probabilities, (0, canvas[1] - width, 0, canvas[0] - height))
        return F.avg_pool2d(padded[None], STRIDE)[0]


def pool(weights: Tensor, pixels: Tensor) -> Tensor:
    """Return :func:`pool_regions` in float32, also in mixed precision: these are sums over thousands of places."""
    with torch.autocast(weights.device.type, enabled=False):
        return pool_regions(weights.float(), pixels.float())


def best_text(cosines: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Return the maximum over the texts of each word, (..., S) -> (..., K)."""
    return best_word(cosines, torch.tensor(vocabulary.classes), len(vocabulary))
