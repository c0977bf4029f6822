"""Grounding of the words of captions in the regions of images (OpenSeg, ECCV 2022, arXiv 2112.12143, section 3.2)."""

from ovseg.grounding.loss import (
    best_word,
    grounding_loss,
    image_caption_similarity,
    region_word_cosine,
)
from ovseg.grounding.words import drop_words, grounded_words

__all__ = [
    "best_word",
    "drop_words",
    "grounded_words",
    "grounding_loss",
    "image_caption_similarity",
    "region_word_cosine",
]
