"""Identity of an evaluation: its fingerprint, the versions of the software, and the differences between two."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import detectron2
import torch
import yaml
from detectron2.config import CfgNode
from torch import nn

from ovseg.config.files import by_content
from ovseg.data.file_list import file_list_checksum
from ovseg.data.protocol import Protocol

# Keys of places and of speed, and keys whose content is part of the fingerprint anyway.
_WITHOUT_EFFECT = (
    *("OUTPUT_DIR", "VIS_PERIOD", "CUDNN_BENCHMARK", "WANDB", "SEED", "DATASETS.TRAIN", "DATASETS.TEST"),
    *("MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.CLIP_ADAPTER.CLIP_WEIGHTS", "MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR"),
    *("DATALOADER.NUM_WORKERS", "TEST.EVAL_PERIOD"),
)
_PACKAGES = {
    **{"ovseg": "ovseg", "torch": "torch", "torchvision": "torchvision", "open_clip": "open_clip_torch"},
    **{"numpy": "numpy", "pillow": "pillow", "opencv": "opencv-python-headless"},  # decoding, resizing
}
_LONGEST = 60  # characters of a value that are shown
_ABSENT = object()


def model_digest(model: nn.Module) -> str:
    """Return the SHA-256 of the names, types, shapes and values of all parameters and buffers in the state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


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
    settings = yaml.safe_load(cfg.dump())
    for key in _WITHOUT_EFFECT:
        *parents, name = key.split(".")
        functools.reduce(lambda node, parent: node.get(parent, {}), parents, settings).pop(name, None)
    order = "\n".join(Path(name).name for name in file_names)
    return {
        "model": digest,
        "data": {
            "num_images": len(file_names),
            "file_list_sha256": file_list_checksum(file_names),
            "order_sha256": hashlib.sha256(order.encode("utf-8", "surrogateescape")).hexdigest(),
        },
        "protocol": protocol.record(),
        "config": by_content(settings),
        "versions": versions(),
    }


def digest_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain nested values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str | None]:
    """Return the versions of Python and the packages that results depend on; None if not installed as a package."""
    found: dict[str, str | None] = {"python": platform.python_version(), "detectron2": detectron2.__version__}
    for name, distribution in _PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["torch"] = torch.__version__  # includes the build, CPU or CUDA
    return found


@functools.cache
def git_commit(package: Path = Path(__file__).parents[1]) -> str | None:
    """Return the commit of the checkout that holds this package, with "+changes" if files differ; None without one."""
    # in another project's checkout (its .venv, say) the package's files are not tracked
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    return commit and commit + ("+changes" if _git(package, "status", "--porcelain", "--", ".") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of git; None if it fails or is not installed."""
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings into one with dotted names; empty mappings are dropped."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def differences(first: Mapping[str, Any], second: Mapping[str, Any], form: str = "{} was {} and is {}") -> list[str]:
    """Return a sentence for each entry of two nested mappings whose values differ or that only one has.

    A list equals a tuple of the same items. ``form`` is filled with the dotted name and both values.
    """
    one, two = flatten(first), flatten(second)
    changed = [name for name in {**one, **two} if _plain(one.get(name, _ABSENT)) != _plain(two.get(name, _ABSENT))]
    return [form.format(name, short(one.get(name)), short(two.get(name))) for name in changed]


def short(value: Any) -> str:
    """Return a value as text on one line, truncated to 60 characters."""
    text = repr(value) if isinstance(value, str) and not value else str(value)
    text = " ".join(text.split()).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
