"""Replacing the CLIP in a segmenter's checkpoint by an adapted one (specifications of OVSeg and SCAN, section 13)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ovseg.adaptation.tuned_clip import ORIGINAL
from ovseg.checkpoint.loading import CLIP_PREFIX, LEFTOVERS, ORIGINAL_PREFIX, key_groups
from ovseg.checkpoint.saving import save_safetensors, save_torch
from ovseg.checkpoint.state_dicts import (
    CLIP_MARK,
    MASK_PROMPT_DEPTH,
    MASK_PROMPT_FWD,
    SETTINGS_ENTRY,
    bare_clip_names,
    halved,
    read_checkpoint,
    read_settings,
    read_state_dict,
    tensors_of,
)
from ovseg.clip.adapter import PROMPTS
from ovseg.errors import OvsegError

_SCALES = ("logit_scale", "logit_bias")
_NO_WEIGHTS = {"input_resolution", "context_length", "vocab_size"}  # numbers in OpenAI's archives
_SCAN_PARTS = ("clip_adapter.original_clip.", "oriclip_mlp.")
_SEGMENTER_PARTS = ("backbone.", "sem_seg_head.", "clip_adapter.")


@dataclass(frozen=True)
class FusionReport:
    """Reports what was done with each key.

    Attributes:
        replaced: the segmenter's keys that got CLIP's tensors.
        added: keys that the segmenter lacked.
        untouched: the segmenter's other keys.
        left_out: the segmenter's text tower, which ``only_visual`` leaves to CLIP_WEIGHTS.
        ignored: keys of the CLIP file that are known and not meant to be stored: the tower before fine-tuning, which
            SCAN's scripts save with the tuned one, and what is left over in its official files.
        unknown: keys of the CLIP file that a segmenter has no place for; they were not stored.
        mask_prompt_forward: what MODEL.CLIP_ADAPTER.MASK_PROMPT_FWD must be; None for a segmenter that knows no mask
            prompts (SCAN).
        mask_prompt_depth: what MASK_PROMPT_DEPTH must be; None for any (there are no prompts in the file).
    """

    replaced: tuple[str, ...]
    added: tuple[str, ...]
    untouched: tuple[str, ...]
    left_out: tuple[str, ...]
    ignored: tuple[str, ...]
    unknown: tuple[str, ...]
    mask_prompt_forward: bool | None
    mask_prompt_depth: int | None

    @property
    def settings(self) -> dict[str, bool | int]:
        """Return the configuration keys that belong to the file."""
        if self.mask_prompt_forward is None:
            return {}
        depth = {} if self.mask_prompt_depth is None else {MASK_PROMPT_DEPTH: self.mask_prompt_depth}
        return {MASK_PROMPT_FWD: self.mask_prompt_forward, **depth}

    def __str__(self) -> str:
        prefixes = (CLIP_PREFIX, ORIGINAL_PREFIX)
        kept_clip, original = (tuple(n for n in self.untouched if n.startswith(prefix)) for prefix in prefixes)
        lines = []
        for label, keys in (
            ("replaced", self.replaced),
            ("added", self.added),
            ("untouched", self.untouched),
            ("of these the old CLIP's, which the CLIP file lacks", kept_clip),
            ("of these the original CLIP's, which looks at whole images", original),
            ("left out (CLIP_WEIGHTS must give them)", self.left_out),
            ("ignored in the CLIP file", self.ignored),
            ("unknown in the CLIP file, not stored", self.unknown),
        ):
            if keys or label in ("replaced", "added", "untouched"):
                examples = f": {key_groups(keys)}; such as {keys[0]}" if keys else ""
                lines.append(f"{len(keys):5d} {label}{examples}")
        if self.mask_prompt_forward is None:
            return "\n".join(lines)
        settings = " ".join(f"{key} {value}" for key, value in self.settings.items())
        why = "has" if self.mask_prompt_forward else "has no (or only zero)"
        return "\n".join((*lines, f"This CLIP {why} mask prompts. Use the file with:", f"  {settings}"))


def fuse(
    segmenter: Mapping[str, Tensor], clip: Mapping[str, Tensor], *, only_visual: bool = False
) -> tuple[dict[str, Tensor], FusionReport]:
    """Replace the CLIP tensors of a segmenter by those of another CLIP.

    Args:
        segmenter: state of a model with a ``clip_adapter``; it may hold no CLIP, or a part.
        clip: state of CLIP in any of the wrappings of :func:`ovseg.checkpoint.state_dicts.bare_clip_names`;
            tensors keep their type.
        only_visual: store only the image tower, its prompts and the logit scale; the result has no text tower.

    Raises:
        OvsegError: one of the two is something else, or they do not fit.
    """
    if not any(name.startswith(_SEGMENTER_PARTS) for name in segmenter):
        hint = ": it looks like a CLIP; are --clip and --segmenter swapped?" if _is_clip(segmenter) else ""
        raise OvsegError(
            f"the segmenter has no backbone, sem_seg_head or clip_adapter{hint or ': give its checkpoint'}"
        )
    unwrapped = bare_clip_names(clip)
    if not _is_clip(unwrapped):
        raise OvsegError(
            f"the CLIP file has no image tower (no key under visual.; it has {key_groups(tuple(clip)[:200])}): give a "
            "CLIP checkpoint"
        )
    old = bare_clip_names({name: t for name, t in segmenter.items() if name.startswith(CLIP_PREFIX)})
    wrapper = [name for name in clip if CLIP_MARK not in name] if len(unwrapped) < len(clip) else []
    ignored = [name for name in wrapper if name.removeprefix("module.").startswith(ORIGINAL)]
    unknown = [name for name in wrapper if name not in ignored]
    has_prompts = not any(name.startswith(_SCAN_PARTS) for name in segmenter)
    chosen = {}
    for name, tensor in unwrapped.items():
        if only_visual and not _visual(name):
            continue
        if (CLIP_PREFIX + name).startswith(LEFTOVERS):
            ignored.append(name)
            continue
        has_part = any(_visual(other) == _visual(name) for other in old)
        alien = has_part and name not in old and name != PROMPTS and name not in _SCALES
        if alien or name in _NO_WEIGHTS or (name == PROMPTS and not has_prompts):
            unknown.append(name)
        else:
            chosen[name] = tensor
    _check_sizes(segmenter, old, chosen)

    kept = {name: tensor for name, tensor in old.items() if not only_visual or _visual(name)}
    new_clip = kept | chosen
    fused = {name: tensor for name, tensor in segmenter.items() if not name.startswith(CLIP_PREFIX)}
    fused |= {CLIP_PREFIX + name: tensor for name, tensor in new_clip.items()}
    forward = PROMPTS in chosen and bool(chosen[PROMPTS].any())
    return fused, FusionReport(
        replaced=tuple(CLIP_PREFIX + name for name in chosen if name in old),
        added=tuple(CLIP_PREFIX + name for name in chosen if name not in old),
        untouched=tuple(n for n in fused if n in segmenter and n.removeprefix(CLIP_PREFIX) not in chosen),
        left_out=tuple(CLIP_PREFIX + name for name in old if name not in kept),
        ignored=tuple(ignored),
        unknown=tuple(unknown),
        mask_prompt_forward=forward if has_prompts else None,
        mask_prompt_depth=len(new_clip[PROMPTS]) if PROMPTS in new_clip else None,
    )


def fuse_files(
    clip: Path,
    segmenter: Path,
    output: Path,
    *,
    only_visual: bool = False,
    half: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> FusionReport:
    """Apply :func:`fuse` to files; no code in them is run.

    Args:
        output: ``.safetensors`` (tensors alone), or ``.pth`` / ``.pt``: Detectron2's layout, with the optimiser's state
            and whatever else the segmenter's file has.
        half: store floating-point tensors as float16.
        overwrite: replace an existing output; never one of the inputs.
        dry_run: check everything, write nothing.

    Raises:
        OvsegError: as :func:`fuse`; unreadable inputs; an output that exists, has another suffix or cannot be written.
    """
    if output.suffix not in (".safetensors", ".pth", ".pt"):
        raise OvsegError(f"{output} must end in .safetensors, .pth or .pt")
    if any(output.resolve() == file.resolve() for file in (clip, segmenter)):
        raise OvsegError(f"{output} is one of the inputs: choose another name")
    if output.exists() and not (overwrite or dry_run):
        raise OvsegError(f"{output} exists: choose another name, or add --overwrite")
    content = read_checkpoint(segmenter)
    state = tensors_of(content, segmenter)
    try:
        fused, report = fuse(state, read_state_dict(clip), only_visual=only_visual)
    except OvsegError as error:
        raise OvsegError(f"{clip} into {segmenter}: {error}") from error
    if half:
        fused = halved(fused)
    if dry_run:
        return report
    settings = {**read_settings(segmenter, content), **report.settings}
    if output.suffix == ".safetensors":
        save_safetensors(fused, output, {key: str(value) for key, value in settings.items()})
    else:
        save_torch(_detectron2_layout(content, fused) | {SETTINGS_ENTRY: settings}, output)
    return report


def compare(model: Mapping[str, Tensor], clip: Mapping[str, Tensor]) -> dict[str, float | None]:
    """Return the mean absolute difference of each tensor of two CLIPs, by open_clip's names.

    Args:
        model: a full checkpoint, or another CLIP.
        clip: CLIP.

    Returns:
        one entry for each name in either, in order; None where one lacks it, infinity where the shapes differ.

    Raises:
        OvsegError: they have no name in common.
    """
    ours, theirs = bare_clip_names(model), bare_clip_names(clip)
    if not ours.keys() & theirs.keys():
        raise OvsegError("the two have no CLIP tensor in common: give a full checkpoint and a CLIP")
    clip_names = [name for name in ours if not name.startswith(_SEGMENTER_PARTS)]
    found: dict[str, float | None] = {}
    for name in dict.fromkeys((*clip_names, *theirs)):
        if name not in ours or name not in theirs:
            found[name] = None
        elif ours[name].shape != theirs[name].shape:
            found[name] = float("inf")
        else:
            difference = (ours[name].double() - theirs[name].double()).abs()
            found[name] = float(difference.mean()) if difference.numel() else 0.0
    return found


def _check_sizes(segmenter: Mapping[str, Tensor], old: Mapping[str, Tensor], chosen: Mapping[str, Tensor]) -> None:
    wrong = [n for n, tensor in chosen.items() if n in old and n != PROMPTS and tensor.shape != old[n].shape]
    if wrong:
        name = wrong[0]
        raise OvsegError(
            f"this CLIP has another size than the segmenter's: {len(wrong)} tensors differ in shape, the first is "
            f"{name} with {list(chosen[name].shape)} instead of {list(old[name].shape)}; adapt the CLIP that "
            "MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME names"
        )
    theirs = _embed_dim(chosen)
    ours = segmenter.get("clip_adapter.non_object_embedding")
    if ours is not None and theirs is not None and ours.shape[1] != theirs:
        raise OvsegError(
            f"this CLIP has embeddings of {theirs} dimensions, the segmenter was trained with {ours.shape[1]}: adapt "
            "the CLIP that MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME names"
        )
    if PROMPTS in chosen and chosen[PROMPTS].numel():
        _check_prompts(chosen[PROMPTS], {**old, **chosen}, old.get(PROMPTS))


def _check_prompts(prompts: Tensor, tower: Mapping[str, Tensor], old: Tensor | None) -> None:
    if prompts.dim() != 3:
        raise OvsegError(f"{PROMPTS} has shape {list(prompts.shape)}: it must be (depth, patches, width)")
    depth, patches, width = prompts.shape
    blocks = {name.split(".")[3] for name in tower if name.startswith("visual.transformer.resblocks.")}
    if blocks and depth > len(blocks):
        raise OvsegError(f"the mask prompts have depth {depth}, but the image tower has {len(blocks)} blocks")
    positions = tower.get("visual.positional_embedding")  # (1 + patches, width)
    if positions is not None and (patches not in (1, len(positions) - 1) or width != positions.shape[1]):
        raise OvsegError(
            f"the mask prompts are for {patches} patches of width {width}, the image tower has {len(positions) - 1} of "
            f"width {positions.shape[1]}: they were tuned with another CLIP"
        )
    if old is not None and len(old) != depth and bool(old.any()):
        raise OvsegError(
            f"the mask prompts have depth {depth}, those of the segmenter depth {len(old)}: to use the new ones take "
            "the old CLIP out first (tools/convert_checkpoint.py SEGMENTER OUT.safetensors --drop "
            f"{CLIP_PREFIX}), fuse into OUT, and set {MASK_PROMPT_DEPTH} {depth}"
        )


def _embed_dim(clip: Mapping[str, Tensor]) -> int | None:
    if (projection := clip.get("visual.proj")) is not None:  # (width, D)
        return projection.shape[1]
    if (projection := clip.get("visual.attnpool.c_proj.weight")) is not None:  # (D, width)
        return projection.shape[0]
    return None


def _visual(name: str) -> bool:
    return name.startswith("visual.") or name in _SCALES


def _is_clip(state: Mapping[str, Any]) -> bool:
    return any(name.startswith("visual.") for name in state)


def _detectron2_layout(content: Mapping[str, Any], fused: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the file's other entries, with new tensors."""
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), Mapping):
            return {**content, key: dict(fused)}
    return {"model": dict(fused)} | {
        name: value for name, value in content.items() if not isinstance(value, Tensor | np.ndarray)
    }
