"""The Python face: ``Segmenter.from_config(config, weights)("photo.jpg", ["cat", "sofa"]) -> Segmentation``."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from ovseg.checkpoint import load_model
from ovseg.config import load_cfg
from ovseg.errors import OvsegError
from ovseg.evaluation.tta import augmented_model
from ovseg.io.devices import configured_device, find_device
from ovseg.io.images import ImageLike, as_rgb, resize_transform
from ovseg.result.explanation import MaskScores
from ovseg.result.segmentation import Segmentation
from ovseg.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

# What the model may hold at the size of a map, in numbers of 4 bytes (2 GiB): the scores of a chunk of classes, and the
# running best of all. A larger map is asked at a smaller size and enlarged by nearest neighbour: masks have a quarter
# of the resolution that the model sees (INPUT.MAX_SIZE_TEST, 2560 in the published files), so nothing known is lost.
LARGEST_MAPS = 2**29
RUNNING_BEST = 8  # numbers a pixel: labels and scores, old and new
# Sliding windows and test-time augmentation average the scores of all classes at once: their sum, those of a view, and
# a copy while these are put together or mirrored. Sliding windows also sum at the size of the model's input.
COPIES_OF_VIEWS = 3
LARGEST_SUM = 2**28  # numbers (1 GiB)


class Segmenter:
    """A loaded model that segments any image into any words. Calls do not change it; words differ from call to call.

    Args:
        model: Detectron2 model that answers ``outputs=("label_map",)``, in evaluation mode, with its weights.
        min_size: the shortest side of an image is resized to this many pixels; 0 leaves images as they are.
        max_size: unless the longest side would be more than this many pixels.
        class_chunk_size: classes that the model paints at a time; with it the size of maps is bounded.
        image_format: "RGB", or "BGR" if the model wants its images so.
        many_views: ``model`` with the sliding window or test-time augmentation around it that segments
            (:func:`ovseg.evaluation.tta.augmented_model`); None to look at each image once.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        min_size: int,
        max_size: int,
        class_chunk_size: int = 64,
        image_format: str = "RGB",
        many_views: nn.Module | None = None,
    ):
        self.model = model
        self.many_views = many_views
        self.image_format = image_format
        self.min_size = min_size
        self.max_size = max_size
        self.class_chunk_size = class_chunk_size
        self._checked: dict[Any, Vocabulary] = {}

    @classmethod
    def from_config(
        cls,
        config_file: str | Path,
        weights: str | Path | None = None,
        opts: Sequence[Any] | Mapping[str, Any] = (),
        device: str | None = None,
    ) -> Segmenter:
        """Build the model of a configuration file and load its weights, once.

        Args:
            config_file: YAML file.
            weights: checkpoint; None for the configuration's ``MODEL.WEIGHTS``.
            opts: override the file: ``[KEY, VALUE, ...]``, ``["KEY=VALUE", ...]``, or a dict, nested or not.
            device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, ...; None for ``MODEL.DEVICE``, or the CPU where
                that is CUDA and there is none.

        Raises:
            OvsegError: no weights named (a model with random weights would give nonsense), or unreadable, or of another
                model; bad configuration; unknown or missing device.
        """
        cfg = load_cfg(str(config_file), opts)
        weights = str(weights or cfg.MODEL.WEIGHTS)
        if not weights:
            raise OvsegError(
                f"{config_file} names no weights, and without trained weights every answer would be random: give a "
                "checkpoint (MODEL.WEIGHTS, or weights=... in Python)"
            )
        if "://" not in weights and not os.path.exists(weights):  # before minutes are spent on building a large model
            raise OvsegError(
                f"the weight file {weights} does not exist: give a trained OVSeg checkpoint "
                "(--opts MODEL.WEIGHTS FILE, or weights=... in Python)"
            )
        architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
        if not getattr(architecture, "takes_words", not architecture.__module__.startswith("detectron2.")):
            raise OvsegError(
                f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, which has classes of its own and takes no "
                "words: give a configuration of OVSeg or SCAN, or evaluate it with train_net.py --eval-only"
            )
        cfg.MODEL.WEIGHTS = weights
        cfg.MODEL.DEVICE = str(
            configured_device(cfg.MODEL.DEVICE) if device is None else find_device(str(device), "--device")
        )
        cfg.freeze()
        model = load_model(cfg, complete=True).eval()
        viewed = augmented_model(cfg, model, LARGEST_SUM)
        if cfg.TEST.DENSE_CRF:
            logger.warning("TEST.DENSE_CRF has an effect on evaluation only: this segmentation is not refined")
        return cls(
            model,
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            class_chunk_size=cfg.MODEL.MASK_FORMER.TEST.CLASS_CHUNK_SIZE,
            image_format=cfg.INPUT.FORMAT,
            many_views=None if viewed is model else viewed,
        )

    @torch.inference_mode()
    def prepare(self, words: str | Sequence[str | Sequence[str]] | Vocabulary) -> Vocabulary:
        """Let CLIP read the words now: images that follow find them cached, and words it cannot read fail here.

        Args:
            words: as for a call.

        Returns:
            The words, checked, for use in calls.

        Raises:
            OvsegError: bad words, or one too long for CLIP.
        """
        vocabulary = Vocabulary.of(words)
        self.model.clip_adapter.text_matrix(vocabulary.texts, vocabulary.templates)
        return vocabulary

    @torch.inference_mode()
    def __call__(
        self,
        image: ImageLike,
        words: str | Sequence[str | Sequence[str]] | Vocabulary,
        *,
        explain: bool = False,
    ) -> Segmentation:
        """Segment one image.

        Where nothing was painted the result is unlabelled, and so is what a vocabulary's background words got. When
        one word is asked and the model adds its own "others", what is "others" is unlabelled too; ask for
        ``[word, "others"]`` to see it as a word.

        ``TEST.SLIDING_WINDOW`` and ``TEST.AUG`` of the configuration are followed: label and score map are those of an
        evaluation with the same keys. They hold the scores of all words at once: on images so large that these would
        need more than 3 GiB the maps are made at a smaller size and enlarged.

        Args:
            image: as :func:`ovseg.io.images.as_rgb` takes it: file name, Pillow image, uint8 array (H,W,3) RGB or
                (H,W) grey, uint8 tensor, a file's content as bytes or file object.
            words: K words, or sequences of synonyms, or a text like "person, child; dog", or a :class:`Vocabulary`;
                never changed.
            explain: keep every mask's scores for :meth:`Segmentation.explain`; not with many views.

        Returns:
            :class:`Segmentation` of the image's own size.

        Raises:
            OvsegError: unreadable image, bad words, not enough memory, or an explanation of many views.
        """
        if explain:
            self.refuse_to_explain_views()
        vocabulary = self._vocabulary(words)
        pixels, source = as_rgb(image)
        height, width = pixels.shape[:2]
        classes = max(len(vocabulary), 2)  # 2: the model may add "others"
        maps = min(classes, self.class_chunk_size) if self.many_views is None else COPIES_OF_VIEWS * classes
        shrink = min(1.0, (LARGEST_MAPS / ((maps + RUNNING_BEST) * height * width)) ** 0.5)
        request = {
            "image": self._model_input(pixels),
            "height": max(1, int(height * shrink)),
            "width": max(1, int(width * shrink)),
            "class_names": vocabulary,
            "outputs": ("label_map", "explanations") if explain else ("label_map",),
            "file_name": source,
        }
        with _explain_memory(source or "the image"):
            result = (self.many_views or self.model)([request])[0]
            labels = result["label_map"].cpu().numpy().astype(np.int32)
            scores = result["score_map"].cpu().numpy()
            masks = MaskScores.from_model(result["explanations"], vocabulary.names) if explain else None
        if labels.shape != (height, width):
            labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
            scores = cv2.resize(scores, (width, height), interpolation=cv2.INTER_NEAREST)
        return Segmentation.from_maps(
            labels, scores, vocabulary.foreground, pixels, source, masks, vocabulary.background
        )

    def refuse_to_explain_views(self) -> None:
        """Raise OvsegError if results are averages over views, each of which has masks of its own."""
        if self.many_views is not None:
            raise OvsegError(
                "with TEST.SLIDING_WINDOW or TEST.AUG.ENABLED scores are averages over views that have masks of their "
                "own, and there are no masks to explain: set both to False, or do not ask for explanations"
            )

    @torch.inference_mode()
    def propose(self, image: ImageLike) -> torch.Tensor:
        """Masks of one image without names; of the whole image, whatever ``many_views`` is, as in evaluation.

        Args:
            image: as for a call.

        Returns:
            float32 (Q, H, W) probabilities on the model's device, of the image's own size; nothing limits their memory.

        Raises:
            OvsegError: unreadable image, or not enough memory.
        """
        pixels, source = as_rgb(image)
        request = {
            "image": self._model_input(pixels),
            "height": pixels.shape[0],
            "width": pixels.shape[1],
            "outputs": ("soft_proposals",),
        }
        with _explain_memory(source or "the image"):
            return self.model([request])[0]["soft_proposals"]

    def _vocabulary(self, words: str | Sequence[str | Sequence[str]] | Vocabulary) -> Vocabulary:
        """Return the words as a vocabulary; lists that were checked before, for other images, are not checked again."""
        if isinstance(words, Vocabulary):
            return words
        key = repr(words) if type(words) in (str, list, tuple) else None
        if key not in self._checked:
            vocabulary = Vocabulary.of(words)
            if key is None:
                return vocabulary
            self._checked = {key: vocabulary}  # of one list: that of the images before
        return self._checked[key]

    def _model_input(self, pixels: np.ndarray) -> torch.Tensor:
        """(3,h,w), resized and in the order of channels that the model was configured for."""
        resized = resize_transform(*pixels.shape[:2], self.min_size, self.max_size).apply_image(pixels)
        return torch.from_numpy(np.array(resized if self.image_format == "RGB" else resized[:, :, ::-1])).permute(
            2, 0, 1
        )


@contextlib.contextmanager
def _explain_memory(name: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # PyTorch has no exception type of its own for the CPU
        if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "can't allocate memory" in str(error):
            raise OvsegError(
                f"not enough memory to segment {name}: lower INPUT.MAX_SIZE_TEST or "
                "MODEL.CLIP_ADAPTER.REGION_CHUNK_SIZE, or give fewer words"
            ) from error
        raise
