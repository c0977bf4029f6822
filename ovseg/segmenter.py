"""The Python face: ``Segmenter.from_config(config, weights)("photo.jpg", ["cat", "sofa"]) -> Segmentation``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from PIL import Image
from torch import nn

from ovseg.checkpoint import load_weights
from ovseg.config import load_cfg
from ovseg.devices import configured_device, find_device
from ovseg.errors import OvsegError
from ovseg.explanation import MaskScores
from ovseg.images import read_image, to_rgb
from ovseg.segmentation import Segmentation
from ovseg.vocabulary import Vocabulary

# What the model may hold at the size of a map, in numbers of 4 bytes (2 GiB): the scores of a chunk of classes, and the
# running best of all. A larger map is asked at a smaller size and enlarged by nearest neighbour: masks have a quarter
# of the resolution that the model sees (INPUT.MAX_SIZE_TEST, 2560 in the published files), so nothing known is lost.
LARGEST_MAPS = 2**29
RUNNING_BEST = 8  # numbers a pixel: labels and scores, old and new


class Segmenter:
    """A loaded model that segments any image into any words. Calls do not change it; words differ from call to call.

    Args:
        model: Detectron2 model that answers ``outputs=("label_map",)``, in evaluation mode, with its weights.
        min_size: the shortest side of an image is resized to this many pixels; 0 leaves images as they are.
        max_size: unless the longest side would be more than this many pixels.
        class_chunk_size: classes that the model paints at a time; with it the size of maps is bounded.
    """

    def __init__(self, model: nn.Module, *, min_size: int, max_size: int, class_chunk_size: int = 64):
        self.model = model
        self.min_size = min_size
        self.max_size = max_size
        self.class_chunk_size = class_chunk_size

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
        if "://" not in weights and not Path(weights).exists():  # before minutes are spent on building a large model
            raise OvsegError(
                f"the weight file {weights} does not exist: give a trained OVSeg checkpoint "
                "(--opts MODEL.WEIGHTS FILE, or weights=... in Python)"
            )
        cfg.MODEL.WEIGHTS = weights
        cfg.MODEL.DEVICE = str(
            configured_device(cfg.MODEL.DEVICE) if device is None else find_device(str(device), "--device")
        )
        cfg.freeze()
        model = build_model(cfg).eval()
        load_weights(model, weights, complete=True)
        model.clip_adapter.ensure_weights()
        return cls(
            model,
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            class_chunk_size=cfg.MODEL.MASK_FORMER.TEST.CLASS_CHUNK_SIZE,
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
        texts = tuple(dict.fromkeys(chain.from_iterable(vocabulary.synonyms)))
        self.model.clip_adapter.text_matrix(texts, vocabulary.templates)
        return vocabulary

    @torch.inference_mode()
    def __call__(
        self,
        image: str | Path | np.ndarray | Image.Image,
        words: str | Sequence[str | Sequence[str]] | Vocabulary,
        *,
        explain: bool = False,
    ) -> Segmentation:
        """Segment one image.

        Where nothing was painted the result is unlabelled, and so is what a vocabulary's background words got. When
        one word is asked and the model adds its own "others", what is "others" is unlabelled too; ask for
        ``[word, "others"]`` to see it as a word.

        Args:
            image: file; (H,W,3) uint8 RGB or (H,W) uint8 grey array; or Pillow image.
            words: K words, or sequences of synonyms, or a text like "person, child; dog", or a :class:`Vocabulary`;
                never changed.
            explain: keep every mask's scores for :meth:`Segmentation.explain`.

        Returns:
            :class:`Segmentation` of the image's own size.

        Raises:
            OvsegError: unreadable image, bad words, or not enough memory.
        """
        vocabulary = Vocabulary.of(words)
        pixels, source = _as_rgb(image)
        height, width = pixels.shape[:2]
        classes = min(max(len(vocabulary), 2), self.class_chunk_size)  # 2: the model may add "others"
        shrink = min(1.0, (LARGEST_MAPS / ((classes + RUNNING_BEST) * height * width)) ** 0.5)
        request = {
            "image": torch.from_numpy(self._resize(pixels)).permute(2, 0, 1),  # (3,h,w)
            "height": max(1, int(height * shrink)),
            "width": max(1, int(width * shrink)),
            "class_names": vocabulary.class_names,
            "templates": vocabulary.templates,
            "outputs": ("label_map", "explanations") if explain else ("label_map",),
        }
        with _explain_memory(source or "the image"):
            result = self.model([request])[0]
            labels = result["label_map"].cpu().numpy().astype(np.int32)
            scores = result["score_map"].cpu().numpy()
            masks = MaskScores.from_model(result["explanations"], vocabulary.names) if explain else None
        if labels.shape != (height, width):
            labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
            scores = cv2.resize(scores, (width, height), interpolation=cv2.INTER_NEAREST)
        return Segmentation.from_maps(labels, scores, vocabulary.foreground, pixels, source, masks)

    @torch.inference_mode()
    def propose(self, image: str | Path | np.ndarray | Image.Image) -> torch.Tensor:
        """Masks of one image without names.

        Args:
            image: as for a call.

        Returns:
            float32 (Q, H, W) probabilities on the model's device, of the image's own size; nothing limits their memory.

        Raises:
            OvsegError: unreadable image, or not enough memory.
        """
        pixels, source = _as_rgb(image)
        request = {
            "image": torch.from_numpy(self._resize(pixels)).permute(2, 0, 1),  # (3,h,w)
            "height": pixels.shape[0],
            "width": pixels.shape[1],
            "class_names": ("thing",),  # the model wants a word, masks do not depend on it
            "outputs": ("soft_proposals",),
        }
        with _explain_memory(source or "the image"):
            return self.model([request])[0]["soft_proposals"]

    def _resize(self, pixels: np.ndarray) -> np.ndarray:
        """As Detectron2's ``ResizeShortestEdge``, but a very long image keeps at least one pixel of its short side."""
        if self.min_size <= 0:
            return np.array(pixels)
        height, width = pixels.shape[:2]
        new_height, new_width = T.ResizeShortestEdge.get_output_shape(height, width, self.min_size, self.max_size)
        resize = T.ResizeTransform(height, width, max(1, new_height), max(1, new_width), Image.Resampling.BILINEAR)
        return np.array(resize.apply_image(pixels))


def _as_rgb(image: str | Path | np.ndarray | Image.Image) -> tuple[np.ndarray, str | None]:
    """(H,W,3) uint8 RGB and the file's name if there is one."""
    if isinstance(image, (str, Path)):
        return read_image(image), str(image)
    if isinstance(image, Image.Image):
        return to_rgb(image), getattr(image, "filename", "") or None
    if not isinstance(image, np.ndarray):
        raise OvsegError(f"an image must be a file, a NumPy array or a Pillow image, not {type(image).__name__}")
    if image.dtype != np.uint8:
        raise OvsegError(f"an image array must be uint8 with values 0..255, not {image.dtype}")
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise OvsegError(f"an image array must be (height, width, 3) RGB or (height, width) grey, not {image.shape}")
    return np.ascontiguousarray(image), None


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
