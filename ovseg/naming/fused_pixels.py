"""``FusedPixels``: embeddings of pixels from a backbone with a fused feature pyramid, compared with words (LSeg+)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.clip.adapter import ClipAdapter
from ovseg.naming.pixel_classes import batch_labels, best_text, enlarged, pixel_loss
from ovseg.naming.text_space import PixelMap, TextSpace, bound_temperature
from ovseg.proposals.fpn import FusedTrunk, PixelBranch
from ovseg.proposals.views import Part, Views
from ovseg.vocabulary import Vocabulary


class FusedPixels(TextSpace, Part):
    """Scorer of pixels: cosines of trained pixel embeddings to the text embeddings of words, divided by a temperature.

    ::

        image -> backbone -> fused pyramid -> branch -> embeddings (D, H / 4, W / 4) -+-> cosine / tau -> (K, H, W)
        words -> CLIP's text tower, frozen -> text embeddings (K, D) -----------------+

    Args:
        trunk, branch: the network; the branch gives embeddings of CLIP's dimension.
        clip_adapter: CLIP, for the text embeddings; or a table of vectors of words, whose dot products are used as they
            are without its ``cosine`` (SPNet).
        tau: temperature at the start of the training.
        tau_min: lower bound of the temperature.
        learn_tau: train it.
        ignore_label: value of pixels without a class.
    """

    scores_are_independent: ClassVar[bool] = True  # the score of a word does not depend on the other words

    def __init__(
        self,
        *,
        trunk: FusedTrunk,
        branch: PixelBranch,
        clip_adapter: ClipAdapter,
        tau: float = 0.07,
        tau_min: float = 0.01,
        learn_tau: bool = True,
        ignore_label: int = 255,
    ):
        super().__init__()
        self.trunk, self.branch = trunk, branch
        self.clip_adapter = clip_adapter
        self.log_scale = nn.Parameter(torch.tensor(-math.log(tau)), requires_grad=learn_tau)
        self.tau_min = tau_min
        self.ignore_label, self.size_divisibility = ignore_label, trunk.size_divisibility

    def forward(self, views: Views, words: Sequence[Vocabulary]) -> list[Tensor]:
        """Return the scores of each image, float32 (K, H, W)."""
        embeddings, padded_size = self.embeddings(views)
        scores = []
        for embedding, image, vocabulary in zip(embeddings, views.images, words, strict=True):
            found = best_text(self.logits(embedding[None], vocabulary), vocabulary)[0]
            scores.append(enlarged(found, padded_size, image.shape[1:]))
        return scores

    def losses(self, views: Views, vocabulary: Vocabulary) -> dict[str, Tensor]:
        """Compute the cross entropy at stride 4, with the nearest label of each place."""
        bound_temperature(self.log_scale, self.tau_min)
        embeddings, padded_size = self.embeddings(views)
        logits = best_text(self.logits(embeddings, vocabulary), vocabulary)
        labels = batch_labels(views.requests, padded_size, self.ignore_label)
        labels = F.interpolate(labels[:, None].double(), logits.shape[-2:], mode="nearest-exact")[:, 0].long()
        return {"loss_pixel": pixel_loss(logits, labels.to(logits.device), self.ignore_label)}

    def pixel_map(self, views: Views, index: int) -> PixelMap:
        embeddings, padded_size = self.embeddings(views)
        return PixelMap(embeddings[index].float(), tuple(padded_size), unit=self.clip_adapter.cosine)

    def embeddings(self, views: Views) -> tuple[Tensor, tuple[int, int]]:
        """Return the embeddings of a batch, (B, D, h, w) at stride 4, not normalised, and its padded size."""
        return self.branch(self.trunk(views)), self.trunk.padded_size(views)

    def logits(self, embeddings: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Return cosines / tau, or dot products, float32 (B, S, h, w), for the S texts of the vocabulary."""
        text = self.clip_adapter.text_matrix(vocabulary.texts, vocabulary.templates)[:-1].detach().float()
        if not self.clip_adapter.cosine:
            return torch.einsum("bdhw,sd->bshw", embeddings.float(), text)
        scale = self.log_scale.exp()
        if not self.training:  # in training the losses bound it
            scale = scale.clamp(max=1 / self.tau_min)
        return scale * torch.einsum("bdhw,sd->bshw", F.normalize(embeddings.float(), dim=1), text)
