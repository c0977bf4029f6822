"""A complete OVSeg of a few thousand weights, all random: fast, and wrong about every picture."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml
from detectron2.modeling import build_model

from ovseg.checkpoint import save_safetensors
from ovseg.config import load_cfg

CLIP = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 1, "width": 32, "head_width": 16, "patch_size": 56},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}
CONFIG = {
    "MODEL": {
        "META_ARCHITECTURE": "OVSeg",
        "DEVICE": "cpu",
        "PIXEL_MEAN": [123.675, 116.28, 103.53],
        "PIXEL_STD": [58.395, 57.12, 57.375],
        "BACKBONE": {"NAME": "D2SwinTransformer"},
        "SWIN": {"EMBED_DIM": 8, "DEPTHS": [1, 1, 1, 1], "NUM_HEADS": [1, 1, 2, 2], "WINDOW_SIZE": 4},
        "SEM_SEG_HEAD": {
            "NAME": "OpenVocabMaskFormerHead",
            "IN_FEATURES": ["res2", "res3", "res4", "res5"],
            "NUM_CLASSES": 3,
            "EMBEDDING_DIM": 16,
            "EMBED_HIDDEN_DIM": 16,
            "CONVS_DIM": 32,
            "MASK_DIM": 16,
            "NORM": "GN",
        },
        "MASK_FORMER": {
            "HIDDEN_DIM": 16,
            "NUM_OBJECT_QUERIES": 6,
            "NHEADS": 2,
            "DIM_FEEDFORWARD": 16,
            "DEC_LAYERS": 1,
        },
        "CLIP_ADAPTER": {
            "TEXT_CACHE_DIR": "none",
            "CLIP_WEIGHTS": "none",
            "MASK_PROMPT_DEPTH": 1,
            "MASK_PROMPT_FWD": True,
        },
    },
    "INPUT": {"FORMAT": "RGB", "MIN_SIZE_TEST": 64, "MAX_SIZE_TEST": 256},
    "VERSION": 2,
}


def make_tiny_model(folder: Path) -> tuple[Path, Path]:
    """Write a configuration and a checkpoint of the tiny model into ``folder``; return their paths."""
    (folder / "clip.json").write_text(json.dumps(CLIP))
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    cfg = load_cfg(str(config), ["MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME", str(folder / "clip.json")])
    config.write_text(cfg.dump())
    torch.manual_seed(0)
    weights = folder / "tiny.safetensors"
    save_safetensors(build_model(cfg).state_dict(), weights)
    return config, weights
