"""Choice of the PyTorch device, shared by all commands."""

from __future__ import annotations

import logging
import re

import torch

from ovseg.errors import OvsegError

logger = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # by the names of configuration keys


def find_device(name: str, source: str = "MODEL.DEVICE") -> torch.device:
    """Return the device of a name, after checking that PyTorch can compute on it.

    Args:
        name: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, ``"xpu"``, ...
        source: option or key that names it, for messages.

    Raises:
        OvsegError: the device does not exist or is not available; the message lists the available ones.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError) as error:
        raise OvsegError(f"{source}: there is no device {name!r}: this machine has {', '.join(_here())}") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if not _is_here(device):
        found = f" ({torch.cuda.device_count()} CUDA devices are visible)" if device.type == "cuda" else ""
        raise OvsegError(f"{source}: device {name} is not available{found}: this machine has {', '.join(_here())}")
    return device


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device; copied to a GPU from page-locked memory, without waiting for its other work."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def configured_device(configured: str) -> torch.device:
    """Return the device of ``MODEL.DEVICE``; CUDA, the default, falls back to the CPU on machines without it.

    Raises:
        OvsegError: see :func:`find_device`.
    """
    if re.fullmatch(r"cuda(:\d+)?", configured) and not torch.cuda.is_available():
        logger.warning("there is no CUDA device: running on the CPU")
        return torch.device("cpu")
    return find_device(configured)


def _is_here(device: torch.device) -> bool:
    if device.type == "meta":  # it has shapes, and no values
        return False
    if device.type == "cuda":  # no tensor: a process that only starts others must not have CUDA's context
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    try:
        torch.zeros(1, device=device).add_(1).cpu()
    except (RuntimeError, NotImplementedError, AssertionError, ImportError, AttributeError):
        return False
    return True


def _here() -> list[str]:
    """Return the names of the available devices."""
    names = ["cpu"]
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        names += ["cuda"] if count == 1 else [f"cuda:{index}" for index in range(count)]
    others = {"mps": torch.backends.mps, "xpu": getattr(torch, "xpu", None)}
    return names + [name for name, part in others.items() if part is not None and part.is_available()]
