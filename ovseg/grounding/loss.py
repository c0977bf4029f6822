"""Similarity of images and captions, and the contrastive loss of a batch (arXiv 2112.12143, equations 2 to 4)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def region_word_cosine(regions: Tensor, words: Tensor) -> Tensor:
    """Compute the cosine of each region and word; 0 where either is a zero vector.

    Args:
        regions: (..., N, D), not normalised.
        words: (K, D), or (..., K, D) for words of each image.

    Returns:
        (..., N, K).
    """
    return F.normalize(regions, dim=-1) @ F.normalize(words, dim=-1).transpose(-1, -2)


def best_word(scores: Tensor, categories: Tensor, num_categories: int) -> Tensor:
    """Reduce scores of words to those of categories, the maximum over the words of each category.

    Args:
        scores: (..., K).
        categories: int64 (K,), the category of each word.
        num_categories: C.

    Returns:
        (..., C); -inf for a category without words.
    """
    best = scores.new_full((*scores.shape[:-1], num_categories), -torch.inf)
    return best.scatter_reduce(-1, categories.to(scores.device).expand(scores.shape), scores, "amax")


def image_caption_similarity(regions: Tensor, words: Tensor, num_words: Tensor, tau: float | Tensor) -> Tensor:
    """Compute the similarity of each image and caption (equation 3).

    The similarity of an image and a word is the mean of the regions' cosines, weighted by their softmax over the
    regions at the temperature; that of a caption is the mean over its words.

    Args:
        regions: (B, N, D) of the images, not normalised.
        words: (C, Kmax, D) of the captions; entries beyond ``num_words`` have no influence, whatever they hold.
        num_words: int64 (C,).
        tau: temperature, a number or a tensor without dimensions.

    Returns:
        (B, C) in [-1, 1], row = image, column = caption; 0 for a caption without words.
    """
    there = torch.arange(words.shape[1], device=words.device) < num_words.to(words.device)[:, None]  # (C, Kmax)
    of_each = region_word_cosine(regions, words[there])  # (B, N, W), of the W words that are there
    of_each = ((of_each / tau).softmax(dim=1) * of_each).sum(dim=1)  # (B, W)
    captions = there.nonzero()[:, 0].expand(of_each.shape)
    sums = of_each.new_zeros(len(of_each), len(words)).scatter_add(1, captions, of_each)
    return sums / there.sum(1).clamp(min=1)


def grounding_loss(similarity: Tensor, tau: float | Tensor, usable: Tensor | None = None) -> Tensor:
    """Compute the contrastive loss of a batch, image to caption plus caption to image (equation 4).

    Args:
        similarity: (B, B), row = image, column = caption, pairs on the diagonal.
        tau: temperature of both softmaxes.
        usable: bool (B,), captions with words; others leave the batch as a row and as a column. None for all.

    Returns:
        scalar, 2 ln B if all similarities are equal; 0, with zero gradients, for a batch without a usable caption.
    """
    if usable is not None:
        kept = usable.to(similarity.device).nonzero()[:, 0]
        similarity = similarity[kept][:, kept]
    if not len(similarity):
        return similarity.sum() + 0 * tau
    logits = similarity / tau
    return -(logits.log_softmax(dim=1) + logits.log_softmax(dim=0)).diagonal().mean()
