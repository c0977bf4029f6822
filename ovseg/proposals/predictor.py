"""Queries -> mask and class embeddings (MaskFormer, arXiv 2107.06278, section 3.3, with OVSeg's open class head)."""

from __future__ import annotations

import itertools

import torch
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.proposals.position_encoding import sine_position_encoding
from ovseg.proposals.transformer import Transformer


class MLP(nn.Module):
    """Linear layers with ReLU between them; (..., in_dim) -> (..., out_dim)."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, layers: int):
        super().__init__()
        widths = [in_dim] + [hidden_dim] * (layers - 1) + [out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def input_projection(in_channels: int, hidden_dim: int, enforce: bool) -> nn.Module:
    """1x1 convolution to the transformer's channels; nothing where they already match, unless enforced."""
    if in_channels == hidden_dim and not enforce:
        return nn.Identity()
    projection = nn.Conv2d(in_channels, hidden_dim, kernel_size=1)
    weight_init.c2_xavier_fill(projection)
    return projection


def mask_logits(mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
    """(B, Q, mask_dim), (B, mask_dim, h, w) -> (B, Q, h, w)."""
    return torch.einsum("bqc,bchw->bqhw", mask_embeddings, mask_features)


class OpenVocabPredictor(nn.Module):
    """Transformer over one feature map; each query gives a mask and an embedding in CLIP's joint space.

    Args:
        in_channels: channels of the feature map.
        hidden_dim: width C of the transformer.
        num_queries: Q.
        embedding_dim, embed_hidden_dim, embed_layers: of the class embedding's MLP.
        mask_dim: channels of the mask features.
        enforce_input_proj: project the input even where its channels already match.
        transformer: the remaining arguments of :class:`Transformer`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        hidden_dim: int,
        num_queries: int,
        embedding_dim: int,
        embed_hidden_dim: int,
        embed_layers: int,
        mask_dim: int,
        enforce_input_proj: bool,
        **transformer,
    ):
        super().__init__()
        self.transformer = Transformer(dim=hidden_dim, **transformer)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.input_proj = input_projection(in_channels, hidden_dim, enforce_input_proj)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)
        self.class_embed = MLP(hidden_dim, embed_hidden_dim, embedding_dim, embed_layers)

    def forward(self, features: Tensor, mask_features: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Predict after every decoder layer, the last one last; in evaluation mode after the last one only.

        Args:
            features: (B, in_channels, h, w).
            mask_features: (B, mask_dim, H / 4, W / 4).

        Returns:
            Per layer the class embeddings (B, Q, embedding_dim), not normalised, and the mask logits
            (B, Q, H / 4, W / 4).
        """
        x = self.input_proj(features)
        position = sine_position_encoding(*x.shape[-2:], x.shape[1], x.device)
        outputs = self.transformer(x, position, self.query_embed.weight)
        if not self.training:
            outputs = outputs[-1:]
        return [(self.class_embed(x), mask_logits(self.mask_embed(x), mask_features)) for x in outputs]
