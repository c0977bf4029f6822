"""A very small OVSegmentor with random weights, and requests for it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from detectron2.modeling import build_model

from ovseg.config import CfgNode, get_cfg
from ovseg.vocabulary.wordpiece import SPECIAL

SIDE = 32  # pixels of training images
WORDS = ["a", "photo", "of", "the", "and", "cat", "dog", "tree", "sky", "house", "red", "."]
_BERT = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    **{"vocab_size": 32, "max_position_embeddings": 24},
}
_DISTILBERT = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 32}
SIZES = {
    "IMG_ENCODER.IMG_SIZE": SIDE,
    "IMG_ENCODER.PATCH_SIZE": 8,
    "IMG_ENCODER.EMBED_DIM": 24,
    "IMG_ENCODER.NUM_HEADS": [2, 2],
    "IMG_ENCODER.DEPTHS": [1, 1],
    "IMG_ENCODER.NUM_GROUP_TOKENS": [6, 0],
    "IMG_ENCODER.NUM_OUTPUT_GROUPS": [4],
    "IMG_ENCODER.IMGNET_PRETRAINED": "none",
    "TEXT_ENCODER.PRETRAINED": False,
    "PROJ_HIDDEN_DIM": 12,
    "OUTPUT_DIM": 8,
    "WINDOW": [32, 32],
    "STRIDE": [16, 16],
}


def write_text_encoder(folder: Path, kind: str = "bert") -> dict[str, str]:
    """Write the sizes and the tokens of a small text encoder; return the keys that name them."""
    sizes = _DISTILBERT if kind == "distilbert" else _BERT
    (folder / f"{kind}.json").write_text(json.dumps({"model_type": kind, **sizes}))
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS]) + "\n")
    return {"TEXT_ENCODER.CONFIG": str(folder / f"{kind}.json"), "TEXT_ENCODER.VOCAB": str(folder / "vocab.txt")}


def tiny_cfg(folder: Path, *, stage: int = 2, kind: str = "bert", **options) -> CfgNode:
    """Return a configuration.

    Args:
        folder: for the files that it names.
        stage: 0 for inference alone, 1 with the entity loss, 2 with both.
        kind: of the text encoder.
        options: keys below MODEL.OVSEGMENTOR, with "__" for ".".
    """
    cfg = get_cfg()
    losses = {"USE_ENTITYLOSS": stage > 0, "USE_MASKLOSS": stage > 1}
    own = SIZES | losses | write_text_encoder(folder, kind)
    own |= {name.replace("__", "."): value for name, value in options.items()}
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "OVSegmentor", "MODEL.DEVICE", "cpu"])
    cfg.merge_from_list([word for key, value in own.items() for word in (f"MODEL.OVSEGMENTOR.{key}", value)])
    return cfg


def tiny_model(folder: Path, seed: int = 0, **options) -> torch.nn.Module:
    """Return a model in evaluation mode; the arguments are those of :func:`tiny_cfg`."""
    torch.manual_seed(seed)
    return build_model(tiny_cfg(folder, **options)).eval()


def training_batch(count: int = 3, length: int = 10, seed: int = 0) -> list[dict]:
    """Return image-text pairs of random pixels and words, with the other texts and images of both stages."""
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for _ in range(count):
        sample = {
            name: torch.randint(0, 256, (3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
            for name in ("image", "cross_image")
        }
        for name in ("caption", "question", "answer", "cross_entity"):
            words = int(torch.randint(2, length - 1, (), generator=generator))
            ids, mask = torch.zeros(2, length, dtype=torch.int64)
            ids[: words + 2] = torch.randint(5, 5 + len(WORDS), (words + 2,), generator=generator)
            ids[0], ids[words + 1], mask[: words + 2] = 2, 3, 1
            sample[name] = {"input_ids": ids, "attention_mask": mask}
        batch.append(sample)
    return batch


def request(rows: int = 40, columns: int = 56, seed: int = 0, **rest) -> dict:
    """Return a request for words in an image of random pixels."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, rows, columns, generator=generator) * 255
    return {"image": image, "class_names": ["background", "cat", "dog", "tree"], **rest}
