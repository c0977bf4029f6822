"""An OVSegmentor of a few thousand random weights, in the published configuration format."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml
from detectron2.modeling import build_model

from ovseg.checkpoint import save_safetensors
from ovseg.config import load_cfg

REPO = Path(__file__).parents[1]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
BERT = {
    **{"vocab_size": len(VOCAB), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"intermediate_size": 16, "max_position_embeddings": 96, "model_type": "bert"},
}
CONFIG = {
    "_base_": str(REPO / "configs" / "test_voc12.yml"),
    "model": {
        "img_encoder": {
            **{"img_size": 64, "embed_dim": 16, "num_heads": [2, 2], "depths": [1, 1]},
            **{"num_group_tokens": [8, 0], "num_output_groups": [4]},
        },
        "text_encoder": {"config": "bert.json", "vocab": "vocab.txt", "width": 16},
        "output_dim": 8,
        "proj_hidden_dim": 16,
    },
    "evaluate": {"seg": {"opts": ["test_cfg.crop_size=(64,64)", "test_cfg.stride=(32,32)"]}},
    "MODEL": {"DEVICE": "cpu"},
    "INPUT": {"MIN_SIZE_TEST": 64},
}


def make_tiny_ovsegmentor(folder: Path, **keys: object) -> tuple[Path, Path]:
    """Write a configuration and random weights to ``folder``, and return both files.

    Args:
        keys: of the published section ``model``, over those of :data:`CONFIG`.
    """
    (folder / "bert.json").write_text(json.dumps(BERT))
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    config, weights = folder / "tiny.yml", folder / "tiny.safetensors"
    config.write_text(yaml.safe_dump(CONFIG | {"model": CONFIG["model"] | keys}))
    torch.manual_seed(3)
    model = build_model(load_cfg(config))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:  # scores of random words and groups are far apart
            torch.nn.init.normal_(parameter, std=0.5 if "projector" in name else 0.2)
    save_safetensors({name: tensor.clone() for name, tensor in model.state_dict().items()}, weights)
    return config, weights
