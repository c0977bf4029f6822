"""Multi-scale deformable attention (Zhu et al., "Deformable DETR", ICLR 2021, arXiv 2010.04159, sections 4.1, A.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ovseg.errors import OvsegError
from ovseg.proposals.deformable_sampling import sample_levels
from ovseg.proposals.transformer import EncoderLayer


@dataclass(frozen=True)
class Pyramid:
    """Coordinates of the pixels of several maps on each of these maps.

    Attributes:
        sizes: (height, width) of each of the L levels, S pixels together.
        x, y: float32 (S, L), the centre of each pixel of each level, in pixels of every level.
    """

    sizes: tuple[tuple[int, int], ...]
    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, int]], device: torch.device | None = None) -> Pyramid:
        """Return the pyramid of maps with these (height, width)."""

        def centres(lengths: Sequence[int]) -> list[Tensor]:
            """Return the centres along one axis, (length, L) for each level."""
            shares = [(torch.arange(n, device=device) + 0.5) / n for n in lengths]
            return [torch.stack([share * length - 0.5 for length in lengths], 1) for share in shares]

        heights, widths = zip(*sizes, strict=True)
        x = [axis.expand(height, -1, -1).flatten(0, 1) for axis, height in zip(centres(widths), heights, strict=True)]
        y = [
            axis[:, None].expand(-1, width, -1).flatten(0, 1)
            for axis, width in zip(centres(heights), widths, strict=True)
        ]
        return cls(tuple(sizes), torch.cat(x), torch.cat(y))


class DeformableAttention(nn.Module):
    """Attention of each query to a few points of each level, near the position of the query.

    Args:
        dim: channels C.
        heads, levels, points: each head of a query attends to ``levels * points`` points.
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int):
        super().__init__()
        if dim % heads:
            raise OvsegError(f"deformable attention: {dim} channels cannot be shared by {heads} heads equally")
        self.heads = heads
        self.levels = levels
        self.points = points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.initialise()

    def initialise(self) -> None:
        """Set equal attention, to points at k pixels in the h-th direction for head h (appendix A.4 of the paper)."""
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack((angle.cos(), angle.sin()), -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)  # onto the square
        steps = torch.arange(1, self.points + 1)
        offsets = (direction[:, None, None] * steps[:, None]).expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        for zero in (self.sampling_offsets.weight, *self.attention_weights.parameters()):
            nn.init.zeros_(zero)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, query: Tensor, value: Tensor, pyramid: Pyramid) -> Tensor:
        """Return the attention output of each query.

        Args:
            query, value: (B, S, C), a token for each pixel of the pyramid.

        Returns:
            (B, S, C).
        """
        grid = (self.heads, self.levels, self.points)
        value = self.value_proj(value).unflatten(-1, (self.heads, -1))  # (B, S, heads, C / heads)
        weights = self.attention_weights(query).unflatten(-1, (self.heads, -1)).softmax(-1).unflatten(-1, grid[1:])
        # half precision is too coarse for coordinates: the sums are in float32
        dx, dy = self.sampling_offsets(query).float().unflatten(-1, (*grid, 2)).unbind(-1)
        x, y = pyramid.x[:, None, :, None] + dx, pyramid.y[:, None, :, None] + dy
        return self.output_proj(sample_levels(value, pyramid.sizes, x, y, weights).flatten(2))


class DeformableEncoderLayer(EncoderLayer):
    """:class:`EncoderLayer` with deformable self-attention; its ``geometry`` is a :class:`Pyramid`."""

    @staticmethod
    def build_attention(dim: int, heads: int, dropout: float, levels: int, points: int) -> nn.Module:
        return DeformableAttention(dim, heads, levels, points)  # it has no dropout of its own

    def attention(self, x: Tensor, position: Tensor, pyramid: Pyramid) -> Tensor:
        return self.self_attn(x + position, x, pyramid)
