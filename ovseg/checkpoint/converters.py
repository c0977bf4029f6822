"""Conversion of other projects' backbones to our names, which follow Detectron2 (specification, section 13)."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
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
    """Convert a Swin of Microsoft's repository; its names equal ours except for ``backbone.``, added on loading.

    Raises:
        OvsegError: the names differ.
    """
    _require(state, "layers.0.blocks.0.attn.qkv.weight", "an official Swin checkpoint")
    return dict(state)


def convert_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a torchvision ResNet to Detectron2's names: ``layer1.0.bn2.weight`` -> ``res2.0.conv2.norm.weight``.

    Raises:
        OvsegError: the names are not torchvision's.
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
    """Convert the Swin-like image tower under ``visual_model.`` of an image-text checkpoint; drop its other parts.

    Raises:
        OvsegError: there is no such tower.
    """
    tower = {
        name.removeprefix("visual_model."): tensor for name, tensor in state.items() if name.startswith("visual_model.")
    }
    if not tower:
        raise OvsegError("this is not a checkpoint with a visual_model: no key begins with visual_model.")
    for theirs, ours in _VISUAL_MODEL_NAMES.items():
        tower = {name.replace(theirs, ours): tensor for name, tensor in tower.items()}
    return {f"backbone.{name}": tensor for name, tensor in tower.items()}


CONVERTERS = {"swin": convert_swin, "torchvision": convert_torchvision, "visual-model": convert_visual_model}


def save_backbone(state: Mapping[str, Tensor], path: Path, author: str) -> None:
    """Write a backbone that both :func:`ovseg.checkpoint.load_weights` and Detectron2 can load.

    Args:
        state: tensors by name.
        path: ``.safetensors``; or ``.pkl`` (NumPy arrays) or ``.pth`` in Detectron2's layout, whose
            ``matching_heuristics`` makes Detectron2 match names by their suffixes.
        author: author of the weights, recorded in Detectron2's layout.

    Raises:
        OvsegError: the suffix is another, or the file cannot be written.
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
