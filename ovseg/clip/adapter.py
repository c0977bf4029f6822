"""``ClipAdapter``: names masks by showing their crops to CLIP (OVSeg, arXiv 2210.04150; specification, section 3)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from detectron2.config import configurable
from torch import Tensor, nn

from ovseg.clip.contextual_shift import Context
from ovseg.clip.lock import Lock
from ovseg.clip.mask_prompt import add_mask_prompts, encode_masked_image
from ovseg.clip.model import ClipSource, build_clip, find_clip, load_clip_weights
from ovseg.clip.regions import crop_regions, expand_boxes, mask_boxes, regroup
from ovseg.clip.text import TextEmbedder, embed_dim
from ovseg.clip.vit import embed_patches, encode_patches, is_plain_vit
from ovseg.errors import OvsegError
from ovseg.io.files import cache_dir, expand_user
from ovseg.vocabulary.templates import get_templates

logger = logging.getLogger(__name__)

# CLIP's own logit_scale is not used: every system of the family multiplies cosines by this (specification 2.2).
LOGIT_SCALE = 100.0
PROMPTS = "visual.mask_embedding"  # in the names of the CLIP model's state
CROPS_AT_A_TIME = {"cpu": 8, "cuda": 32}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class MaskedImage:
    """An image and masks of it that CLIP shall see.

    Attributes:
        image: (3, H, W) RGB, 0 .. 255.
        probabilities: (Q, H, W) mask probabilities.
        context: of the image, for an adapter that looks beyond the crops.
    """

    image: Tensor
    probabilities: Tensor
    context: Context | None = None

    def only(self, kept: Tensor) -> MaskedImage:
        """The same with the masks of ``kept``, bool (Q,)."""
        return replace(self, probabilities=self.probabilities[kept])


class ClipAdapter(nn.Module):
    """Frozen CLIP with optional mask prompts, and a learnt embedding for "no object".

    Args:
        source: which CLIP, and where its weights are; they are read when first needed, for what no checkpoint has
            given by then.
        templates: prompt templates, each with one ``{}``.
        mask_fill: "mean" or "zero", the colour behind the masks.
        mask_expand_ratio: factor on the sides of the masks' boxes.
        mask_threshold: probability above which a pixel belongs to the mask.
        mask_matting: cut with the soft mask.
        mask_crops: False shows the mask's box to CLIP with its background, and nothing is left for prompts to replace.
        mask_prompt_depth: number of levels of mask prompts; None gives CLIP no parameter for them.
        mask_prompt_forward: use them.
        precision: "fp32", "bf16" or "fp16" (autocast).
        region_chunk_size: crops that CLIP sees at a time; 0 for :data:`CROPS_AT_A_TIME`.
        text_cache_dir: folder for text embeddings; None for memory only.
        truncate_prompts: cut prompts that are too long instead of refusing them.

    Raises:
        OvsegError: a value that cannot work, named by its configuration key.
    """

    default_weights = "openai"  # where MODEL.CLIP_ADAPTER.CLIP_WEIGHTS is empty

    @configurable
    def __init__(
        self,
        source: ClipSource,
        *,
        templates: Sequence[str],
        mask_fill: str = "mean",
        mask_expand_ratio: float = 1.0,
        mask_threshold: float = 0.4,
        mask_matting: bool = False,
        mask_crops: bool = True,
        mask_prompt_depth: int | None = 3,
        mask_prompt_forward: bool = False,
        precision: str = "fp32",
        region_chunk_size: int = 0,
        text_cache_dir: Path | None = None,
        truncate_prompts: bool = False,
    ):
        super().__init__()
        _check_choice("MASK_FILL", mask_fill, ("mean", "zero"))
        _check_choice("PRECISION", precision, tuple(DTYPES))
        if mask_prompt_forward and (mask_prompt_depth or 0) <= 0:
            raise OvsegError(
                "MODEL.CLIP_ADAPTER.MASK_PROMPT_FWD is True but MASK_PROMPT_DEPTH is 0: there are no prompts to use; "
                "set the depth of the checkpoint (3 in the published ones) or MASK_PROMPT_FWD to False"
            )
        if region_chunk_size < 0:
            raise OvsegError("MODEL.CLIP_ADAPTER.REGION_CHUNK_SIZE must be at least 1, or 0 for what suits the device")
        clip_model, tokenizer = build_clip(source)
        if mask_prompt_depth is not None:
            add_mask_prompts(clip_model.visual, mask_prompt_depth)
        text_width = clip_model.ln_final.weight.shape[0] if hasattr(clip_model, "ln_final") else embed_dim(clip_model)

        self.non_object_embedding = nn.Parameter(torch.randn(1, embed_dim(clip_model)) * text_width**-0.5)
        self.register_buffer("pixel_mean", 255 * torch.tensor(source.preprocessing.mean).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", 255 * torch.tensor(source.preprocessing.std).view(1, 3, 1, 1))
        self.clip_model = clip_model.requires_grad_(False)

        self.source = source
        self.weights_lock = Lock()
        self.mask_fill = mask_fill
        self.mask_expand_ratio = mask_expand_ratio
        self.mask_threshold = mask_threshold
        self.mask_matting = mask_matting
        self.mask_crops = mask_crops
        self.mask_prompt_forward = mask_prompt_forward
        self.precision = precision
        self.region_chunk_size = region_chunk_size
        self.lacking_weights = frozenset(name for name in clip_model.state_dict() if name != PROMPTS)
        self.lacking_prompts = True
        self.prompts_checked = not mask_prompt_forward
        self.register_load_state_dict_post_hook(_note_loaded_weights)
        self.text = TextEmbedder(
            clip_model,
            tokenizer,
            templates,
            autocast=self.autocast,
            precision=precision,
            truncate=truncate_prompts,
            cache_dir=text_cache_dir,
        )

    @classmethod
    def from_config(cls, cfg) -> dict:
        adapter = cfg.MODEL.CLIP_ADAPTER
        cache = adapter.TEXT_CACHE_DIR
        return {
            "source": find_clip(
                adapter.CLIP_MODEL_NAME,
                adapter.CLIP_WEIGHTS,
                default=cls.default_weights,
            ),
            "templates": get_templates(adapter.TEXT_TEMPLATES, adapter.PREDEFINED_PROMPT_TEMPLATES),
            "mask_fill": adapter.MASK_FILL,
            "mask_expand_ratio": adapter.MASK_EXPAND_RATIO,
            "mask_threshold": adapter.MASK_THR,
            "mask_matting": adapter.MASK_MATTING,
            "mask_crops": adapter.MASK_CROPS,
            "mask_prompt_depth": adapter.MASK_PROMPT_DEPTH,
            "mask_prompt_forward": adapter.MASK_PROMPT_FWD,
            "precision": adapter.PRECISION,
            "region_chunk_size": adapter.REGION_CHUNK_SIZE,
            "text_cache_dir": None if cache == "none" else expand_user(cache) if cache else cache_dir() / "text",
            "truncate_prompts": adapter.TRUNCATE_PROMPTS,
        }

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Load, but for another preprocessing than that of the CLIP which the configuration names."""
        for name in ("pixel_mean", "pixel_std"):
            own, theirs = getattr(self, name), state_dict.get(prefix + name)
            # a copy in half precision is kept: the model's figures were measured with it
            if theirs is None or (theirs.shape == own.shape and torch.allclose(theirs.to(own), own, rtol=0, atol=0.5)):
                continue
            logger.warning(
                "the checkpoint has %s %s of CLIP's input, but %s has %s, which holds: if the checkpoint's CLIP is "
                "another one, name it as MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME (ViT-L-14:TAG, say).",
                name,
                [round(value, 1) for value in theirs.flatten().tolist()[:3]],
                self.source.name,
                [round(value, 1) for value in own.flatten().tolist()],
            )
            state_dict[prefix + name] = own.detach().clone()
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def embed_dim(self) -> int:
        """Dimension D of CLIP's joint space."""
        return self.non_object_embedding.shape[1]

    @property
    def crops_at_a_time(self) -> int:
        """Crops that CLIP sees at a time."""
        return self.region_chunk_size or CROPS_AT_A_TIME.get(self.pixel_mean.device.type, CROPS_AT_A_TIME["cuda"])

    def train(self, mode: bool = True) -> ClipAdapter:
        """Set the mode; CLIP is frozen and stays in evaluation mode."""
        super().train(mode)
        self.clip_model.eval()
        return self

    def ensure_weights(self) -> None:
        """Read those of CLIP's weights now that no checkpoint has given.

        Mask prompts belong to the image tower that they were tuned with: they are read when all of it is. Prompts that
        are to be used and are nowhere stay zero, which is told, not refused: the published training configurations ask
        for them, and training, where CLIP sees no image, starts from a plain CLIP (specification 8 and 9.2).

        Raises:
            OvsegError: they cannot be had; says which file to put where.
        """
        with self.weights_lock:  # several threads may be the first to need them
            if self.lacking_weights:
                self._complete_weights()
            if not self.prompts_checked:
                self._warn_of_zero_prompts()

    def _complete_weights(self) -> None:
        if self.source.fetch_weights is None:
            logger.warning(
                "CLIP %s HAS RANDOM WEIGHTS (%d of its tensors): its scores mean nothing. Set MODEL.WEIGHTS to a "
                "checkpoint or MODEL.CLIP_ADAPTER.CLIP_WEIGHTS to CLIP's weights.",
                self.source.name,
                len(self.lacking_weights),
            )
        else:
            visual = {name for name in self.clip_model.state_dict() if name.startswith("visual.")} - {PROMPTS}
            prompts = {PROMPTS} if self.lacking_prompts and visual <= self.lacking_weights else set()
            load_clip_weights(self.clip_model, self.source, self.lacking_weights | prompts)
        self.lacking_weights = frozenset()

    def _warn_of_zero_prompts(self) -> None:
        self.prompts_checked = True
        if not self.clip_model.visual.mask_embedding.any():
            logger.warning(
                "CLIP %s HAS NO MASK PROMPTS (%s is all zeros), but MODEL.CLIP_ADAPTER.MASK_PROMPT_FWD is True: masked "
                "patches become zeros, and its names of masks are worse for it (training does not use them). Set the "
                "key to False, or give a CLIP with tuned prompts (tools/finetune_clip.py, tools/replace_clip.py).",
                self.source.name,
                PROMPTS,
            )

    def text_matrix(self, words: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Unit text features and, as last row, the normalised no-object embedding; float32 (K + 1, D).

        Args:
            words: K texts.
            templates: prompts that they are put into; None for the adapter's own.
        """
        self.ensure_weights()
        return torch.cat((self.text(words, templates), unit(self.non_object_embedding)))

    def similarity(self, features: Tensor, text: Tensor) -> Tensor:
        """Logits 100 x cosine; (..., D), (K + 1, D) -> (..., K + 1)."""
        return LOGIT_SCALE * unit(features) @ text.T

    def valid_masks(self, probabilities: Tensor) -> Tensor:
        """Which masks have a pixel above the threshold; (Q, H, W) -> bool (Q,)."""
        return probabilities.flatten(1).amax(1) > self.mask_threshold

    def classify_masks(
        self, image: Tensor, probabilities: Tensor, text: Tensor, context: Context | None = None
    ) -> tuple[Tensor, Tensor]:
        """Name every mask of an image that has a pixel above the threshold: :meth:`classify` of one image."""
        return self.classify([MaskedImage(image, probabilities, context)], [text])[0]

    def classify(self, images: Sequence[MaskedImage], texts: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Name every mask that has a pixel above the threshold; the crops of all images go through CLIP as one stream.

        Args:
            images: with all their masks.
            texts: for each image (K + 1, D) from :meth:`text_matrix`.

        Returns:
            for each image logits (V, K + 1) of its V valid masks in order, and ``valid``, bool (Q,).
        """
        self.ensure_weights()
        valid = [self.valid_masks(image.probabilities) for image in images]
        features = self.encode_masks(image.only(kept) for image, kept in zip(images, valid, strict=True))
        return [(self.similarity(*pair), kept) for *pair, kept in zip(features, texts, valid, strict=True)]

    def encode_masks(self, images: Iterable[MaskedImage]) -> list[Tensor]:
        """CLIP's image features of valid masks, for each image float32 (V, D), not normalised; see :meth:`classify`."""
        counts: list[int] = []

        def pieces() -> Iterator[tuple[Tensor, ...]]:
            for image in images:
                counts.append(len(image.probabilities))
                if counts[-1]:
                    yield from self.pieces(image)

        features = [self.encode(*rows) for rows in regroup(pieces(), self.crops_at_a_time)]
        together = torch.cat(features) if features else self.non_object_embedding.new_zeros(0, self.embed_dim)
        return list(together.split(counts))

    def pieces(self, image: MaskedImage) -> Iterator[tuple[Tensor, ...]]:
        """Yield what :meth:`encode` wants to know of an image's valid masks, a few masks at a time."""
        return self.regions(image.image, image.probabilities)

    def encode(self, *rows: Tensor) -> Tensor:
        """CLIP's image features of masks, float32 (v, D), not normalised, from :meth:`pieces`."""
        return self.encode_regions(*rows)

    def regions(self, image: Tensor, probabilities: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield crops (v, 3, S, S), normalised, and their masks (v, 1, S, S) of valid masks, chunk by chunk.

        S is CLIP's input resolution (224 in the published models, the original's constant).
        """
        image = image.float()
        mean, std = self.pixel_mean[0], self.pixel_std[0]
        fill = mean if self.mask_fill == "mean" else torch.zeros_like(mean)
        interpolation = self.source.preprocessing.interpolation
        for masks, boxes in self.cuts(probabilities):
            yield crop_regions(image, masks, boxes, image_size(self.clip_model), mean, std, fill, interpolation)

    def cuts(self, probabilities: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what crops are cut with, float (v, H, W), and their boxes, int64 (v, 4), chunk by chunk."""
        for chunk in probabilities.split(self.crops_at_a_time) if len(probabilities) else ():
            binary = chunk > self.mask_threshold
            boxes = expand_boxes(mask_boxes(binary), self.mask_expand_ratio, *binary.shape[1:])
            masks = chunk if self.mask_matting else binary.float()
            yield masks if self.mask_crops else torch.ones_like(masks), boxes

    def encode_regions(self, crops: Tensor, masks: Tensor) -> Tensor:
        """CLIP's image features of crops, float32 (v, D), not normalised."""
        visual = self.clip_model.visual
        with self.autocast(crops.device.type):
            if self.mask_prompt_forward:
                features = encode_masked_image(visual, crops, masks)
            elif is_plain_vit(visual):
                features = encode_patches(visual, embed_patches(visual, crops))
            else:
                features = self.clip_model.encode_image(crops)
        return features.float()

    def autocast(self, device_type: str) -> contextlib.AbstractContextManager:
        """The context that CLIP runs in: its own precision, whatever the caller's is."""
        return torch.autocast(device_type, dtype=DTYPES[self.precision], enabled=self.precision != "fp32")


def unit(x: Tensor) -> Tensor:
    """x / ||x|| over the last dimension, without an epsilon, as in the published systems."""
    return x / x.norm(dim=-1, keepdim=True)


def image_size(clip_model: nn.Module) -> int:
    """Side of CLIP's square input, pixels."""
    size = clip_model.visual.image_size
    return size if isinstance(size, int) else size[0]


def _note_loaded_weights(adapter: ClipAdapter, incompatible_keys) -> None:
    """Remember what a checkpoint gave; its missing keys begin with wherever the adapter is in the whole model."""
    missing = {name.rpartition("clip_model.")[2] for name in incompatible_keys.missing_keys if "clip_model." in name}
    adapter.lacking_weights &= missing
    adapter.lacking_prompts &= PROMPTS in missing
    adapter.prompts_checked = not adapter.mask_prompt_forward


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OvsegError(f"MODEL.CLIP_ADAPTER.{key} is {value!r}; choose one of {', '.join(choices)}")
