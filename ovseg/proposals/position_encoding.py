"""Sine position encoding of a feature map (Carion et al., "DETR", ECCV 2020, arXiv 2005.12872, appendix A.4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_position_encoding(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Encode the rows, then the columns, of a height x width grid.

    Indices count from 1 and are divided by the last one (plus 1e-6), then scaled to 2 pi. Each axis gets half
    of the channels: sine at even ones, cosine at odd ones, of frequency 10000 ** (-2 floor(i / 2) / (channels / 2)).

    Returns:
        float32 (1, channels, height, width).
    """
    features = channels // 2
    index = torch.arange(features, dtype=torch.float32, device=device)
    period = 10000 ** (2 * torch.div(index, 2, rounding_mode="floor") / features)

    def encode_axis(length: int) -> Tensor:
        position = torch.arange(1, length + 1, dtype=torch.float32, device=device)
        angle = (position / (position[-1] + 1e-6) * 2 * math.pi)[:, None] / period  # (length, features)
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)

    rows = encode_axis(height)[:, None].expand(-1, width, -1)
    columns = encode_axis(width)[None].expand(height, -1, -1)
    return torch.cat((rows, columns), dim=2).permute(2, 0, 1)[None]
