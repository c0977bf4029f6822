"""The Python API: ``Segmenter.from_pretrained(name)("photo.jpg", ["cat", "sofa"]) -> Segmentation``."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import nn

from ovseg.checkpoint import load_model
from ovseg.config import joined_options, load_cfg
from ovseg.config.limits import check_inference
from ovseg.errors import OvsegError, shown
from ovseg.evaluation.tta import augmented_model
from ovseg.hub.card import ModelCard
from ovseg.hub.fetch import offline
from ovseg.hub.opening import open_model
from ovseg.hub.saving import save
from ovseg.hub.table import is_model
from ovseg.io.devices import configured_device, find_device
from ovseg.io.images import ImageLike, as_rgb, resize_transform
from ovseg.meta_arch.embeddings import embeddings_of, text_space_of
from ovseg.meta_arch.mask_sums import resize
from ovseg.meta_arch.word_encoding import UnfamiliarWarnings, encode_words, unfamiliar_words
from ovseg.proposals.views import PROPOSERS
from ovseg.result.explanation import MaskScores
from ovseg.result.features import ImageFeatures
from ovseg.result.kept_masks import KeptMasks, keep_masks
from ovseg.result.of_model import explained_memory, map_size, segmentation_of
from ovseg.result.segmentation import Segmentation
from ovseg.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

# Sliding windows and test-time augmentation average the scores of all classes: their sum, the scores of a view, and a
# temporary copy are in memory. Sliding windows also sum at the size of the model's input.
COPIES_OF_VIEWS = 3
LARGEST_SUM = 2**28  # numbers (1 GiB)
UNTRAINED_PROPOSERS = ("BoundaryTree", "SAM")  # without weights in MODEL.WEIGHTS


class Segmenter:
    """A loaded model that segments images into words, which may differ from call to call. Calls do not change it.

    Args:
        model: model with weights, in evaluation mode, that supports ``outputs=("label_map",)``.
        min_size: the shorter side of images is resized to this number of pixels; 0 for no resizing.
        max_size: limit of the longer side, pixels.
        antialias: see :func:`ovseg.io.images.resize_transform`.
        class_chunk_size: number of classes that the model renders at a time, which limits the size of maps.
        image_format: "RGB" or "BGR", the channels of the model's input.
        many_views: ``model`` with a sliding window or test-time augmentation
            (:func:`ovseg.evaluation.tta.augmented_model`); None for one view of each image.
        name, min_score: of the configuration; see :meth:`__call__`.
        config: the configuration, for :meth:`save_pretrained`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        min_size: int,
        max_size: int,
        antialias: bool = True,
        class_chunk_size: int = 64,
        image_format: str = "RGB",
        many_views: nn.Module | None = None,
        name: str = "",
        min_score: float | None = None,
        config: CfgNode | None = None,
    ):
        self.model: Any = model  # its kind decides what else it has
        self.config = config
        self.vocabulary: Vocabulary | None = None  # for calls without words
        self.card = ModelCard()  # what is known of the model
        self.many_views = many_views
        self.image_format = image_format
        self.name, self.min_score = name, min_score
        self.min_size, self.max_size = min_size, max_size
        self.antialias = antialias
        self.class_chunk_size = class_chunk_size
        self._last: tuple[tuple[str, ...] | None, Vocabulary | None] = None, None
        self._warnings = UnfamiliarWarnings()

    @classmethod
    def from_config(
        cls,
        config_file: str | Path,
        weights: str | Path | None = None,
        opts: Sequence[Any] | Mapping[str, Any] = (),
        device: str | None = None,
    ) -> Segmenter:
        """Build the model of a configuration file and load its weights.

        Args:
            config_file: YAML file, or the name of one in ``configs/``, such as ``"photo"``.
            weights: checkpoint; None for the configuration's ``MODEL.WEIGHTS``.
            opts: override the file: ``[KEY, VALUE, ...]``, ``["KEY=VALUE", ...]``, or a dict, nested or not.
            device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, ...; None for ``MODEL.DEVICE``, or for the CPU
                if that is CUDA and there is no GPU.

        Raises:
            OvsegError: the weights are not named, cannot be read or are of another model; the configuration is not
                valid; or the device is unknown or missing.
        """
        cfg = load_cfg(str(config_file), opts)
        configured = cfg.clone()
        cfg.MODEL.WEIGHTS = str(weights or cfg.MODEL.WEIGHTS)
        check_inference(cfg, str(config_file))
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
            antialias=cfg.INPUT.ANTIALIAS_TEST,
            class_chunk_size=cfg.MODEL.MASK_FORMER.TEST.CLASS_CHUNK_SIZE,
            image_format=cfg.INPUT.FORMAT,
            many_views=None if viewed is model else viewed,
            name=Path(config_file).stem,
            min_score=cfg.TEST.BACKGROUND_THRESHOLD,
            config=configured,
        )

    @classmethod
    def from_name(
        cls, model: str, opts: Sequence[Any] | Mapping[str, Any] = (), device: str | None = None
    ) -> Segmenter:
        """Return the model that a command names: of :meth:`from_pretrained`, or of a configuration file.

        Raises:
            OvsegError: see :meth:`from_pretrained` and :meth:`from_config`.
        """
        make = cls.from_pretrained if is_model(model) else cls.from_config
        return make(model, opts=opts, device=device)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        device: str | None = None,
        opts: Sequence[Any] | Mapping[str, Any] = (),
        revision: str = "",
        local_files_only: bool = False,
    ) -> Segmenter:
        """Return a model by its name, from a folder, or from the Hugging Face hub.

        Args:
            source: a name of the table of models (``ovseg models``); "auto" for the best of the compositions under
                permissive licences that the device can run; a folder of :meth:`save_pretrained`; or
                "hf-hub:ORGANISATION/NAME", with such a folder in it. Weights that are not on this machine are
                downloaded, resumed after an interruption, and verified by checksum.
            device, opts: see :meth:`from_config`. With keys below MODEL other than DEVICE and
                CLIP_ADAPTER.TEXT_CACHE_DIR, the card has no licence and no figures.
            revision: branch, tag or commit on the hub. The commit of a branch is recorded at the first download, and
                used until ``ovseg models download --update``.
            local_files_only: download nothing, as with ``HF_HUB_OFFLINE=1``.

        Raises:
            OvsegError: there is no such model; it cannot be downloaded, or is damaged; or see :meth:`from_config`.
        """
        network = not local_files_only
        found = open_model(source, revision=revision, network=network, device=device).with_options(opts, network)
        with offline(local_files_only):
            segmenter = cls.from_config(found.config, opts=found.opts, device=device)
        segmenter.name, segmenter.vocabulary, segmenter.card = found.name, found.vocabulary, found.card
        return segmenter

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        words: str | Sequence[str | Sequence[str]] | Vocabulary | None = None,
        card: ModelCard | Mapping[str, Any] | None = None,
    ) -> None:
        """Write the model to a folder that :meth:`from_pretrained` takes on any machine, without a network.

        The folder has ``config.yaml``, ``model.safetensors``, ``vocabulary.json``, and a model card, ``README.md``. Of
        the model ``photo``, the weights that Python packages ship must be installed where it is loaded.

        Args:
            folder: new, or one of an earlier call, which is replaced.
            words: of calls without words, in any form of a call; None for those of the folder it was loaded from.
            card: licence, data, protocol, figures: see :class:`ovseg.hub.card.ModelCard`; None for those of the table
                or folder it was loaded from.

        Raises:
            OvsegError: the model was not made by :meth:`from_config`, or has masks of particular images; or the folder
                cannot be written.
        """
        if self.config is None:
            raise OvsegError("this segmenter has no configuration: make it by Segmenter.from_config, then save it")
        vocabulary = self.vocabulary if words is None else Vocabulary.of(words)
        save(Path(folder), self.model, self.config, self.card if card is None else ModelCard.of(card), vocabulary)

    def with_proposer(self, name: str, opts: Sequence[Any] | Mapping[str, Any] = ()) -> Segmenter:
        """Return a segmenter with the masks of another proposer and the namers of this one, whose weights both share.

        Args:
            name: a proposer without weights of its training: "BoundaryTree" or "SAM".
            opts: its keys, such as ``{"MODEL.PROPOSER.SAM.MODEL": folder}``; see :meth:`from_config`.

        Raises:
            OvsegError: there is no such proposer, it needs weights of its training or files that are missing, or the
                model has no masks or no namer of them.
        """
        if self.config is None or not hasattr(self.model, "with_proposer"):
            raise OvsegError(f"{self.name or 'this model'} has no proposer that another one could replace")
        if name not in UNTRAINED_PROPOSERS:
            choice = " or ".join(UNTRAINED_PROPOSERS)
            raise OvsegError(f"{shown(name)} is not a proposer for the namers of any model: choose {choice}")
        cfg = self.config.clone()
        cfg.defrost()
        cfg.merge_from_list([str(value) for value in joined_options(["MODEL.PROPOSER.NAME", name], opts)])
        found = copy.copy(self)
        found.model = self.model.with_proposer(PROPOSERS.get(name)(cfg))
        found.many_views = found.config = None
        return found

    @torch.inference_mode()
    def prepare(self, words: str | Sequence[str | Sequence[str]] | Vocabulary) -> Vocabulary:
        """Check and encode words; later calls use the cached text embeddings.

        Args:
            words: as for a call.

        Returns:
            The vocabulary, for use in calls.

        Raises:
            OvsegError: words are not valid, or one is too long for CLIP.
        """
        vocabulary = Vocabulary.of(words)
        encode_words(self.model, vocabulary)
        self._warnings.warn(self.unfamiliar(vocabulary))
        return vocabulary

    def unfamiliar(self, words: str | Sequence[str | Sequence[str]] | Vocabulary) -> list[str]:
        """Return the words that are far from all names that the model was trained on, if it knows these names."""
        return unfamiliar_words(self.model, Vocabulary.of(words))

    @torch.inference_mode()
    def __call__(
        self,
        image: ImageLike,
        words: str | Sequence[str | Sequence[str]] | Vocabulary | None = None,
        *,
        explain: bool = False,
        granularity: float | None = None,
        min_score: float | None = None,
    ) -> Segmentation:
        """Segment one image.

        Pixels without a score and pixels of background words are unlabelled. If the model adds "others" to a single
        word, pixels of "others" are unlabelled; give ``[word, "others"]`` to label them.

        With ``TEST.SLIDING_WINDOW``, ``TEST.AUG`` or ``TEST.MULTI_SCALE`` of the configuration, label and score map are
        those of an evaluation with the same keys. The scores of all words are then in memory; for images for which they
        would need more than 3 GiB, the maps are computed at a smaller size and enlarged.

        Args:
            image: see :func:`ovseg.io.images.as_rgb`: file name, Pillow image, uint8 array (H, W, 3) RGB or
                (H, W) grey, uint8 tensor, or the content of a file as bytes or file object.
            words: K words, or sequences of synonyms, or a text like "person, child; dog", or a :class:`Vocabulary`;
                None for :attr:`vocabulary`, the words of the folder that the model was loaded from.
            explain: store the scores of all masks for :meth:`Segmentation.explain`; not with several views.
            granularity: number from 0 (coarse) to 1 (precise) in place of ``MODEL.RENDERING.GRANULARITY``: each word
                keeps the masks with a score above this share of its best one, or with 1 its best mask. To try several,
                see :meth:`adjustable`.
            min_score: in place of ``TEST.BACKGROUND_THRESHOLD``: pixels with a lower score are unlabelled.

        Returns:
            :class:`Segmentation` of the size of the image.

        Raises:
            OvsegError: the image cannot be read, words are not valid, there is not enough memory, several views are
                to be explained, or the granularity is not valid or the model has no masks.
        """
        return self.batch([image], words, explain=explain, granularity=granularity, min_score=min_score)[0]

    @torch.inference_mode()
    def batch(
        self,
        images: Sequence[ImageLike],
        words: str | Sequence[str | Sequence[str]] | Vocabulary | None = None,
        *,
        explain: bool = False,
        granularity: float | None = None,
        min_score: float | None = None,
    ) -> list[Segmentation]:
        """Segment several images at a time; arguments, result and errors are those of a call for each.

        Networks pad the images of a batch to one size, so that scores of images of different sizes differ slightly from
        those of single calls.
        """
        if explain:
            self.require_one_view()
        vocabulary = self._vocabulary(words)
        inputs = [as_rgb(image) for image in images]
        asked: dict[str, Any] = {"outputs": ("label_map", "explanations") if explain else ("label_map",)}
        asked |= {} if granularity is None else {"granularity": granularity}
        requests = [self._request(pixels, source, vocabulary) | asked for pixels, source in inputs]
        limit = self.min_score if min_score is None else min_score
        found = []
        with explained_memory(next((source for _, source in inputs if source), "the image")):
            results = (self.many_views or self.model)(requests)
            for (pixels, source), result in zip(inputs, results, strict=True):
                masks = MaskScores.from_model(result["explanations"], vocabulary.names) if explain else None
                found.append(segmentation_of(result, vocabulary, pixels, source, masks, limit))
        return found

    @torch.inference_mode()
    def adjustable(self, image: ImageLike, words: str | Sequence[str | Sequence[str]] | Vocabulary) -> KeptMasks:
        """Find and score the masks of one image, and return the function granularity -> :class:`Segmentation`.

        The function renders kept masks and scores, in a fraction of the time of a call; its results are equal to those
        of calls with ``granularity`` and ``explain``. With one word, the model may add "others" with a granularity
        only: its networks are then called twice, and explanations always have "others". The masks stay in memory as
        long as the function: 4 bytes x masks x pixels of the model's input, or less, see
        :meth:`ovseg.result.kept_masks.KeptMasks.compact`.

        Args:
            image, words: as for a call.

        Raises:
            OvsegError: as a call; or the results are averages over several views.
        """
        self.require_one_view()
        if not self.keeps_masks:
            raise OvsegError("granularity selects masks, and this model has none: use a system with a proposer")
        vocabulary = self._vocabulary(words)
        pixels, source = as_rgb(image)
        return keep_masks(self.model, self._request(pixels, source, vocabulary), pixels, self.min_score)

    @property
    def keeps_masks(self) -> bool:
        """Whether :meth:`adjustable` is possible: the model scores masks, and its results are of one view."""
        return self.many_views is None and hasattr(self.model, "render_scored")

    def _request(self, pixels: np.ndarray, source: str | None, vocabulary: Vocabulary) -> dict[str, Any]:
        """Return the model's input for an image, with the size at which its maps are computed."""
        classes = max(len(vocabulary), 2)  # 2: the model may add "others"
        maps = min(classes, self.class_chunk_size) if self.many_views is None else COPIES_OF_VIEWS * classes
        height, width = pixels.shape[:2]
        height, width = map_size(height, width, maps)
        return {
            "image": self._model_input(pixels),
            "height": height,
            "width": width,
            "class_names": vocabulary,
            "file_name": source,
        }

    def require_one_view(self) -> None:
        """Raise OvsegError if results are averages over views, whose masks can be neither explained nor kept."""
        if self.many_views is not None:
            raise OvsegError(
                "with TEST.SLIDING_WINDOW, TEST.AUG.ENABLED or TEST.MULTI_SCALE.ENABLED scores are averages over views "
                "with different masks, which can be neither explained nor kept: set them to False, or do not explain, "
                "and give granularity to each call"
            )

    @torch.inference_mode()
    def propose(self, image: ImageLike, largest: int | None = None) -> torch.Tensor:
        """Return the masks of one image without names, those of the whole image also with ``many_views``.

        Args:
            image: as for a call.
            largest: limit of the longer side of the masks, pixels; None for no limit. What the model sees of the image
                does not depend on it.

        Returns:
            float32 (Q, H, W) probabilities on the model's device, of the size of the image, or of ``largest``.

        Raises:
            OvsegError: the image cannot be read, or the memory is not sufficient.
        """
        pixels, source = as_rgb(image)
        scale = 1.0 if largest is None else min(1.0, largest / max(pixels.shape[:2]))
        request = {
            "image": self._model_input(pixels),
            "height": max(1, round(pixels.shape[0] * scale)),
            "width": max(1, round(pixels.shape[1] * scale)),
            "outputs": ("soft_proposals",),
        }
        with explained_memory(source or "the image"):
            return self.model([request])[0]["soft_proposals"]

    @torch.inference_mode()
    def groups(self, image: ImageLike) -> np.ndarray:
        """Return the group that each pixel of one image belongs to, of OVSegmentor: (H, W) int64, of the whole image.

        Raises:
            OvsegError: the model has no groups, the image cannot be read, or the memory is not sufficient.
        """
        proposer: Any = getattr(getattr(self.model, "scorer", None), "proposer", None)
        if not hasattr(proposer, "group_maps"):
            raise OvsegError(f"{type(self.model).__name__} has no groups of patches: only OVSegmentor has")
        pixels, source = as_rgb(image)
        with explained_memory(source or "the image"):
            maps = proposer.group_maps(self._model_input(pixels).to(self.model.device).float())  # (K, h, w)
            return resize(maps, pixels.shape[:2]).argmax(dim=0).cpu().numpy()

    @torch.inference_mode()
    def features(
        self,
        image: ImageLike,
        *,
        stride: float = 4,
        with_masks: bool = True,
        normalised: bool = True,
        dtype: str = "float32",
    ) -> ImageFeatures:
        """Return the embeddings of the pixels and masks of one image in the space of words, of one view.

        Their dot products with :meth:`embed_words` rank words as the model does for single pixels (OpenSeg's without
        its masks), and for masks.

        Args:
            image: as for a call.
            with_masks: return the masks and their embeddings, too, of systems that have masks.
            stride, normalised, dtype: see :class:`ovseg.result.features.ImageFeatures`.

        Raises:
            OvsegError: the model has no such embeddings, the image cannot be read, or an argument is not valid.
        """
        text_space_of(self.model)
        pixels, source = as_rgb(image)
        with explained_memory(source or "the image"):
            found = embeddings_of(self.model, {"image": self._model_input(pixels)}, with_masks)
        arrays = found.pixels.places, normalised and found.pixels.unit, found.regions, found.masks
        axes = found.pixels.axes(found.image, size := pixels.shape[:2])
        of_image = {"axes": axes, "size": size, "source": source, "model": self.name}
        return ImageFeatures.of(*arrays, **of_image, stride=stride, normalised=normalised, dtype=dtype)

    @torch.inference_mode()
    def embed_words(self, words: str | Sequence[str | Sequence[str]] | Vocabulary) -> np.ndarray:
        """Return the embeddings of words that :meth:`features` are compared with, float32 (S, D), unit vectors.

        There is a row for each of the S texts of the words, ``Vocabulary.of(words).texts``; errors as :meth:`features`.
        """
        return text_space_of(self.model).word_embeddings(Vocabulary.of(words)).cpu().numpy()

    def _vocabulary(self, words: str | Sequence[str | Sequence[str]] | Vocabulary | None) -> Vocabulary:
        """Return the words as a vocabulary; a list of texts that equals that of the last call is not checked again."""
        if words is None:
            if self.vocabulary is None:
                raise OvsegError('this model has no words of its own: give some, such as ["cat", "sofa"]')
            return self.vocabulary
        if isinstance(words, Vocabulary):
            return words
        plain = type(words) in (list, tuple) and all(isinstance(word, str) for word in words)
        key = tuple(map(str, words)) if plain else None
        last, vocabulary = self._last  # read once: another thread may replace it
        if vocabulary is None or key is None or key != last:
            vocabulary = self.prepare(words)
            self._last = key, vocabulary
        return vocabulary

    def _model_input(self, pixels: np.ndarray) -> torch.Tensor:
        """Return the model's input (3, h, w), resized, with the channels of ``image_format``."""
        height, width = pixels.shape[:2]
        resized: Any = resize_transform(height, width, self.min_size, self.max_size, self.antialias).apply_image(pixels)
        return torch.from_numpy(np.array(resized if self.image_format == "RGB" else resized[:, :, ::-1])).permute(
            2, 0, 1
        )
