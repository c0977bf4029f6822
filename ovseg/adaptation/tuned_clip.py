"""CLIP prepared for fine-tuning: which weights train, with masks or without, and how it is stored."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ovseg.adaptation.context import ContextualShift
from ovseg.adaptation.contrastive import bound_logit_scale
from ovseg.adaptation.recipe import SHIFT, Recipe
from ovseg.checkpoint.state_dicts import CLIP_MARK, bare_clip_names, read_state_dict
from ovseg.clip.adapter import PROMPTS
from ovseg.clip.model import ClipSource, build_clip, find_clip, load_clip_weights
from ovseg.clip.vit import add_mask_prompts, encode_masked_image, is_plain_vit
from ovseg.engine.solver import build_adamw
from ovseg.errors import OvsegError, argument_names

logger = logging.getLogger(__name__)

ORIGINAL = "original_clip_visual."  # the frozen tower in the state that SCAN's scripts save
_NO_DECAY = ("bn", "ln", "bias", "logit_scale")  # parts of names (specification 12.2)
_PROMPT_STD = 0.02


@dataclass
class TunedClip:
    """A CLIP and the way it is tuned.

    Attributes:
        model: open_clip's model, in evaluation mode (it has no dropout, and batch norms keep their statistics);
            what does not train is frozen.
        tokenizer: its tokenizer.
        use_masks: crops are encoded with mask prompts.
        shift: crops are encoded in the context of their whole images; None: by themselves.
        source: where it is from, and what it was trained on.
    """

    model: nn.Module
    tokenizer: Any
    use_masks: bool
    source: ClipSource
    shift: ContextualShift | None = None

    def encode(self, crops: Tensor, *around: Tensor) -> Tensor:
        """Return image features (b, D), not normalised, of normalised crops (b, 3, S, S).

        Args:
            around: masks (b, 1, S, S); or, with ``shift``, what :class:`ovseg.adaptation.context.CropsInContext` has in
                their place.
        """
        if self.shift is not None:
            return self.shift.encode(self.model.visual, crops, *around)
        (masks,) = around
        if self.use_masks:
            return encode_masked_image(self.model.visual, crops, masks.to(crops.dtype))
        return self.model.encode_image(crops)

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """Return what trains, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the model's state; with ``shift`` as SCAN's scripts save it, with the original tower."""
        if self.shift is None:
            return self.model.state_dict()
        towers = {f"module.{CLIP_MARK}": self.model, f"module.{ORIGINAL}": self.shift.original}
        return {
            prefix + name: tensor for prefix, tower in towers.items() for name, tensor in tower.state_dict().items()
        }


def clip_flags(weights: str = "--clip") -> AbstractContextManager[None]:
    """Name the options of a command line in errors of :mod:`ovseg.clip`.

    Args:
        weights: the option that gives CLIP's weights.
    """
    names = {"name": "--architecture", "weights": weights, "depth": "--depth", "replace_layers": "--replace-layers"}
    return argument_names(names)


def load_for_tuning(architecture: str, weights: str, mode: str, recipe: Recipe, *, depth_asked: bool) -> TunedClip:
    """Build a CLIP, load its weights, and choose what trains.

    ``full``: the image tower and the logit scale. Where the weights hold mask prompts, these are used in the forward
    but stay as they are, so that tower and prompts still fit each other (the paper's order MPT, FT).
    ``mask-prompt``: the prompts and the logit scale (specification 12.3); prompts are drawn from normal(0, 0.02)
    where the weights hold none. ``contextual-shift``: as ``full``, with a frozen copy of the tower (specification of
    SCAN, section 12), or with the original that the weights of an earlier run hold.

    Args:
        architecture, weights: as :func:`ovseg.clip.model.find_clip`.
        mode: one of :data:`ovseg.adaptation.recipe.MODES`.
        recipe: ``depth``, ``seed``, ``checkpoint_activations``, ``force_quick_gelu`` and ``replace_...`` are used.
        depth_asked: the user has given ``depth``, so weights with another one are refused.

    Raises:
        OvsegError: weights that cannot be loaded, are those of another CLIP, or have prompts of another depth; or, for
            the contextual shift, have prompts at all or no plain vision transformer.
    """
    with clip_flags():
        source = find_clip(architecture, weights)
        if source.fetch_weights is None:
            raise OvsegError(f"--clip {weights} gives no weights: random ones cannot be adapted; give a file or a tag")
        forced = {"quick_gelu": True} if recipe.force_quick_gelu else {}
        model, tokenizer = build_clip(replace(source, architecture=source.architecture | forced))
        if not hasattr(model, "logit_scale"):
            raise OvsegError(f"{architecture} has no logit_scale: it is no contrastive CLIP")
        load_clip_weights(model, source)
        state = read_state_dict(source.fetch_weights())
        depth = _load_prompts(model, weights, bare_clip_names(state).get(PROMPTS))
        shift = _beside_original(model, state, recipe) if mode == SHIFT else None
        if mode == "mask-prompt":
            if depth and depth_asked and depth != recipe.depth:
                raise OvsegError(
                    f"the mask prompts in {weights} have depth {depth}, not {recipe.depth}: leave --depth out, or give "
                    "a CLIP without prompts"
                )
            if not depth:
                depth = _draw_prompts(model, recipe)
            model.visual.mask_embedding.requires_grad_(True)
        else:
            for name, parameter in model.visual.named_parameters():
                parameter.requires_grad_(name != "mask_embedding")
    model.logit_scale.requires_grad_(True)
    if recipe.checkpoint_activations:
        model.visual.set_grad_checkpointing(True)
    tuned = TunedClip(model, tokenizer, depth > 0, source, shift)
    count = sum(p.numel() for p in tuned.trained.values())
    if shift is not None:
        use = f"give background patches to the whole image after blocks {', '.join(map(str, shift.blocks))}"
    else:
        use = f"go to the tower (prompts of depth {depth})" if depth else "only cut the crops out"
    total = sum(p.numel() for p in model.parameters())
    logger.info("%s: %d of %d parameters train; masks %s", mode, count, total, use)
    return tuned


def build_optimizer(tuned: TunedClip, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW with two groups: no decay for vectors, norms, biases and the logit scale (specification 12.2)."""

    def group_of(name: str, parameter: nn.Parameter) -> int:
        return int(parameter.ndim >= 2 and not any(part in name for part in _NO_DECAY))

    betas = (recipe.beta1, recipe.beta2)
    decays = (0.0, recipe.weight_decay)
    optimizer = build_adamw(tuned.trained, group_of, decays, lr=recipe.lr, betas=betas, eps=recipe.eps)
    bound_logit_scale(optimizer, tuned.model)
    return optimizer


def _load_prompts(model: nn.Module, weights: str, prompts: Tensor | None) -> int:
    """Load the mask prompts of the weights, if there are any; return their depth."""
    if prompts is None or not len(prompts):
        return 0
    add_mask_prompts(model.visual, len(prompts))
    own = model.visual.mask_embedding
    try:
        own.data.copy_(prompts)  # those stored once for all patches, (depth, 1, width), serve every patch
    except RuntimeError as error:
        raise OvsegError(
            f"the mask prompts in {weights} have shape {list(prompts.shape)}, but this CLIP needs {list(own.shape)}: "
            "give the --architecture that they were made with"
        ) from error
    return len(prompts)


def _beside_original(model: nn.Module, state: Mapping[str, Tensor], recipe: Recipe) -> ContextualShift:
    """Return the shift to the context that the tower sees before training, or the original in a wrapper's state."""
    visual = model.visual
    if not is_plain_vit(visual):
        raise OvsegError(
            f"--tune {SHIFT} needs a plain CLIP vision transformer, not a {type(visual).__name__}: choose ViT-L-14 or "
            "ViT-B-16"
        )
    if hasattr(visual, "mask_embedding"):
        raise OvsegError(f"--tune {SHIFT} has no use for mask prompts, but this CLIP has some: give one without")
    original = copy.deepcopy(visual)
    kept = {name.removeprefix(ORIGINAL): tensor for name, tensor in state.items() if name.startswith(ORIGINAL)}
    if kept:
        original.load_state_dict(kept)
    return ContextualShift(original, recipe.replace_ratio, recipe.replace_layers, recipe.seed)


def _draw_prompts(model: nn.Module, recipe: Recipe) -> int:
    if not recipe.depth:
        raise OvsegError("--depth is 0: mask prompts need at least one level")
    add_mask_prompts(model.visual, recipe.depth)
    generator = torch.Generator().manual_seed(recipe.seed)
    own = model.visual.mask_embedding
    own.data.copy_(_PROMPT_STD * torch.randn(own.shape, generator=generator))
    return recipe.depth
