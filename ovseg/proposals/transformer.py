"""Transformer layers that add positions to queries and keys only, and the sine encoding of positions.

DETR's encoder and decoder, which MaskFormer uses (Carion et al., "End-to-End Object Detection with Transformers", ECCV
2020, arXiv 2005.12872, appendix A.3), and the same steps as single blocks, of which Mask2Former makes its decoder.
All sequences are batch-first: (B, tokens, C).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """A residual block with dropout, normalised after the sum, or before the branch if ``pre_norm``."""

    dropout: nn.Dropout
    pre_norm: bool

    def enter(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Return the input of a branch."""
        return norm(x) if self.pre_norm else x

    def leave(self, x: Tensor, y: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Add the output ``y`` of a branch to the block's input ``x``."""
        x = x + self.dropout(y)
        return x if self.pre_norm else norm(x)

    def feedforward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.relu(self.linear1(x))))


class EncoderLayer(Block):
    """Self-attention and a ReLU feed-forward network, post-norm by default.

    Args:
        dim: channels C.
        feedforward: inner channels of the feed-forward network.
        attention: what :meth:`build_attention` needs, ``heads`` at least.
    """

    def __init__(self, dim: int, *, feedforward: int, dropout: float, pre_norm: bool, **attention):
        super().__init__()
        self.self_attn = self.build_attention(dim, dropout=dropout, **attention)
        self.linear1 = nn.Linear(dim, feedforward)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(feedforward, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, position: Tensor, *geometry) -> Tensor:
        """Return encoded tokens (B, tokens, C); positions (1 or B, tokens, C), ``geometry`` for :meth:`attention`."""
        x = self.leave(x, self.attention(self.enter(x, self.norm1), position, *geometry), self.norm1)
        return self.leave(x, self.feedforward(self.enter(x, self.norm2)), self.norm2)

    @staticmethod
    def build_attention(dim: int, heads: int, dropout: float) -> nn.Module:
        return nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)

    def attention(self, x: Tensor, position: Tensor) -> Tensor:
        return attend(self.self_attn, x + position, x + position, x)


class DecoderLayer(Block):
    """Self-attention of the queries, cross-attention to the image, and a ReLU feed-forward network."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.linear1 = nn.Linear(dim, feedforward)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(feedforward, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, memory: Tensor, position: Tensor, query_position: Tensor) -> Tensor:
        """Return updated queries (B, Q, C); image and positions (B, tokens, C), positions of the queries (B, Q, C)."""
        y = self.enter(x, self.norm1)
        x = self.leave(x, attend(self.self_attn, y + query_position, y + query_position, y), self.norm1)
        y = self.enter(x, self.norm2)
        x = self.leave(x, attend(self.multihead_attn, y + query_position, memory + position, memory), self.norm2)
        return self.leave(x, self.feedforward(self.enter(x, self.norm3)), self.norm3)


class CrossAttention(Block):
    """Cross-attention of the queries to the image, a block of Mask2Former's decoder."""

    def __init__(self, dim: int, heads: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)
        self.pre_norm = pre_norm

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        position: Tensor | None = None,
        query_position: Tensor | None = None,
        allowed: Tensor | None = None,
    ) -> Tensor:
        """Return updated queries; (B, Q, C), (B, tokens, C) -> (B, Q, C); ``allowed``: see :func:`attend`."""
        query = _sum(self.enter(x, self.norm), query_position)
        return self.leave(x, attend(self.multihead_attn, query, _sum(memory, position), memory, allowed), self.norm)


class SelfAttention(Block):
    """Self-attention of the queries, a block of Mask2Former's decoder."""

    def __init__(self, dim: int, heads: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.self_attn = EncoderLayer.build_attention(dim, heads, dropout)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, query_position: Tensor | None = None) -> Tensor:
        """Return updated queries (B, Q, C)."""
        y = self.enter(x, self.norm)
        placed = _sum(y, query_position)
        return self.leave(x, attend(self.self_attn, placed, placed, y), self.norm)


class FeedForward(Block):
    """ReLU feed-forward network, a block of Mask2Former's decoder."""

    def __init__(self, dim: int, feedforward: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.linear1 = nn.Linear(dim, feedforward)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(feedforward, dim)
        self.norm = nn.LayerNorm(dim)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor) -> Tensor:
        """Return updated queries (B, Q, C)."""
        return self.leave(x, self.feedforward(self.enter(x, self.norm)), self.norm)


class Encoder(nn.Module):
    """A stack of layers, with a final LayerNorm when pre-norm.

    Args:
        layers: how many.
        layer_type: of each, built with ``layer``.
    """

    def __init__(self, layers: int, dim: int, pre_norm: bool, layer_type: type[EncoderLayer] = EncoderLayer, **layer):
        super().__init__()
        self.layers = nn.ModuleList(layer_type(dim, pre_norm=pre_norm, **layer) for _ in range(layers))
        self.norm = nn.LayerNorm(dim) if pre_norm else None

    def forward(self, x: Tensor, position: Tensor, *geometry) -> Tensor:
        """Return the output of all layers; arguments as those of :meth:`EncoderLayer.forward`."""
        for layer in self.layers:
            x = layer(x, position, *geometry)
        return x if self.norm is None else self.norm(x)


class Decoder(nn.Module):
    """A stack of :class:`DecoderLayer` with a shared LayerNorm of the outputs of all layers."""

    def __init__(self, layers: int, dim: int, **layer):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dim, **layer) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)


class Transformer(nn.Module):
    """DETR's encoder (may be empty) and decoder; queries start at zero.

    Args:
        dim: channels C.
        heads, feedforward, dropout, pre_norm: of every layer.
        encoder_layers, decoder_layers: depths.
    """

    def __init__(self, *, dim: int, encoder_layers: int, decoder_layers: int, **layer):
        super().__init__()
        self.encoder = Encoder(encoder_layers, dim, **layer) if encoder_layers else None
        self.decoder = Decoder(decoder_layers, dim, **layer)
        initialise(self)

    def forward(self, features: Tensor, position: Tensor, query_position: Tensor) -> list[Tensor]:
        """Decode the queries.

        Args:
            features: (B, C, h, w).
            position: (1, C, h, w) encoding of the grid.
            query_position: (Q, C) learnt.

        Returns:
            Output (B, Q, C) of every decoder layer, the last one last.
        """
        memory = features.flatten(2).transpose(1, 2)  # (B, h*w, C)
        position = position.flatten(2).transpose(1, 2)
        if self.encoder is not None:
            memory = self.encoder(memory, position)
        query_position = query_position[None].expand(len(features), -1, -1)
        x, outputs = torch.zeros_like(query_position), []
        for layer in self.decoder.layers:
            x = layer(x, memory, position, query_position)
            outputs.append(self.decoder.norm(x))
        return outputs


def attend(
    attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None
) -> Tensor:
    """Compute the output of an attention module by PyTorch's fused kernels, without the attention weights.

    Args:
        query: (B, Q, C).
        key, value: (B, tokens, C).
        allowed: bool (B, Q or 1, tokens): what each query may attend to, the same for all heads; None means everything.
            The module's own call would need a copy for every head, which costs more than the attention.

    Returns:
        (B, Q, C).
    """
    if allowed is None:
        return attention(query, key, value, need_weights=False)[0]
    projections = zip(
        (query, key, value), attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True
    )
    # (B, heads, Q or tokens, C / heads)
    parts = [F.linear(x, w, b).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x, w, b in projections]
    dropout = attention.dropout if attention.training else 0.0
    attended = F.scaled_dot_product_attention(*parts, attn_mask=allowed[:, None], dropout_p=dropout)
    return attention.out_proj(attended.transpose(1, 2).flatten(2))


def _sum(x: Tensor, position: Tensor | None) -> Tensor:
    return x if position is None else x + position


def initialise(module: nn.Module) -> None:
    """Initialise every weight of more than one dimension by Xavier-uniform, as DETR does."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def sine_position_encoding(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Encode the rows, then the columns, of a height x width grid (DETR, appendix A.4).

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
