"""A complete OVSeg, or SCAN, of a few thousand weights, all random: fast, and wrong about every image."""

from __future__ import annotations

import json
from collections.abc import Sequence
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

# over CONFIG, and CLIP with more blocks
SCAN = {
    "MODEL.META_ARCHITECTURE": "SCAN",
    "MODEL.SELECT_ORI_CLIP_ID": [1, 3],
    "MODEL.FREQUENCY_SIGMA": [2, 1],
    "MODEL.CLIP_VISION_DIM": 32,
    "MODEL.SCAN_DIM": 16,
    "MODEL.SCAN_FEEDFORWARD": 16,
    "MODEL.PATCH_SIZE": 4,
    "MODEL.SEM_SEG_HEAD.NAME": "OpenVocaMask2FormerHead",
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
    "MODEL.MASK_FORMER.DEC_LAYERS": 2,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 32,
    "MODEL.CLIP_ADAPTER.MASK_PROMPT_FWD": False,
    "MODEL.CLIP_ADAPTER.REPLACE_LAYER": [1, 2],
    "MODEL.CLIP_ADAPTER.REPLACE_RATIO": 0.5,
}


def make_tiny_scan(folder: Path, *opts, clip: dict = CLIP) -> tuple[Path, Path]:
    """The same for SCAN; ``opts`` are KEY VALUE pairs over :data:`SCAN`."""
    settings = [item for pair in SCAN.items() for item in pair]
    clip = clip | {"quick_gelu": False, "vision_cfg": clip["vision_cfg"] | {"layers": 3}}
    return make_tiny_model(folder, clip, [*settings, *opts])


def make_tiny_model(folder: Path, clip: dict = CLIP, opts: Sequence = ()) -> tuple[Path, Path]:
    """Write a configuration and a checkpoint of the tiny model into ``folder``; return their paths."""
    (folder / "clip.json").write_text(json.dumps(clip))
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    cfg = load_cfg(str(config), ["MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME", str(folder / "clip.json"), *opts])
    config.write_text(cfg.dump())
    torch.manual_seed(9)  # of these weights, thresholds and weights of the two classifiers change the answers
    weights = folder / "tiny.safetensors"
    save_safetensors(build_model(cfg).state_dict(), weights)
    return config, weights
