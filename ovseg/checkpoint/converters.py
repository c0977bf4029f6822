"""Backbones of other projects under the names of our modules, which are Detectron2's (specification, section 13)."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from ovseg.checkpoint import save_safetensors, save_torch
from ovseg.errors import OvsegError
from ovseg.io.files import atomic_path

BACKBONE_SUFFIXES = (".safetensors", ".pkl", ".pth")
_VISUAL_MODEL_NAMES = {
    "relative_coords": "relative_position_index",
    "atten_mask_matrix": "attn_mask",
    "rel_pos_embed_table": "relative_position_bias_table",
    "channel_reduction": "reduction",
}


def convert_swin(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Swin of Microsoft's repository: the names are ours but for ``backbone.``, which loading adds by itself.

    Raises:
        OvsegError: it has not these names.
    """
    _require(state, "layers.0.blocks.0.attn.qkv.weight", "an official Swin checkpoint")
    return dict(state)


def convert_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A torchvision ResNet under Detectron2's names: ``layer1.0.bn2.weight`` -> ``res2.0.conv2.norm.weight``.

    Raises:
        OvsegError: it has not torchvision's names.
    """
    _require(state, "layer1.0.conv1.weight", "a torchvision ResNet")
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"^layer([1-4])\.", lambda match: f"res{int(match[1]) + 1}.", name)
        if not name.startswith("res"):
            name = f"stem.{name}"
        name = re.sub(r"\bbn([1-3])\b", r"conv\1.norm", name)
        name = name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        renamed[name] = tensor
    return renamed


def convert_visual_model(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The Swin-like image tower under ``visual_model.`` of an image-text checkpoint; its other parts are dropped.

    Raises:
        OvsegError: there is no such tower.
    """
    renamed = {}
    for name, tensor in state.items():
        if not name.startswith("visual_model."):
            continue
        name = name.removeprefix("visual_model.")
        for theirs, ours in _VISUAL_MODEL_NAMES.items():
            name = name.replace(theirs, ours)
        renamed[f"backbone.{name}"] = tensor
    if not renamed:
        raise OvsegError("this is no checkpoint with a visual_model: no key begins with visual_model.")
    return renamed


CONVERTERS: dict[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "swin": convert_swin,
    "torchvision": convert_torchvision,
    "visual-model": convert_visual_model,
}


def save_backbone(state: Mapping[str, Tensor], path: Path, author: str) -> None:
    """Write a backbone that :func:`ovseg.checkpoint.load_weights` and Detectron2 both load.

    Args:
        path: ``.safetensors``; or ``.pkl`` (NumPy arrays) or ``.pth`` in Detectron2's layout, whose
            ``matching_heuristics`` makes Detectron2 match names by their ends.
        author: of the weights, a note in Detectron2's layout.

    Raises:
        OvsegError: another suffix, or the file cannot be written.
    """
    layout = {"__author__": author, "matching_heuristics": True}
    if path.suffix == ".safetensors":
        save_safetensors(state, path)
    elif path.suffix == ".pth":
        save_torch({"model": {name: tensor.contiguous() for name, tensor in state.items()}, **layout}, path)
    elif path.suffix == ".pkl":
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            pickle.dump({"model": arrays, **layout}, file)
    else:
        raise OvsegError(f"{path} must end in {', '.join(BACKBONE_SUFFIXES)}")


def _require(state: Mapping[str, Tensor], name: str, what: str) -> None:
    if name not in state:
        raise OvsegError(f"this is not {what}: it has no {name} (its names are like {', '.join(list(state)[:3])})")
