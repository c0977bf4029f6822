"""Segment Anything of a few thousand weights, all random, in folders as transformers writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

DECODER = {"hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "iou_head_hidden_dim": 16}
PROMPTS = {"hidden_size": 16, "mask_input_channels": 4}
PYRAMID = {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "fpn_hidden_size": 16}


def tiny_sam(kind: str, seed: int = 0) -> torch.nn.Module:
    """Return a network of one of the kinds sam, sam2, sam3_tracker and sam3_video; all but the last give masks."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    torch.manual_seed(seed)
    if kind == "sam":
        sizes = {"image_size": 64, "patch_size": 8}
        vision = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "output_channels": 16}
        vision |= {"window_size": 4, "global_attn_indexes": [1], "num_pos_feats": 8, "mlp_dim": 16, **sizes}
        config = transformers.SamConfig(**parts(vision, sizes))
        network = transformers.SamModel(config)
    elif kind == "sam2":
        backbone = {"hidden_size": 8, "image_size": [64, 64], "blocks_per_stage": [1, 1, 2, 1]}
        backbone |= {"embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 1, 2, 2]}
        backbone |= {"window_size_per_stage": [4] * 4, "window_positional_embedding_background_size": [4, 4]}
        backbone |= {"global_attention_blocks": [3], "model_type": "sam2_hiera_det_model"}
        vision = {"backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8], **PYRAMID}
        config = transformers.Sam2Config(**parts(vision, {"image_size": 64, "patch_size": 16}))
        network = transformers.Sam2Model(config)
    else:
        sizes = {"image_size": 56, "patch_size": 14}
        backbone = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        backbone |= {"window_size": 2, "global_attn_indexes": [1], "pretrain_image_size": 28, **sizes}
        backbone |= {"model_type": "sam3_vit_model"}
        vision = {"model_type": "sam3_vision_model", "backbone_config": backbone, **PYRAMID}
        tracker = parts(vision, sizes)
        if kind == "sam3_tracker":
            network = transformers.Sam3TrackerModel(transformers.Sam3TrackerConfig(**tracker))
        else:  # with the detector of a whole SAM 3
            text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
            encoders = ("geometry_encoder_config", "detr_encoder_config", "detr_decoder_config")
            layers = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
            detector = {name: dict(layers) for name in encoders}
            detector |= {"vision_config": vision, "text_config": text | {"projection_dim": 16}}
            detector["mask_decoder_config"] = {"hidden_size": 16, "num_attention_heads": 2}
            tracker["memory_attention_hidden_size"] = 16
            config = transformers.Sam3VideoConfig(detector_config=detector, tracker_config=tracker)
            network = transformers.Sam3VideoModel(config)
    for parameter in network.parameters():  # larger weights than those of a new network, whose masks are all alike
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


def parts(vision: dict, sizes: dict) -> dict[str, dict]:
    """Return the arguments of a configuration."""
    return {"vision_config": vision, "prompt_encoder_config": PROMPTS | sizes, "mask_decoder_config": dict(DECODER)}


def tiny_sam_folder(folder: Path, kind: str, seed: int = 0) -> Path:
    """Write a network of :func:`tiny_sam`, and return its folder."""
    tiny_sam(kind, seed).save_pretrained(folder / kind)
    return folder / kind
