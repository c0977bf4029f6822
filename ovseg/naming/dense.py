"""Scores of words at each place of a dense map of CLIP, for models without masks (MaskCLIP, arXiv 2112.01071).

Scores are cosines to the text embeddings, which may be refined: see :func:`denoise` and :func:`smooth`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from ovseg.clip.adapter import KEYS as CLIP_KEYS
from ovseg.clip.adapter import LOGIT_SCALE, ClipAdapter, unit
from ovseg.clip.dense import KEYS, LAST, resize_whole
from ovseg.clip.dense_towers import MASK_ATTENTION, dense_tower
from ovseg.clip.dense_vit import VALUE
from ovseg.errors import OvsegError, argument, argument_names
from ovseg.naming.scores import best_synonym
from ovseg.naming.text_space import PixelMap, TextSpace
from ovseg.proposals.views import Part, Views
from ovseg.vocabulary import Vocabulary

ABSENT = -100.0  # score of a word that prompt denoising leaves out
NAMES = {**CLIP_KEYS, "mode": "MODEL.DENSE.MODE", "key_smoothing": "MODEL.DENSE.KS_THRESH"}


class DenseScores(TextSpace, Part):
    """Scores of words at each place of an image, of any size.

    Args:
        clip_adapter: CLIP, whose image tower has dense maps: see :mod:`ovseg.clip.dense_towers`.
        mode: way to compute the map, see there.
        key_smoothing: threshold of :func:`smooth`; 0 for no smoothing.
        denoising: threshold of :func:`denoise`; 0 for no denoising.

    Raises:
        OvsegError: the image tower has no dense maps, or lacks the mode or keys to smooth with.
    """

    def __init__(
        self, clip_adapter: ClipAdapter, *, mode: str = VALUE, key_smoothing: float = 0.0, denoising: float = 0.0
    ):
        super().__init__()
        if mode == MASK_ATTENTION:
            raise OvsegError(
                f"{argument('mode')} is {mode}, which is for masks: set value, or use MODEL.META_ARCHITECTURE "
                "ProposeAndName with the namer PooledMap"
            )
        visual, name = clip_adapter.clip_model.visual, clip_adapter.source.name
        self.tower = dense_tower(visual, name, mode, keys=key_smoothing > 0)
        if self.tower.channels_last:
            visual.to(memory_format=torch.channels_last)
        self.clip_adapter = clip_adapter
        self.key_smoothing, self.denoising = key_smoothing, denoising

    @classmethod
    def from_config(cls, cfg: CfgNode, clip_adapter: ClipAdapter) -> DenseScores:
        dense = cfg.MODEL.DENSE
        with argument_names(NAMES):
            return cls(clip_adapter, mode=dense.MODE, key_smoothing=dense.KS_THRESH, denoising=dense.PD_THRESH)

    @property
    def scores_are_independent(self) -> bool:
        """Whether the score of a word does not depend on the other words: without the softmax of a refinement."""
        return self.key_smoothing <= 0 and self.denoising <= 0

    @torch.no_grad()
    def forward(self, views: Views, words: Sequence[Vocabulary]) -> list[Tensor]:
        """Return the scores of the words of each image, float32 (K, h, w): cosines; probabilities if smoothed.

        The sides of an image are rounded to multiples of the tower's stride.
        """
        return [self.scores(*of_image) for of_image in zip(views.images, words, strict=True)]

    def scores(self, image: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Return the scores (K, h, w) of one image (3, H, W), 0 .. 255."""
        clip = self.clip_adapter
        features, maps = self._features(image)
        text = clip.text_matrix(vocabulary.texts, vocabulary.templates)
        clip.check_table(features.movedim(0, -1), text)
        cosines = best_synonym(cosine_map(features.float(), text).movedim(0, -1), vocabulary)[..., :-1].movedim(-1, 0)
        keys = maps[KEYS][0].float() if self.key_smoothing > 0 else None
        return refine(cosines, keys, self.key_smoothing, self.denoising)

    def why_no_embeddings(self) -> str:
        if not self.scores_are_independent:
            return "cosines are refined with all words; set MODEL.DENSE.KS_THRESH and PD_THRESH to 0"
        return ""

    def pixel_map(self, views: Views, index: int) -> PixelMap:
        return PixelMap(self._features(views.images[index])[0].float(), tuple(views.images[index].shape[1:]))

    def _features(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the features (D, h, w) of the places of an image (3, H, W), and the maps of the tower."""
        clip = self.clip_adapter
        pixels = resize_whole(image, max(image.shape[1:]), clip.pixel_mean, clip.pixel_std, self.tower.stride)
        with clip.autocast(pixels.device.type):
            maps = self.tower.maps(pixels, keys=self.key_smoothing > 0)
            return self.tower.places(maps[LAST][0]), maps


def cosine_map(features: Tensor, text: Tensor) -> Tensor:
    """Return the cosines of texts, unit vectors (S, D), with each place of a map (D, h, w); (S, h, w)."""
    return (text @ unit(features.flatten(1).T).T).unflatten(1, features.shape[1:])


def refine(scores: Tensor, keys: Tensor | None, key_smoothing: float, denoising: float) -> Tensor:
    """Return cosines (K, h, w) after :func:`denoise` and then :func:`smooth`, each if its threshold is positive."""
    if denoising > 0:
        scores = denoise(scores, denoising)
    return smooth(scores, keys, key_smoothing) if key_smoothing > 0 else scores


def denoise(scores: Tensor, threshold: float) -> Tensor:
    """Leave out words that are probable nowhere in an image ("prompt denoising").

    Args:
        scores: cosines (K, h, w).
        threshold: of the highest probability of a word, by the softmax over the words of 100 x cosine.

    Returns:
        (K, h, w), :data:`ABSENT` everywhere for the words below the threshold.
    """
    highest = (LOGIT_SCALE * scores).softmax(0).flatten(1).amax(1)
    return torch.where((highest < threshold)[:, None, None], ABSENT, scores)


def smooth(scores: Tensor, keys: Tensor, threshold: float) -> Tensor:
    """Replace the probabilities at uncertain places by those of places with similar keys ("key smoothing").

    The place i takes sum_j w_ij p_j, where w = K K^T. As in the original, K has keys whose *channels* have been
    normalised, each over all places, and the rows of w are not normalised: the result need not sum to 1, and may be
    negative.

    Args:
        scores: cosines (K, h, w).
        keys: of the tower's last attention, (C, h, w).
        threshold: of the best probability at a place, below which it is replaced.

    Returns:
        (K, h, w): probabilities, by the softmax over the words of 100 x score, and their sums.
    """
    probabilities = (LOGIT_SCALE * scores).softmax(0).flatten(1)  # (K, P)
    keys = F.normalize(keys.flatten(1), dim=1)  # (C, P)
    smoothed = (probabilities @ keys.T) @ keys
    uncertain = probabilities.amax(0) < threshold
    return torch.where(uncertain, smoothed, probabilities).unflatten(1, scores.shape[1:])
