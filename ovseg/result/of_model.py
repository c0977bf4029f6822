"""From a model's maps to a :class:`~ovseg.result.segmentation.Segmentation`, within limits of memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import cv2
import numpy as np
import torch

from ovseg.errors import OvsegError
from ovseg.result.explanation import MaskScores
from ovseg.result.segmentation import Segmentation
from ovseg.vocabulary import Vocabulary

# Limit of numbers of 4 bytes at the size of a map (2 GiB): the scores of a chunk of classes, and the running best.
# Larger maps are computed at a smaller size and enlarged by nearest neighbour: masks have a quarter of the resolution
# of the model's input (INPUT.MAX_SIZE_TEST, 2560 in the published files), so no detail is lost.
LARGEST_MAPS = 2**29
RUNNING_BEST = 8  # numbers per pixel: labels and scores, old and new


def map_size(height: int, width: int, maps: int) -> tuple[int, int]:
    """Return the height and width at which the maps of an image are computed, those of the image if they fit.

    Args:
        height, width: of the image, pixels.
        maps: number of maps in memory at a time.
    """
    shrink = min(1.0, (LARGEST_MAPS / ((maps + RUNNING_BEST) * height * width)) ** 0.5)
    return max(1, int(height * shrink)), max(1, int(width * shrink))


def segmentation_of(
    result: Mapping[str, torch.Tensor],
    vocabulary: Vocabulary,
    pixels: np.ndarray,
    source: str | None,
    masks: MaskScores | None = None,
    min_score: float | None = None,
) -> Segmentation:
    """Return the segmentation of an image from the label and score map of a model, enlarged to the image's size.

    Args:
        result: has ``label_map`` (h, w) integers and ``score_map`` (h, w) float.
        pixels: (H, W, 3) uint8 RGB, the image.
        vocabulary, source, masks, min_score: see :meth:`Segmentation.from_maps`.
    """
    height, width = pixels.shape[:2]
    labels, scores = result["label_map"].cpu().numpy().astype(np.int32), result["score_map"].cpu().numpy()
    if labels.shape != (height, width):
        labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
        scores = cv2.resize(scores, (width, height), interpolation=cv2.INTER_NEAREST)
    words = vocabulary.foreground, pixels, source, masks, vocabulary.background
    return Segmentation.from_maps(labels, scores, *words, min_score)


@contextlib.contextmanager
def explained_memory(name: str) -> Iterator[None]:
    """Raise OvsegError, which names what takes memory, where the block runs out of it."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # PyTorch raises RuntimeError on a CPU
        if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "can't allocate memory" in str(error):
            raise OvsegError(
                f"not enough memory to segment {name}: lower INPUT.MAX_SIZE_TEST or "
                "MODEL.CLIP_ADAPTER.REGION_CHUNK_SIZE, or give fewer words"
            ) from error
        raise
