"""Rendering of class scores of masks to class scores of pixels (specification, sections 2.3 and 2.4)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor

from ovseg.grounding import best_word
from ovseg.meta_arch.mask_sums import render_labels, render_scores, scores_in_chunks
from ovseg.meta_arch.pixel_labels import best_classes
from ovseg.naming.crops import has_pixel
from ovseg.vocabulary import Vocabulary


class MaskSum:
    """Rendering by the sum over all masks of score x mask probability (evaluation of OVSeg and SCAN).

    Args:
        class_chunk_size: number of classes rendered at a time, which limits memory and does not change results.
        resize_mode: of scores to the size of the result, see :func:`ovseg.meta_arch.mask_sums.resize`.
    """

    adds_others = False
    is_independent = True  # the result for a word does not depend on the other words, if its scores do not

    def __init__(self, class_chunk_size: int = 64, resize_mode: str = "bilinear"):
        self.class_chunk_size, self.resize_mode = class_chunk_size, resize_mode

    @classmethod
    def from_config(cls, cfg: CfgNode) -> MaskSum:
        return cls(cfg.MODEL.MASK_FORMER.TEST.CLASS_CHUNK_SIZE, cfg.MODEL.RENDERING.RESIZE)

    def __call__(
        self,
        scores: Tensor,
        masks: Tensor,
        words: Vocabulary,
        size: tuple[int, int],
        outputs: Collection[str],
        bias: Tensor | None = None,
    ) -> dict[str, Any]:
        """Render ``sem_seg`` and ``label_map``, each if it is in ``outputs``.

        Args:
            scores: (Q, K).
            masks: (Q, H, W) probabilities.
            words: the K classes.
            size: height and width of the result.
            bias: (K,), subtracted from the scores of pixels; None for nothing.

        Returns:
            ``sem_seg`` float32 (K, height, width); ``label_map`` int64 (height, width) with ``score_map`` float32,
            which is 0 where no mask with a score is, whatever the bias.
        """
        result: dict[str, Any] = {}
        rest = scores, masks, size, self.class_chunk_size, bias, self.resize_mode
        if "sem_seg" in outputs:
            result["sem_seg"] = render_scores(*rest)
        if "label_map" in outputs:
            result["label_map"], result["score_map"] = render_labels(*rest)
        return result if bias is None else result | self._zero_uncovered(result, scores, masks, size)

    def of_words(self, scores: Tensor, words: Vocabulary) -> Tensor:
        """Return the scores of words (n, K) for scores of masks as this rendering takes them."""
        return scores

    def _zero_uncovered(
        self, result: dict[str, Any], scores: Tensor, masks: Tensor, size: tuple[int, int]
    ) -> dict[str, Any]:
        """Return the score map of a result, if it has one, with zeros where no mask with a score is."""
        if "score_map" not in result:
            return {}
        covered = render_scores((scores > 0).any(1, keepdim=True).float(), masks, size, 1, mode=self.resize_mode)[0] > 0
        return {"score_map": torch.where(covered, result["score_map"], 0.0)}


class TextMaximum(MaskSum):
    """Rendering of scores of texts as :class:`MaskSum`, then the maximum over the texts of each word at each pixel.

    This is OpenSeg's equation 6 with several names of a class (specification, section 6.2). No more than the maps of
    ``class_chunk_size`` texts are computed at a time.
    """

    def __call__(
        self,
        scores: Tensor,
        masks: Tensor,
        words: Vocabulary,
        size: tuple[int, int],
        outputs: Collection[str],
        bias: Tensor | None = None,
    ) -> dict[str, Any]:
        """Render as :class:`MaskSum`; ``scores`` are those of the S texts of the words, (Q, S)."""
        word = torch.tensor(words.classes, device=masks.device)  # of each text
        rest = scores, masks, size, self.class_chunk_size, None if bias is None else bias[word], self.resize_mode
        result: dict[str, Any] = {}
        if "sem_seg" in outputs:
            best = torch.full((len(words), *size), -torch.inf, device=masks.device)
            for start, of_texts in scores_in_chunks(*rest):
                index = word[start : start + len(of_texts), None, None].expand_as(of_texts)
                best.scatter_reduce_(0, index, of_texts, "amax")
            result["sem_seg"] = best
        if "label_map" in outputs:
            texts, result["score_map"] = render_labels(*rest)
            result["label_map"] = word[texts]
        return result if bias is None else result | self._zero_uncovered(result, scores, masks, size)

    def of_words(self, scores: Tensor, words: Vocabulary) -> Tensor:
        """Return the maximum over the texts of each word, (n, S) -> (n, K)."""
        return best_word(scores, torch.tensor(words.classes), len(words))


class ClassWinner(MaskSum):
    """Rendering of the binary masks that have a high score of some class (published demos of OVSeg).

    A single word is always segmented against "others", which keeps no mask. Pixels of no kept mask have the score 0.

    Args:
        mask_threshold: probability above which a pixel belongs to a mask.
        class_chunk_size, resize_mode: see :class:`MaskSum`.
        granularity: 0 (coarse) to 1 (precise), see :func:`class_winner_weights`.
    """

    adds_others = True
    is_independent = False

    def __init__(
        self,
        mask_threshold: float,
        class_chunk_size: int = 64,
        resize_mode: str = "bilinear",
        granularity: float = 1.0,
    ):
        super().__init__(class_chunk_size, resize_mode)
        self.mask_threshold, self.granularity = mask_threshold, granularity

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ClassWinner:
        chunk, mode = cfg.MODEL.MASK_FORMER.TEST.CLASS_CHUNK_SIZE, cfg.MODEL.RENDERING.RESIZE
        granularity = cfg.MODEL.RENDERING.GRANULARITY
        return cls(cfg.MODEL.CLIP_ADAPTER.MASK_THR, chunk, mode, 1.0 if granularity is None else granularity)

    def __call__(
        self,
        scores: Tensor,
        masks: Tensor,
        words: Vocabulary,
        size: tuple[int, int],
        outputs: Collection[str],
        bias: Tensor | None = None,
    ) -> dict[str, Any]:
        seen = has_pixel(masks, self.mask_threshold)
        drop_last = len(words) == 2 and words.texts[-1] == "others"
        weights = class_winner_weights(scores[seen], drop_last, self.granularity)
        return super().__call__(weights, (masks[seen] > self.mask_threshold).float(), words, size, outputs, bias)


class AreaWeightedSum(MaskSum):
    """Rendering as :class:`MaskSum`, in which a mask counts by its share of the image to the power of -min(1/2, 5 / K).

    For proposers of nested regions, such as the boundary tree: of the regions around a pixel, small ones follow the
    contours, and large ones would outvote them. With many words, small regions get wrong names more often. Chosen by
    cross-validation of the photograph model (docs/photo_model.md): -1/2 is best for the words of an image, 0 for 133.
    Scores are weighted means over the masks of a pixel, 0 .. 1.
    """

    is_independent = False

    def __call__(
        self,
        scores: Tensor,
        masks: Tensor,
        words: Vocabulary,
        size: tuple[int, int],
        outputs: Collection[str],
        bias: Tensor | None = None,
    ) -> dict[str, Any]:
        shares = masks.flatten(1).mean(1).clamp_min(1e-6)
        weights = shares[:, None] ** -min(0.5, 5 / scores.shape[1])
        total = render_scores(weights, masks, size, 1, mode=self.resize_mode)[0].clamp_min(1e-6)
        if bias is not None:
            return self._with_bias(scores * weights, masks, size, outputs, bias, total)
        result = super().__call__(scores * weights, masks, words, size, outputs)
        return result | {name: result[name] / total for name in ("sem_seg", "score_map") if name in result}

    def _with_bias(
        self,
        scores: Tensor,
        masks: Tensor,
        size: tuple[int, int],
        outputs: Collection[str],
        bias: Tensor,
        total: Tensor,
    ) -> dict[str, Any]:
        """Render the sums, divided by ``total`` (height, width) before the bias is subtracted."""

        def chunks() -> Iterator[tuple[int, Tensor]]:
            for start, sums in scores_in_chunks(scores, masks, size, self.class_chunk_size, None, self.resize_mode):
                yield start, sums / total - bias[start : start + len(sums), None, None]

        result: dict[str, Any] = {}
        if "sem_seg" in outputs:
            result["sem_seg"] = torch.cat([few for _, few in chunks()])
        if "label_map" in outputs:
            result["label_map"], result["score_map"] = best_classes(chunks(), size, masks.device)
        return result | self._zero_uncovered(result, scores, masks, size)


RENDERINGS = {"mask_sum": MaskSum, "class_winner": ClassWinner, "area_weighted_sum": AreaWeightedSum}


def class_winner_weights(probabilities: Tensor, drop_last: bool, granularity: float = 1.0) -> Tensor:
    """Keep the rows of masks that have a high score of some class, and set other rows to zero.

    Args:
        probabilities: (n, K) of each class for each mask.
        drop_last: do not select a mask for the last class.
        granularity: g. With 1 each class k selects the first mask with its highest score; below 1, all masks q with
            p[q, k] > g x max_q p[q, k], which is none if the highest score is 0.

    Returns:
        (n, K). Kept rows are unchanged, so the argmax of a pixel in one mask is the best class of that mask; a row that
        several classes select is there once.
    """
    weights = torch.zeros_like(probabilities)
    if len(probabilities):
        selecting = probabilities[:, :-1] if drop_last else probabilities
        if granularity < 1:
            kept = (selecting > granularity * selecting.amax(dim=0)).any(dim=1)
        else:
            kept = selecting.argmax(dim=0)
        weights[kept] = probabilities[kept]
    return weights
