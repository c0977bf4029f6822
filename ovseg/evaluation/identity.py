"""Identity of an evaluation: an interrupted one is resumed only by an evaluation with the same fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from torch import nn

from ovseg.data.file_list import file_list_checksum
from ovseg.data.protocol import Protocol
from ovseg.evaluation.versions import versions
from ovseg.io import files

# Keys of places and of speed, and keys whose content is part of the fingerprint anyway.
_WITHOUT_EFFECT = (
    *("OUTPUT_DIR", "VIS_PERIOD", "CUDNN_BENCHMARK", "WANDB", "SEED", "DATASETS.TRAIN", "DATASETS.TEST"),
    *("MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.CLIP_ADAPTER.CLIP_WEIGHTS", "MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR"),
    *("DATALOADER.NUM_WORKERS", "TEST.EVAL_PERIOD"),
)


def model_digest(model: nn.Module) -> str:
    """Return the SHA-256 of the names, types, shapes and values of all parameters and buffers in the state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def file_digest(path: str | Path) -> str | None:
    """Return the SHA-256 of a file's bytes; None if there is no such file, as for the tag of published weights."""
    if not path or not Path(path).is_file():
        return None
    return files.file_digest(path)


def fingerprint(cfg: CfgNode, digest: str, file_names: Sequence[str], protocol: Protocol) -> dict[str, Any]:
    """Return everything that the counts of an evaluation depend on.

    Args:
        cfg: configuration of the evaluation; keys without effect on the counts (folders, device, workers) are left out.
        digest: digest of the model, see :func:`model_digest`.
        file_names: the data set's images, in the order of their indices.
        protocol: protocol of the data set.

    Returns:
        plain nested values, equal for evaluations that give the same counts.
    """
    order = "\n".join(Path(name).name for name in file_names)
    return {
        "model": digest,
        "data": {
            "num_images": len(file_names),
            "file_list_sha256": file_list_checksum(file_names),
            "order_sha256": hashlib.sha256(order.encode("utf-8", "surrogateescape")).hexdigest(),
        },
        "protocol": protocol.record(),
        "config": _settings(cfg),
        "versions": versions(),
    }


def digest_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain nested values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _settings(cfg: CfgNode) -> dict[str, Any]:
    settings = yaml.safe_load(cfg.dump())
    for key in _WITHOUT_EFFECT:
        *parents, name = key.split(".")
        node = settings
        for parent in parents:
            node = node.get(parent, {})
        node.pop(name, None)
    return settings
