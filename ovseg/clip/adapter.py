"""``ClipAdapter``: the frozen CLIP of all parts of a model (OVSeg, arXiv 2210.04150; specification, section 3)."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from ovseg.checkpoint import skip_initialisation
from ovseg.checkpoint.loading import CLIP_ADAPTER, clip_names_in
from ovseg.clip.low_precision import LowPrecisionCopy
from ovseg.clip.model import ClipSource, build_clip, find_clip, load_clip_weights
from ovseg.clip.preprocessing import Preprocessing
from ovseg.clip.prompts import PromptLearner
from ovseg.clip.table import TableText
from ovseg.clip.text import TextEmbedder, embed_dim
from ovseg.clip.vit import WholeImages, add_mask_prompts, is_plain_vit, look_at_whole, squash
from ovseg.errors import OvsegError, argument, argument_names
from ovseg.io.devices import DTYPES
from ovseg.io.files import cache_dir, expand_user
from ovseg.vocabulary.templates import get_templates

logger = logging.getLogger(__name__)

# CLIP's own logit_scale is not used: every system of the family multiplies cosines by this (specification 2.2).
LOGIT_SCALE = 100.0
PROMPTS = "visual.mask_embedding"  # in the names of the CLIP model's state
KEYS = {
    "name": "MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME",
    "weights": "MODEL.CLIP_ADAPTER.CLIP_WEIGHTS",
    "depth": "MODEL.CLIP_ADAPTER.MASK_PROMPT_DEPTH",
    "original_depths": "MODEL.SELECT_ORI_CLIP_ID",
    "replace_layers": "MODEL.CLIP_ADAPTER.REPLACE_LAYER",
    "truncate": "MODEL.CLIP_ADAPTER.TRUNCATE_PROMPTS",
    "text": "MODEL.CLIP_ADAPTER.PROMPT_LEARNER",
    "prompt_dim": "MODEL.CLIP_ADAPTER.PROMPT_DIM",
    "prompt_shape": "MODEL.CLIP_ADAPTER.PROMPT_SHAPE",
    "prompt_checkpoint": "MODEL.CLIP_ADAPTER.PROMPT_CHECKPOINT",
    "table": "MODEL.CLIP_ADAPTER.TEXT_TABLE",
}


class ClipAdapter(nn.Module):
    """CLIP without its classifier: text embeddings of words, image features of crops, tokens of whole images.

    Its state has the learnt embedding of "no object", the mean and standard deviation of CLIP's input, CLIP
    (``clip_model``), and optionally a second image tower (``original_clip``): SCAN uses the original CLIP next to a
    fine-tuned one. Both are frozen. Tensors that are equal in both towers are in memory once. With learned prompts
    (``prompt_learner``) these are in the state, too.

    Args:
        clip_model, tokenizer: from :func:`ovseg.clip.model.build_clip`, with their weights.
        source: origin of the model.
        templates: prompt templates, each with one ``{}``.
        mask_prompt_depth: number of levels of mask prompts; None gives CLIP no parameter for them.
        original_depths: blocks of the original tower whose patch tokens are returned; None for no original tower.
        precision: "fp32", "bf16" or "fp16" (autocast).
        text_cache_dir: folder for text embeddings; None for memory only.
        truncate_prompts: cut prompts that are too long instead of refusing them.
        learner: learned prompts in place of the templates; None for none.
        separator: of the parts of a word whose prompts are averaged, see :class:`ovseg.clip.text.TextEmbedder`.
        table: vectors of words in place of CLIP's text tower; None for the tower.
        cosine: compare by 100 x cosine; False for plain dot products with the vectors of a table.

    Raises:
        OvsegError: mask prompts or an original tower for a CLIP without a plain vision transformer; or blocks that the
            tower lacks.
    """

    @configurable
    def __init__(
        self,
        clip_model: nn.Module,
        tokenizer: Any,
        source: ClipSource,
        *,
        templates: Sequence[str],
        mask_prompt_depth: int | None = 3,
        original_depths: Sequence[int] | None = None,
        precision: str = "fp32",
        text_cache_dir: Path | None = None,
        truncate_prompts: bool = False,
        learner: PromptLearner | None = None,
        separator: str = "",
        table: TableText | None = None,
        cosine: bool = True,
    ):
        super().__init__()
        if mask_prompt_depth is not None and not hasattr(clip_model.visual, "mask_embedding"):
            add_mask_prompts(clip_model.visual, mask_prompt_depth)
        width = clip_model.ln_final.weight.shape[0] if hasattr(clip_model, "ln_final") else embed_dim(clip_model)
        dim = embed_dim(clip_model) if table is None else table.dim
        self.non_object_embedding = nn.Parameter(torch.randn(1, dim) * width**-0.5)
        self.register_buffer("pixel_mean", 255 * torch.tensor(source.preprocessing.mean).view(1, 3, 1, 1))
        self.register_buffer("pixel_std", 255 * torch.tensor(source.preprocessing.std).view(1, 3, 1, 1))
        self.clip_model = clip_model.requires_grad_(False)
        self.source = source
        self.precision = precision
        self._low_precision = LowPrecisionCopy()
        self.cosine = cosine
        self.text = table or TextEmbedder(
            clip_model,
            tokenizer,
            templates,
            autocast=self.autocast,
            precision=precision,
            truncate=truncate_prompts,
            cache_dir=text_cache_dir,
            learner=learner,
            separator=separator,
        )
        if learner is not None:
            self.prompt_learner = learner
        self.original_depths = tuple(original_depths or ())
        if original_depths is not None:
            _check_original(clip_model.visual, source.name, self.original_depths)
            # the same parameters, until a checkpoint has others
            same = {id(parameter): parameter for parameter in clip_model.visual.parameters()}
            self.original_clip = copy.deepcopy(clip_model.visual, same)

    @classmethod
    def from_config(cls, cfg: CfgNode, **options: Any) -> dict[str, Any]:
        """Build CLIP, and load the weights of it that the checkpoint ``MODEL.WEIGHTS`` lacks.

        Args:
            default_weights: open_clip's tag that is used if ``CLIP_WEIGHTS`` is empty.
            image_tower: False for CLIP's text tower alone.
            text: the kind of prompts; default ``TEXT_TEMPLATES``. "learnable" for those of ``PROMPT_SHAPE``.
            name: of CLIP, for systems whose original has another key; default ``CLIP_MODEL_NAME``.
            prefix: of the adapter's names in the checkpoint.
            keys: configuration keys by argument, for messages.
            mask_prompt_depth, original_depths and others: see the class.
        """
        adapter = cfg.MODEL.CLIP_ADAPTER
        text = options.pop("text", adapter.TEXT_TEMPLATES)
        cache = adapter.TEXT_CACHE_DIR
        depth = options.pop("mask_prompt_depth", adapter.MASK_PROMPT_DEPTH)
        name = options.pop("name", adapter.CLIP_MODEL_NAME)
        with argument_names(options.pop("keys", KEYS)):
            default, image_tower = options.pop("default_weights", "openai"), options.pop("image_tower", True)
            source = find_clip(name, adapter.CLIP_WEIGHTS, default=default)
            held = clip_names_in(cfg.MODEL.WEIGHTS, options.pop("prefix", CLIP_ADAPTER))
            with_original = options.get("original_depths") is not None
            clip_model, tokenizer = load_clip(source, depth, held, with_original, cfg.MODEL.DEVICE, image_tower)
            if with_original:
                _check_original(clip_model.visual, source.name, options["original_depths"])
            if text == "learnable":
                options["learner"] = _learner(cfg, clip_model, tokenizer)
            table = None
            if adapter.TEXT_ENCODER == "table":
                table = TableText(expand_user(adapter.TEXT_TABLE), adapter.TABLE_COSINE)
        return {
            "clip_model": clip_model,
            "tokenizer": tokenizer,
            "source": source,
            "templates": () if "learner" in options else get_templates(text, adapter.PREDEFINED_PROMPT_TEMPLATES),
            "mask_prompt_depth": depth,
            "precision": adapter.PRECISION,
            "text_cache_dir": None if cache == "none" else expand_user(cache) if cache else cache_dir() / "text",
            "truncate_prompts": adapter.TRUNCATE_PROMPTS,
            "table": table,
            "cosine": adapter.TEXT_ENCODER == "clip" or adapter.TABLE_COSINE,
            **options,
        }

    @property
    def embed_dim(self) -> int:
        """Dimension D of CLIP's joint space, or of the vectors of a table."""
        return self.non_object_embedding.shape[1]

    @property
    def image_size(self) -> int:
        """Side S of CLIP's square input, pixels."""
        return image_size(self.clip_model)

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of the images of CLIP's training."""
        return self.source.preprocessing

    @property
    def image_tower(self) -> nn.Module:
        """CLIP's image tower, or a copy of it in :attr:`precision` where no gradients are computed.

        It must run within :meth:`autocast`.
        """
        visual = self.clip_model.visual
        if torch.is_grad_enabled():
            self._low_precision.drop()  # the weights may be about to change
            return visual
        if self.precision == "fp32":
            return visual
        return self._low_precision.of(visual, DTYPES[self.precision])

    def train(self, mode: bool = True) -> ClipAdapter:
        """Set the mode; the frozen towers stay in evaluation mode."""
        super().train(mode)
        self._low_precision.drop()
        for tower in (self.clip_model, getattr(self, "original_clip", None)):
            if tower is not None:
                tower.eval()
        return self

    def text_matrix(self, texts: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Return unit text features and, as last row, the normalised embedding of "no object"; float32 (S + 1, D).

        The rows of a table without ``cosine`` are as in the file, and the last one is not normalised.

        Args:
            texts: S texts.
            templates: prompt templates; None for those of the adapter.
        """
        no_object = unit(self.non_object_embedding) if self.cosine else self.non_object_embedding
        return torch.cat((self.text_rows(texts, templates).to(no_object.device), no_object))

    def text_rows(self, texts: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Return the rows of :meth:`text_matrix` without "no object", float32 (S, D)."""
        with argument_names(KEYS):
            return self.text(texts, templates)

    def similarity(self, features: Tensor, text: Tensor) -> Tensor:
        """Return logits, 100 x cosine, or dot products; (..., D), (S + 1, D) -> (..., S + 1).

        Raises:
            OvsegError: see :meth:`check_table`.
        """
        self.check_table(features, text)
        return LOGIT_SCALE * unit(features) @ text.T if self.cosine else features @ text.T

    @staticmethod
    def check_table(features: Tensor, text: Tensor) -> None:
        """Raise OvsegError if vectors of words, from a table, have another dimension than image features."""
        if features.shape[-1] != text.shape[-1]:
            raise OvsegError(
                f"the vectors of MODEL.CLIP_ADAPTER.TEXT_TABLE have {text.shape[-1]} numbers, but features of the "
                f"image {features.shape[-1]}: set MODEL.CLIP_ADAPTER.TEXT_ENCODER to clip, or use a namer that is "
                "trained with the table (QueryEmbedding)"
            )

    def encode_whole(self, images: Sequence[Tensor], divisibility: int) -> WholeImages:
        """Return the original tower's tokens of whole images.

        Args:
            images: (3, H, W) each, 0 .. 255.
            divisibility: the images are padded to a common size whose sides are multiples of this.
        """
        squashed = squash(
            images,
            divisibility,
            self.image_size,
            self.pixel_mean[0],
            self.pixel_std[0],
            self.preprocessing.whole_interpolation,
        )
        with self.autocast(squashed.device.type):
            return look_at_whole(self.original_clip, squashed, self.original_depths)

    def autocast(self, device_type: str) -> contextlib.AbstractContextManager:
        """Return the autocast context of CLIP's precision, which overrides that of the caller."""
        return torch.autocast(device_type, dtype=DTYPES[self.precision], enabled=self.precision != "fp32")

    def require_weights(self) -> None:
        """Raise OvsegError if the weights that the configuration names cannot be read or downloaded."""
        _fetch(self.source, "", strict=True)

    def separate_towers(self) -> None:
        """Copy the parameters that the towers share, so that those of the original tower can be overwritten."""
        self._replace_original(lambda ours, theirs: nn.Parameter(theirs.clone(), False) if ours is theirs else ours)

    def share_equal_tensors(self) -> None:
        """Share the parameters that are equal in both towers, so that they are in memory once."""
        self._replace_original(lambda ours, theirs: theirs if torch.equal(ours, theirs) else ours)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        """Load a state, of this module or of one that contains it, which may have different values for both towers."""
        self.separate_towers()
        super()._load_from_state_dict(*arguments)

    def _replace_original(self, choose: Any) -> None:
        if not hasattr(self, "original_clip") or self.pixel_mean.is_meta:
            return
        for name, theirs in self.clip_model.visual.named_parameters():
            path, _, leaf = name.rpartition(".")
            owner = self.original_clip.get_submodule(path)
            setattr(owner, leaf, choose(getattr(owner, leaf), theirs))


def unit(x: Tensor) -> Tensor:
    """Return x / ||x|| over the last dimension, without an epsilon, as in the published systems."""
    return x / x.norm(dim=-1, keepdim=True)


def image_size(clip_model: nn.Module) -> int:
    """Return the side of CLIP's square input, pixels."""
    size = clip_model.visual.image_size
    return size if isinstance(size, int) else size[0]


def load_clip(
    source: ClipSource,
    depth: int | None = None,
    held: Collection[str] | None = (),
    with_original: bool = False,
    device: str = "cpu",
    image_tower: bool = True,
) -> tuple[nn.Module, Any]:
    """Return CLIP with mask prompts and the weights that no checkpoint holds, and its tokenizer.

    Mask prompts belong to the image tower that they were tuned with: they are loaded only together with all of the
    tower, and are zero otherwise.

    Args:
        source: origin of the model.
        depth: of the prompts; None for no prompts.
        held: names, below that of the adapter, of the tensors in the checkpoint that is loaded later; None if there is
            no checkpoint yet. In that case, weights that cannot be read give a warning, not an error.
        with_original: also load what an original image tower needs, which is a copy of this CLIP's.
        device: of the model; on "meta" nothing is loaded.
        image_tower: False to remove it: neither a checkpoint nor the weights of CLIP must have it.
    """
    path, reason = None, "MODEL.CLIP_ADAPTER.CLIP_WEIGHTS is none"
    wanted = device != "meta" and not torch.empty(0).is_meta
    if wanted and not held:
        path, reason = _fetch(source, reason, strict=held is not None)
    with skip_initialisation() if path else contextlib.nullcontext():
        clip_model, tokenizer = build_clip(source)
    if not image_tower:
        del clip_model.visual
    if depth is not None:
        add_mask_prompts(clip_model.visual, depth)
    names = clip_model.state_dict().keys() - {PROMPTS}
    visual = {name for name in names if name.startswith("visual.")}
    lacking = {name for name in names if f"clip_model.{name}" not in (held or ())}
    if with_original:
        lacking |= {name for name in visual if name.replace("visual", "original_clip", 1) not in (held or ())}
    if not wanted or not lacking:
        return clip_model, tokenizer
    if held:
        path, reason = _fetch(source, reason, strict=True)
    if path is None:
        logger.warning(
            "CLIP %s HAS RANDOM WEIGHTS (%d of its tensors) unless a checkpoint gives them (%s): its scores mean "
            "nothing. Set MODEL.WEIGHTS to a checkpoint or MODEL.CLIP_ADAPTER.CLIP_WEIGHTS to CLIP's weights.",
            source.name,
            len(lacking),
            reason,
        )
        return clip_model, tokenizer
    with_prompts = f"clip_model.{PROMPTS}" not in (held or ()) and visual <= lacking
    load_clip_weights(clip_model, source, lacking | {PROMPTS} if with_prompts else lacking)
    return clip_model, tokenizer


def _learner(cfg: CfgNode, clip_model: nn.Module, tokenizer: Any) -> PromptLearner:
    """Return the learned prompts of a configuration, frozen if they are those of ``PROMPT_CHECKPOINT``."""
    adapter = cfg.MODEL.CLIP_ADAPTER
    learner = PromptLearner(clip_model, tokenizer, adapter.PROMPT_SHAPE)
    if (width := learner.start_signal.shape[1]) != adapter.PROMPT_DIM:
        raise OvsegError(
            f"{argument('prompt_dim')} is {adapter.PROMPT_DIM}, but the text tower of CLIP {adapter.CLIP_MODEL_NAME} "
            f"has the width {width}: set the key to {width}"
        )
    if adapter.PROMPT_CHECKPOINT and not learner.start_signal.is_meta:
        with argument_names({"weights": KEYS["prompt_checkpoint"]}):
            learner.load(expand_user(adapter.PROMPT_CHECKPOINT))
    return learner.requires_grad_(not adapter.PROMPT_CHECKPOINT)


def _fetch(source: ClipSource, reason: str, strict: bool) -> tuple[str | None, str]:
    """Return the path of the weights; or None and the reason; OvsegError instead if ``strict``."""
    if source.fetch_weights is None:
        return None, reason
    try:
        with argument_names(KEYS):
            return source.fetch_weights(), ""
    except OvsegError as error:
        if strict:
            raise
        return None, str(error)


def _check_original(visual: nn.Module, name: str, depths: Sequence[int]) -> None:
    if not is_plain_vit(visual):
        raise OvsegError(
            f"{argument('name')} {name}: the contextual shift needs a plain CLIP vision transformer, not a "
            f"{type(visual).__name__}; choose ViT-L-14 or ViT-B-16"
        )
    blocks = len(visual.transformer.resblocks)
    if not all(0 <= depth <= blocks for depth in depths):
        raise OvsegError(
            f"{argument('original_depths')} is {list(depths)}: give numbers of the {blocks} blocks of CLIP's image "
            f"tower, 1 to {blocks}"
        )
