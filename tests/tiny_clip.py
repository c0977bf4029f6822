"""A CLIP of a few thousand weights: alone, in a namer, or in a model without proposals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from safetensors.torch import save_file
from torch import Tensor

from ovseg.checkpoint import load_model
from ovseg.clip.adapter import ClipAdapter
from ovseg.config import get_cfg
from ovseg.meta_arch import ProposeAndName
from ovseg.naming import ContextCrops, MaskedCrops
from ovseg.naming.crops import has_pixel
from ovseg.proposals.views import PROPOSERS, Part, Views

TINY = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"width": 16, "heads": 1, "layers": 1},
}
RESNET = TINY | {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}}
CONVOLUTIONAL = TINY | {
    "vision_cfg": {
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 64,
    }
}
CLIP = "clip_adapter.clip_model."
TUNED, ORIGINAL = f"{CLIP}visual.", "clip_adapter.original_clip."  # the towers in a model's state


@PROPOSERS.register()
def NoProposer(cfg: CfgNode) -> Part:
    """Return a proposer without weights, which is never called."""
    return Part()


def tiny_cfg(folder: Path, **keys: object) -> CfgNode:
    """Return a configuration with the tiny CLIP, random; ``keys`` of MODEL.CLIP_ADAPTER."""
    (folder / "clip.json").write_text(json.dumps(TINY))
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "ProposeAndName", "cpu"
    cfg.MODEL.PROPOSER.NAME, cfg.MODEL.NAMER.NAME = "NoProposer", ["MaskedCrops"]
    cfg.MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME = str(folder / "clip.json")
    cfg.MODEL.CLIP_ADAPTER.CLIP_WEIGHTS = cfg.MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR = "none"
    return with_keys(cfg, keys)


def convolutional_cfg(folder: Path, namer: str = "PooledMap", **keys: object) -> CfgNode:
    """Return a configuration with a convolutional image tower, random, and a namer that pools its maps."""
    cfg = tiny_cfg(folder, **{"MASK_PROMPT_DEPTH": 0} | keys)
    (folder / "clip.json").write_text(json.dumps(CONVOLUTIONAL))
    cfg.MODEL.NAMER.NAME, cfg.MODEL.NAMER.MAP_SIZE = [namer], 96
    return cfg


def with_keys(cfg: CfgNode, keys: Mapping[str, object]) -> CfgNode:
    cfg = cfg.clone()
    for key, value in keys.items():
        cfg.MODEL.CLIP_ADAPTER[key] = value
    return cfg


def adapter_of(cfg: CfgNode, depths: Sequence[int] | None = None, **keys: object) -> ClipAdapter:
    torch.manual_seed(0)
    return ClipAdapter(with_keys(cfg, keys), original_depths=depths).eval()


def namer_of(cfg: CfgNode, **keys: object) -> MaskedCrops:
    """Return :class:`MaskedCrops`."""
    cfg = with_keys(cfg, keys)
    return MaskedCrops.from_config(cfg, adapter_of(cfg)).eval()


def context_namer_of(cfg: CfgNode, **keys: object) -> ContextCrops:
    """Return :class:`ContextCrops`, with half of the background patches replaced."""
    cfg = with_keys(cfg, {"REPLACE_RATIO": 0.5} | keys)
    return ContextCrops.from_config(cfg, adapter_of(cfg, depths=(2, 4))).eval()


def model_of(cfg: CfgNode, checkpoint: Mapping[str, Tensor] | None = None, **keys: object) -> ProposeAndName:
    """Return the whole model, with a checkpoint of these tensors, or with CLIP's weights."""
    cfg = with_keys(cfg, keys)
    if checkpoint is not None:
        cfg.MODEL.WEIGHTS = str(Path(cfg.MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME).parent / "checkpoint.safetensors")
        save_file({name: tensor.clone() for name, tensor in checkpoint.items()}, cfg.MODEL.WEIGHTS)
    return load_model(cfg).eval()


def donor_of(cfg: CfgNode, folder: Path, seed: int, depth: int = 3) -> tuple[dict[str, Tensor], str]:
    """Return the state of a CLIP with other weights and prompts, and its file."""
    state = adapter_of(cfg, MASK_PROMPT_DEPTH=depth).clip_model.state_dict()
    random = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(tensor.shape, generator=random) / 4 for name, tensor in state.items()}
    save_file(state, folder / f"donor{seed}.safetensors")
    return state, str(folder / f"donor{seed}.safetensors")


def views_of(*images: Tensor) -> Views:
    """Return the views of images (3, H, W)."""
    return Views([{"image": image} for image in images], [image.float() for image in images])


def classify(
    namer: MaskedCrops, image: Tensor, masks: Tensor, words: Sequence[str] = ("cat", "dog")
) -> tuple[Tensor, Tensor]:
    """Return logits (V, K + 1), "no object" last, and which masks (Q, H, W) have a pixel."""
    seen = has_pixel(masks, namer.mask_threshold)
    (features,) = namer.features(views_of(image), [(0, masks[seen])])
    return namer.clip_adapter.similarity(features, namer.clip_adapter.text_matrix(words)), seen
