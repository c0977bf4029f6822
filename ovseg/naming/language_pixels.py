"""``LanguagePixels``: pixel embeddings trained towards the text embeddings of words (LSeg, arXiv 2201.03546)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.clip.adapter import KEYS
from ovseg.clip.text import TextEmbedder
from ovseg.errors import argument_names
from ovseg.naming.dpt import DIVISIBILITY, Decoder, ResNetStages, ViTStages, enlarge
from ovseg.naming.pixel_classes import batch_labels, best_text, pixel_loss
from ovseg.naming.text_space import PixelMap, TextSpace
from ovseg.proposals.network import PixelNormalizer
from ovseg.proposals.views import Part, Views
from ovseg.vocabulary import Vocabulary

SCALE = 1 / 0.07  # of the cosines; neither trained nor stored in the original


class LanguagePixels(TextSpace, Part):
    """Scorer of pixels by 1/0.07 x cosine to the text embeddings of words, at stride 2.

    The children have the names of the published checkpoints. CLIP's image tower, if ``clip`` has one, is not used.

    Args:
        clip: CLIP, whose text tower is used; it is frozen.
        text: its text embeddings of words.
        stages: the image network.
        decoder: from its maps to embeddings of CLIP's dimension.
        pixel_mean, pixel_std: of the input, RGB, 0 .. 255.
        ignore_label: value of pixels without a class.
    """

    def __init__(
        self,
        *,
        clip: nn.Module,
        text: TextEmbedder,
        stages: ViTStages | ResNetStages,
        decoder: Decoder,
        pixel_mean: Sequence[float] = (127.5,) * 3,
        pixel_std: Sequence[float] = (127.5,) * 3,
        ignore_label: int = 255,
    ):
        super().__init__()
        self.clip_pretrained = clip.requires_grad_(False)
        self.pretrained, self.scratch = stages, decoder
        self.normalize = PixelNormalizer(pixel_mean, pixel_std)
        self.text = text
        self.ignore_label = ignore_label

    @property
    def scores_are_independent(self) -> bool:
        """Whether the score of a word does not depend on the other words; the first spatial block compares them."""
        return getattr(getattr(self.scratch, "head_block", None), "option", 0) != 1

    def train(self, mode: bool = True) -> LanguagePixels:
        """Set the mode; CLIP stays in evaluation mode."""
        super().train(mode)
        self.clip_pretrained.eval()
        return self

    def forward(self, views: Views, words: Sequence[Vocabulary]) -> list[Tensor]:
        """Return the scores of each image, float32 (K, H, W)."""
        scores = []
        for image, vocabulary in zip(views.images, words, strict=True):
            logits = self.logits(self.pad([image]), vocabulary)[0]
            scores.append(logits[:, : image.shape[1], : image.shape[2]].contiguous())
        return scores

    def losses(self, views: Views, vocabulary: Vocabulary) -> dict[str, Tensor]:
        """Compute the cross entropy of all pixels with a label."""
        batch = self.pad(views.images)
        labels = batch_labels(views.requests, batch.shape[-2:], self.ignore_label).to(batch.device)
        return {"loss_pixel": pixel_loss(self.logits(batch, vocabulary), labels, self.ignore_label)}

    def why_no_embeddings(self) -> str:
        if hasattr(self.scratch, "head_block"):
            return "a spatial block follows the cosines; take weights without one, MODEL.LSEG.ARCH_OPTION 0"
        return ""

    def word_embeddings(self, vocabulary: Vocabulary) -> Tensor:
        with argument_names(KEYS):
            return self.text(vocabulary.texts, vocabulary.templates).detach().float()

    def pixel_map(self, views: Views, index: int) -> PixelMap:
        batch = self.pad([views.images[index]])
        return PixelMap(self.scratch(self.pretrained(batch))[0].float(), tuple(batch.shape[-2:]), aligned=True)

    def pad(self, images: Sequence[Tensor]) -> Tensor:
        """Return normalised images as a batch (B, 3, H, W), continued at right and bottom by their last pixels.

        The sides are multiples of :data:`~ovseg.naming.dpt.DIVISIBILITY`: on other sides, the original cuts the image,
        or its maps do not fit.
        """
        sides = [max(image.shape[axis] for image in images) for axis in (1, 2)]
        height, width = (side + -side % DIVISIBILITY for side in sides)
        padded = []
        for image in images:
            margins = (0, width - image.shape[2], 0, height - image.shape[1])
            padded.append(F.pad(self.normalize(image)[None], margins, mode="replicate"))
        return torch.cat(padded)

    def logits(self, batch: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Return the logits (B, K, H, W) of a padded batch; of a class, that of its best text."""
        return enlarge(best_text(self.half_logits(batch, vocabulary), vocabulary))

    def half_logits(self, batch: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Return the logits (B, S, H / 2, W / 2) of a padded batch, for the S texts of the vocabulary."""
        embeddings = self.scratch(self.pretrained(batch)).float()
        unit = embeddings / embeddings.norm(dim=1, keepdim=True)
        with argument_names(KEYS):
            text = self.text(vocabulary.texts, vocabulary.templates).detach()
        logits = SCALE * torch.einsum("bdhw,sd->bshw", unit, text)
        if hasattr(self.scratch, "head_block"):
            logits = self.scratch.head_block(logits)
        return logits
