"""Reading weight files without running any code that may be in them."""

from __future__ import annotations

import io
import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ovseg.errors import OvsegError

logger = logging.getLogger(__name__)

CLIP_MARK = "clip_model."
MASK_PROMPT_FWD = "MODEL.CLIP_ADAPTER.MASK_PROMPT_FWD"
MASK_PROMPT_DEPTH = "MODEL.CLIP_ADAPTER.MASK_PROMPT_DEPTH"
SETTINGS_ENTRY = "ovseg_settings"  # in torch.save files; safetensors have metadata
_PICKLE_SUFFIXES = (".pkl", ".pickle")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a weight file, names as stored but for a leading ``module.``.

    Formats: safetensors; ``torch.save`` files (Detectron2's layout with the tensors under ``model``,
    open_clip's under ``state_dict``, or a bare state dict); Detectron2's pickles of arrays or tensors (``.pkl``).

    Raises:
        OvsegError: missing, empty, truncated or not a weight file; or it needs code to be run on loading.
    """
    return tensors_of(read_checkpoint(path), path)


def tensors_of(content: Any, path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint that is already in memory; ``path`` is for messages."""
    content = _as_dict(content, path)
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {}
    for name, value in content.items():
        if isinstance(value, np.ndarray | np.number):
            value = torch.as_tensor(np.asarray(value))
        if isinstance(value, Tensor):
            tensors[str(name).removeprefix("module.")] = value
    if not tensors:
        raise OvsegError(f"{path} holds no tensors: it is not a checkpoint of a model (entries: {_some(content)})")
    return tensors


def bare_clip_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's tensors under open_clip's own names, whatever they are wrapped in.

    Where some names have ``clip_model.`` in them (``clip_adapter.clip_model.`` of a segmenter, ``module.clip_model.``
    of a training wrapper, which may hold other towers too), those are CLIP; else all are, less a leading ``module.``.
    """
    inside = {name.partition(CLIP_MARK)[2]: tensor for name, tensor in state.items() if CLIP_MARK in name}
    return inside or {name.removeprefix("module."): tensor for name, tensor in state.items()}


def halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with floating-point tensors as float16."""
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def read_settings(path: str | Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration keys that a weight file asks for: metadata of safetensors, an entry in other files.

    Args:
        content: of the file, from :func:`read_checkpoint`.

    Returns:
        values by key; text in safetensors. Empty when the file asks for nothing.
    """
    if Path(path).suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    settings = content.get(SETTINGS_ENTRY)
    return dict(settings) if isinstance(settings, Mapping) else {}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a whole checkpoint, on the CPU: like :func:`read_state_dict`, with the optimizer's state and so on.

    Raises:
        OvsegError: as :func:`read_state_dict`.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder, not a weight file" if path.is_dir() else "does not exist"
        raise OvsegError(f"the weight file {path} {kind}: check the path (MODEL.WEIGHTS or CLIP_WEIGHTS)")
    head = _head(path)
    if not head:
        raise OvsegError(f"the weight file {path} is empty (0 bytes): download it again")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise OvsegError(
            f"{path} is a web page (HTML), not weights: the download was answered by a log-in or confirmation page; "
            "download the file itself"
        )
    if head.startswith(b"version https://git-lfs"):
        raise OvsegError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull`")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if path.suffix in _PICKLE_SUFFIXES:
            return _read_pickle(path)
        return _as_dict(torch.load(path, map_location="cpu", weights_only=True), path)
    except SafetensorError as error:
        raise OvsegError(f"{path} is damaged or no safetensors file ({error}): download it again") from error
    except pickle.UnpicklingError as error:
        raise OvsegError(_explain_unpickling(path, head, error)) from error
    # OSError: PyTorch's zip reader on a file that was cut short
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError) as error:
        reason = str(error).split("\n")[0]
        raise OvsegError(f"{path} is truncated or no weight file ({reason}): download or save it again") from error


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(512)
    except OSError as error:
        raise OvsegError(f"cannot read the weight file {path}: {error.strerror}") from error


def _explain_unpickling(path: Path, head: bytes, error: pickle.UnpicklingError) -> str:
    if head.startswith((b"PK", b"\x80")):
        return (
            f"{path} needs code to be run on loading, which is refused "
            f"({_unsupported_global(error)}): if you trust its source, convert it once with "
            f"`python tools/convert_checkpoint.py {path} OUT.safetensors --trust` and load OUT.safetensors"
        )
    return f"{path} is not a weight file (it begins with {head[:12]!r}): check the path, or download it again"


def _unsupported_global(error: Exception) -> str:
    wanted = re.search(r"[Uu]nsupported global: (?:GLOBAL )?([\w.]+)", str(error))
    return f"it asks for {wanted[1]}" if wanted else "it holds arbitrary objects"


class _TensorUnpickler(pickle.Unpickler):
    """Unpickler of dictionaries of NumPy arrays and tensors: anything else is refused."""

    _ALLOWED = {
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("_codecs", "encode"),
        ("collections", "OrderedDict"),
        ("torch._utils", "_rebuild_tensor_v2"),
        *((module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
        *((module, "scalar") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
        *((module, "_frombuffer") for module in ("numpy.core.numeric", "numpy._core.numeric")),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _load_storage
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"Unsupported global: {module}.{name}")
        return super().find_class(module, name)


def _load_storage(content: bytes) -> Any:
    """Tensors inside a plain pickle hold their data as a nested ``torch.save`` file; read that safely too."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _read_pickle(path: Path) -> dict[str, Any]:
    # latin1: the model zoo's pickles were written by Python 2
    return _as_dict(_TensorUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load(), path)


def _as_dict(content: Any, path: str | Path) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise OvsegError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors: save its state_dict()")
    return dict(content)


def _some(content: Mapping) -> str:
    names = [str(name) for name in content]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "none"
