"""Reading of weight files without running code that they may contain."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.checkpoint.archives import LEGACY_MAGIC, read_archive, read_legacy, read_plain
from ovseg.checkpoint.pickles import NeedsCode
from ovseg.errors import OvsegError, argument, reason_of, shown

logger = logging.getLogger(__name__)

CLIP_MARK = "clip_model."
_CLIP_SCALE = "logit_scale"
MASK_PROMPT_FWD = "MODEL.CLIP_ADAPTER.MASK_PROMPT_FWD"
MASK_PROMPT_DEPTH = "MODEL.CLIP_ADAPTER.MASK_PROMPT_DEPTH"
SETTINGS_ENTRY = "ovseg_settings"  # in torch.save files; safetensors have metadata
# Parts that DistributedDataParallel, torch.compile and FSDP insert into names, at any position.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
# Entries (or first parts of names) under which training programs store the model; then those of its running averages.
_HOLDERS = ("model", "state_dict", "model_state_dict", "model_state", "net", "network", "module", "params", "weights")
_AVERAGES = ("model_ema", "ema_state_dict", "state_dict_ema", "params_ema", "ema_model", "ema", "teacher", "student")
_NOT_WEIGHTS = {
    (
        b"<!doctype",
        b"<html",
        b"<head",
        b"<?xml",
    ): "is a web page (HTML), not weights: the download was answered by a log-in "
    "or confirmation page; download the file itself",
    (b"version https://git-lfs",): "is a Git LFS pointer, not the weights: run `git lfs pull`",
    (b"\x1f\x8b\x08",): "is compressed (gzip): unpack it first",
}
_NOT_ENOUGH_MEMORY = re.compile("can't allocate memory|not enough memory")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a weight file, under their names in the model: see :func:`tensors_of`.

    The format is detected by content: safetensors; ``torch.save`` files of any version (Detectron2's layout with the
    tensors under ``model``, open_clip's under ``state_dict``, or a bare state dict); Detectron2's pickles of arrays or
    tensors (``.pkl``); TorchScript archives, such as OpenAI's CLIP.

    Raises:
        OvsegError: the file is missing, empty, damaged or not a weight file; or loading it would run code.
    """
    return tensors_of(read_checkpoint(path), path)


def tensor_names(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a weight file's tensors by their names, which are those of :func:`read_state_dict`.

    The data of safetensors and of zip archives (``torch.save``, TorchScript) are not read, nor compared with their
    checksums; other files are read whole.

    Raises:
        OvsegError: as :func:`read_state_dict`.
    """
    return {name: tuple(tensor.shape) for name, tensor in tensors_of(read_checkpoint(path, data=False), path).items()}


def tensors_of(content: Any, path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint that is already in memory.

    Parts that training wrappers insert into names (:data:`_WRAPPERS`) are removed. If the checkpoint holds several
    models, a warning states which one is used.

    Args:
        content: the checkpoint.
        path: its file, for messages.

    Raises:
        OvsegError: the content is not a dictionary, holds no tensors, or two models with the same names.
    """
    content = _chosen_model(_as_dict(content, path), path)
    tensors, origins = {}, {}
    for name, value in content.items():
        if isinstance(value, np.ndarray | np.number):
            value = torch.as_tensor(np.asarray(value))
        if isinstance(value, Tensor):
            bare = bare_name(str(name))
            if not bare.isprintable():
                raise OvsegError(f"{path} holds a tensor with the invalid name {shown(name)}: save it again")
            if bare in tensors:
                raise OvsegError(
                    f"{path} holds {bare} twice, as {origins[bare]} and {name}: save one of the two models alone"
                )
            tensors[bare], origins[bare] = value, name
    if not tensors:
        raise OvsegError(f"{path} holds no tensors: it is not a checkpoint of a model (entries: {_some(content)})")
    return tensors


def bare_name(name: str) -> str:
    """Return a tensor's name without wrappers: ``_orig_mod.model.module.backbone.w`` -> ``backbone.w``."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] in _HOLDERS:
        parts.pop(0)
    return ".".join(parts) or name


def bare_clip_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return CLIP's tensors under open_clip's names, without prefixes and wrappers.

    If some names contain ``clip_model.`` (``clip_adapter.clip_model.`` of a segmenter, ``module.clip_model.`` of a
    training wrapper, which may hold other towers too), only those are CLIP. Otherwise all are, without their wrappers
    and without the prefix of :data:`_CLIP_SCALE`, a tensor that every CLIP has.
    """
    inside = {name.partition(CLIP_MARK)[2]: tensor for name, tensor in state.items() if CLIP_MARK in name}
    inside = inside or {bare_name(name): tensor for name, tensor in state.items()}
    prefixes = {name.removesuffix(_CLIP_SCALE) for name in inside if name.endswith(f".{_CLIP_SCALE}")}
    if len(prefixes) != 1 or _CLIP_SCALE in inside:
        return inside
    (prefix,) = prefixes
    return {name.removeprefix(prefix): tensor for name, tensor in inside.items() if name.startswith(prefix)}


def constant_names(model: nn.Module) -> set[str]:
    """Return the names of non-persistent buffers: they follow from the configuration and are ignored in files."""
    return {name for name, _ in model.named_buffers()} - model.state_dict().keys()


def missing_signals(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the marks of learned prompts that a file lacks, which are rows of its CLIP's table of tokens.

    Args:
        state: of the file, under the model's names.
        model: its modules with an attribute ``signal_tokens``, row by name of the mark, are learned prompts.
    """
    found = {}
    for name, module in model.named_modules():
        table = state.get(f"{name.rpartition('.')[0]}.clip_model.token_embedding.weight")
        for signal, token in getattr(module, "signal_tokens", {}).items():
            if table is not None and f"{name}.{signal}" not in state:
                found[f"{name}.{signal}"] = table[token : token + 1]
    return found


def implied_tensors(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return tensors that a file lacks, but which follow from others of it: see :func:`missing_signals`.

    Args:
        state: of the file, under the model's names.
        model: its attribute ``copied_names`` maps prefixes of names to the prefixes of the tensors that they copy;
            tensors of ``initial_names`` keep their value.
    """
    own, found = model.state_dict(), missing_signals(state, model)
    for prefix, origin in getattr(model, "copied_names", {}).items():
        if not any(name.startswith(prefix) for name in state):
            names = (name for name in own if name.startswith(prefix))
            sources = {name: origin + name.removeprefix(prefix) for name in names}
            found |= {name: state[source] for name, source in sources.items() if source in state}
    return found | {
        name: own[name] for name in getattr(model, "initial_names", ()) if name in own and name not in state
    }


def halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with floating-point tensors as float16."""
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def read_settings(path: str | Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration keys stored in a weight file: in the metadata of safetensors, in an entry of others.

    Args:
        path: the file.
        content: its content, from :func:`read_checkpoint`.

    Returns:
        values by key, as text in safetensors; empty if the file stores none.
    """
    if _kind(Path(path), _head(Path(path))) == "safetensors":
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    settings = content.get(SETTINGS_ENTRY)
    return dict(settings) if isinstance(settings, Mapping) else {}


def read_checkpoint(path: str | Path, *, data: bool = True, mapped: bool = False) -> dict[str, Any]:
    """Read a complete checkpoint on the CPU, including the optimizer's state and other entries.

    Args:
        data: read the tensors' data. Without them, tensors are on the meta device where the format permits it.
        mapped: map the data of zip archives into memory instead of copying them. While such tensors exist, the file
            may be removed or replaced by another one, but must not be written to. Safetensors are always mapped.

    Raises:
        OvsegError: see :func:`read_state_dict`.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder, not a weight file" if path.is_dir() else "does not exist"
        raise OvsegError(f"the weight file {path} {kind}: check {argument('weights')}")
    head = _head(path)
    if not head:
        raise OvsegError(f"the weight file {path} is empty (0 bytes): download it again")
    for starts, problem in _NOT_WEIGHTS.items():
        if head.lstrip().lower().startswith(starts):
            raise OvsegError(f"{path} {problem}")
    kind, size = _kind(path, head), path.stat().st_size
    try:
        if kind == "safetensors":
            with safe_open(path, framework="pt") as file:
                if data:
                    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
                return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        with path.open("rb") as file:
            if kind == "zip":
                return _as_dict(read_archive(file, size, data, mapped), path)
            return _as_dict((read_legacy if kind == "legacy" else read_plain)(file, size), path)
    except OvsegError:
        raise
    except NeedsCode as error:
        raise OvsegError(
            f"loading {path} would run code, which is refused ({error}): if you trust its source, "
            f"convert it once with `python tools/convert_checkpoint.py {path} OUT.safetensors --trust` and load "
            "OUT.safetensors"
        ) from error
    except Exception as error:  # damaged files raise almost anything
        reason = reason_of(error)
        if isinstance(error, MemoryError) or _NOT_ENOUGH_MEMORY.search(reason):
            raise OvsegError(f"not enough memory to read {path} ({size / 1e9:.1f} GB)") from error
        if kind == "plain" and not head.startswith(b"\x80"):
            raise OvsegError(
                f"{path} is not a weight file (it begins with {head[:12]!r}): check the path, or download it again"
            ) from error
        raise OvsegError(
            f"{path} is truncated or damaged, or not a weight file ({reason}): download or save it again"
        ) from error


def is_plain_pickle(path: Path) -> bool:
    """Return whether a file is a plain pickle: neither safetensors nor written by ``torch.save``."""
    return _kind(path, _head(path)) == "plain"


def _kind(path: Path, head: bytes) -> str:
    """Return "safetensors", "zip", "legacy" (PyTorch before 1.6) or "plain" (any other pickle)."""
    if path.suffix == ".safetensors" or (
        head[8:10] == b'{"' and head[6:8] == b"\0\0"
    ):  # 8 bytes of a length, then JSON
        return "safetensors"
    return "zip" if head.startswith(b"PK") else "legacy" if head.startswith(LEGACY_MAGIC) else "plain"


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(512)
    except OSError as error:
        raise OvsegError(f"cannot read the weight file {path}: {error.strerror}") from error


def _chosen_model(content: Mapping[str, Any], path: str | Path) -> Mapping[str, Any]:
    """Return the innermost dictionary of one model; averages of its weights are used only if there is nothing else."""
    for _ in range(5):
        held = [key for key in (*_HOLDERS, *_AVERAGES) if isinstance(content.get(key), Mapping) and content[key]]
        if not held:
            break
        chosen, *others = held
        if others:
            logger.warning("%s: using the model under %r, not that under %s", path, chosen, ", ".join(others))
        elif chosen in _AVERAGES:
            logger.warning("%s: using the model under %r, there is no other", path, chosen)
        content = content[chosen]
    return content


def _as_dict(content: Any, path: str | Path) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise OvsegError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors: save its state_dict()")
    return dict(content)


def _some(content: Mapping) -> str:
    names = [str(name) for name in content]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "none"


def of_size(name: str, tensor: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    """Return a tensor in the size of the model's, where sizes may differ.

    Mask prompts may be stored once for all patches, (depth, 1, width) (specification, section 5); positions of
    OpenSeg's canvas (D, h, w) may be those of a canvas of another size; positions of OVSegmentor's patches may have a
    first axis of 1.
    """
    if name.endswith("pos_embed") and name in own and tensor.dim() == own[name].dim() + 1 == 3 and len(tensor) == 1:
        return tensor[0]
    if name.endswith("visual.mask_embedding") and name in own and tensor.dim() == 3 and tensor.shape[1] == 1:
        return tensor.expand(-1, own[name].shape[1], -1)
    if name.startswith("position.") and name in own and tensor.shape[:1] == own[name].shape[:1] and tensor.dim() == 3:
        size = own[name].shape[1:]
        return F.interpolate(tensor[None].float(), size, mode="bilinear", align_corners=False)[0].to(tensor.dtype)
    return tensor
