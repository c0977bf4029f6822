"""DETR's transformer: encoder and decoder layers that add positions to queries and keys only.

Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020, arXiv 2005.12872, appendix A.3.
All sequences are batch-first: (B, tokens, C).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class EncoderLayer(nn.Module):
    """Self-attention and a ReLU feed-forward network, post-norm by default."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.linear1 = nn.Linear(dim, feedforward)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(feedforward, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        x = _residual(x, lambda y: attend(self.self_attn, y + position, y + position, y), self.norm1, self)
        return _residual(x, self.feedforward, self.norm2, self)

    def feedforward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.relu(self.linear1(x))))


class DecoderLayer(nn.Module):
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
        def self_attention(y: Tensor) -> Tensor:
            return attend(self.self_attn, y + query_position, y + query_position, y)

        def cross_attention(y: Tensor) -> Tensor:
            return attend(self.multihead_attn, y + query_position, memory + position, memory)

        x = _residual(x, self_attention, self.norm1, self)
        x = _residual(x, cross_attention, self.norm2, self)
        return _residual(x, self.feedforward, self.norm3, self)

    feedforward = EncoderLayer.feedforward


class Encoder(nn.Module):
    """A stack of :class:`EncoderLayer`, with a final LayerNorm when pre-norm."""

    def __init__(self, layers: int, dim: int, pre_norm: bool, **layer):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(dim, pre_norm=pre_norm, **layer) for _ in range(layers))
        self.norm = nn.LayerNorm(dim) if pre_norm else None

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """(B, tokens, C), positions (1 or B, tokens, C) -> (B, tokens, C)."""
        for layer in self.layers:
            x = layer(x, position)
        return x if self.norm is None else self.norm(x)


class Decoder(nn.Module):
    """A stack of :class:`DecoderLayer` whose every output goes through one shared LayerNorm."""

    def __init__(self, layers: int, dim: int, **layer):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dim, **layer) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, memory: Tensor, position: Tensor, query_position: Tensor) -> list[Tensor]:
        """Return the normalised (B, Q, C) output of every layer, the last one last."""
        outputs = []
        for layer in self.layers:
            x = layer(x, memory, position, query_position)
            outputs.append(self.norm(x))
        return outputs


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
        return self.decoder(torch.zeros_like(query_position), memory, position, query_position)


def attend(attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention output without the weights, which lets PyTorch use its fused kernels."""
    return attention(query, key, value, need_weights=False)[0]


def initialise(module: nn.Module) -> None:
    """Xavier-uniform for every weight of more than one dimension, as DETR does."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def _residual(x: Tensor, branch, norm: nn.LayerNorm, layer: EncoderLayer | DecoderLayer) -> Tensor:
    if layer.pre_norm:
        return x + layer.dropout(branch(norm(x)))
    return norm(x + layer.dropout(branch(x)))
