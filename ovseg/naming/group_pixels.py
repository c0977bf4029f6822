"""``GroupPixels``: OVSegmentor's rendering of named groups, in overlapping windows (specification, section 8)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ovseg.errors import OvsegError
from ovseg.naming.group_embeddings import GroupEmbeddings
from ovseg.naming.windows import average, windows
from ovseg.proposals.group_tokens import GroupTokens
from ovseg.proposals.views import Part, Views
from ovseg.vocabulary import Vocabulary

BACKGROUND = "background"


class GroupPixels(Part):
    """Scorer of pixels: each has the scores of its group in each window, averaged over the windows.

    If the first word is "background", no text is encoded for it: its score is 1 where the best score of a window's
    pixel is below the threshold, or below the best score of the window if that is lower, and 0 elsewhere.

    Args:
        proposer: of groups.
        namer: of groups.
        window, stride: height and width in pixels; (0, 0) for the whole image.
        bg_thresh: the threshold.
    """

    def __init__(
        self,
        proposer: GroupTokens,
        namer: GroupEmbeddings,
        window: tuple[int, int] = (448, 448),
        stride: tuple[int, int] = (224, 224),
        bg_thresh: float = 0.95,
    ):
        super().__init__()
        self.proposer, self.namer = proposer, namer
        self.window, self.stride, self.bg_thresh = tuple(window), tuple(stride), bg_thresh

    def forward(self, views: Views, words: Sequence[Vocabulary]) -> list[Tensor]:
        """Return the scores of each image, float32 (C, H, W), from 0 to 1."""
        return [self._average(image, of_image) for image, of_image in zip(views.images, words, strict=True)]

    def encode_words(self, words: Vocabulary) -> tuple[Vocabulary, Tensor]:
        """Return the words without a background, and their texts as unit vectors (S, d), which the namer keeps.

        Raises:
            OvsegError: background is the only word, or the text encoder cannot read them.
        """
        if words.names[0] == BACKGROUND:
            if len(words) == 1:
                raise OvsegError(f"{BACKGROUND} is the only word: give at least one word to look for")
            words = words.take(range(1, len(words)))
        return words, self.namer.text_matrix(words)

    def _average(self, image: Tensor, words: Vocabulary) -> Tensor:
        background = words.names[0] == BACKGROUND
        (named, texts), size = self.encode_words(words), tuple(image.shape[1:])
        parts = (
            (place, self._of_window(image[(slice(None), *place)], named, texts, background))
            for place in windows(size, self.window, self.stride)
        )
        return average(parts, size)

    def _of_window(self, image: Tensor, words: Vocabulary, texts: Tensor, background: bool) -> Tensor:
        """Return the scores of words in a window (3, h, w), after that of the background, float32 (C, h, w)."""
        groups = self.proposer.img_encoder(self.proposer.normalise(image[None]))
        scores = self.namer(groups.features[0], groups.pooled[0], words, texts).float()  # (K, C)
        group = groups.maps(tuple(image.shape[1:]))[0].argmax(dim=0)  # (h, w)
        pixels = scores.T[:, group]
        if not background:
            return pixels
        threshold = scores.max().clamp(max=self.bg_thresh)
        return torch.cat(((pixels.amax(dim=0, keepdim=True) < threshold).float(), pixels))
