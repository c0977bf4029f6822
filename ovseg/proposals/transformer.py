"""Transformer layers that add positions to queries and keys only.

DETR's encoder and decoder, which MaskFormer uses (Carion et al., "End-to-End Object Detection with Transformers", ECCV
2020, arXiv 2005.12872, appendix A.3), and the same steps as single blocks, of which Mask2Former makes its decoder.
All sequences are batch-first: (B, tokens, C).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class EncoderLayer(nn.Module):
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
        """(B, tokens, C), positions (1 or B, tokens, C) -> (B, tokens, C); ``geometry`` is for :meth:`attention`."""
        x = _residual(x, lambda y: self.attention(y, position, *geometry), self.norm1, self)
        return _residual(x, self.feedforward, self.norm2, self)

    @staticmethod
    def build_attention(dim: int, heads: int, dropout: float) -> nn.Module:
        return nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)

    def attention(self, x: Tensor, position: Tensor) -> Tensor:
        return attend(self.self_attn, x + position, x + position, x)

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


class CrossAttention(nn.Module):
    """Attention of the queries to the image, alone."""

    def __init__(self, dim: int, heads: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)
        self.pre_norm = pre_norm

    def forward(
        self, x: Tensor, memory: Tensor, position: Tensor, query_position: Tensor, allowed: Tensor | None = None
    ) -> Tensor:
        """(B, Q, C), (B, tokens, C) -> (B, Q, C); ``allowed``: see :func:`attend`."""

        def attention(y: Tensor) -> Tensor:
            return attend(self.multihead_attn, y + query_position, memory + position, memory, allowed)

        return _residual(x, attention, self.norm, self)


class SelfAttention(nn.Module):
    """Attention of the queries to each other, alone."""

    def __init__(self, dim: int, heads: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.self_attn = EncoderLayer.build_attention(dim, heads, dropout)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)
        self.pre_norm = pre_norm

    attention = EncoderLayer.attention

    def forward(self, x: Tensor, query_position: Tensor) -> Tensor:
        """(B, Q, C) -> (B, Q, C)."""
        return _residual(x, lambda y: self.attention(y, query_position), self.norm, self)


class FeedForward(nn.Module):
    """The ReLU feed-forward network, alone."""

    def __init__(self, dim: int, feedforward: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.linear1 = nn.Linear(dim, feedforward)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(feedforward, dim)
        self.norm = nn.LayerNorm(dim)
        self.pre_norm = pre_norm

    feedforward = EncoderLayer.feedforward

    def forward(self, x: Tensor) -> Tensor:
        """(B, Q, C) -> (B, Q, C)."""
        return _residual(x, self.feedforward, self.norm, self)


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
        """See :meth:`EncoderLayer.forward`."""
        for layer in self.layers:
            x = layer(x, position, *geometry)
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


def attend(
    attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None
) -> Tensor:
    """Attention output without the weights, by PyTorch's fused kernels.

    Args:
        query: (B, Q, C).
        key, value: (B, tokens, C).
        allowed: bool (B, Q, tokens): what each query may attend to, the same for all heads; None means everything.
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


def initialise(module: nn.Module) -> None:
    """Xavier-uniform for every weight of more than one dimension, as DETR does."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def _residual(x: Tensor, branch, norm: nn.LayerNorm, layer: nn.Module) -> Tensor:
    if layer.pre_norm:
        return x + layer.dropout(branch(norm(x)))
    return norm(x + layer.dropout(branch(x)))
