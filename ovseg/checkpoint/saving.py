"""Writing of weight files, whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ovseg.errors import OvsegError
from ovseg.io.files import atomic_path


def save_safetensors(state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors through a temporary file; tensors that share memory are copied.

    Raises:
        OvsegError: safetensors cannot hold one of them.
    """
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise OvsegError(
                f"{path} cannot be written: {name} is sparse, quantized or without data, which safetensors cannot hold"
            )
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(atomic_path(path))
        # the library writes a temporary file of its own: in a folder whose name identifies it after a kill
        folder = stack.enter_context(TemporaryDirectory(prefix=f"{temporary.name}.", dir=temporary.parent))
        try:
            save_file(tensors, Path(folder, "file"), dict(metadata or {}))
        except KeyError as error:
            raise OvsegError(f"{path} cannot be written: safetensors cannot hold {error.args[0]} tensors") from error
        os.replace(Path(folder, "file"), temporary)


def save_torch(content: Mapping[str, Any], path: str | Path) -> None:
    """Write a dictionary by ``torch.save`` through a temporary file, flushed to disk before it is renamed.

    Args:
        content: only tensors, numbers, strings and containers of these, which ``weights_only`` loading accepts.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())
