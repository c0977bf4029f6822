"""Attention between tokens and groups: the parts of OVSegmentor's image encoder and of its decoder of entities.

Sections are those of the specification of OVSegmentor. LayerNorms have eps 1e-5, GELU is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F


class CrossAttention(nn.Module):
    """Multi-head attention of queries to other tokens, with separate projections."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, attn_drop: float = 0.0, drop: float = 0.0):
        super().__init__()
        self.num_heads, self.attn_drop = num_heads, attn_drop
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim, bias=qkv_bias) for _ in range(3))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Return what the queries (B, Q, D) gather from the tokens (B, N, D), (B, Q, D)."""
        heads = (
            linear(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, *, D / heads)
            for linear, x in ((self.q_proj, queries), (self.k_proj, tokens), (self.v_proj, tokens))
        )
        found = F.scaled_dot_product_attention(*heads, dropout_p=self.attn_drop if self.training else 0.0)
        return self.proj_drop(self.proj(found.transpose(1, 2).flatten(2)))


class CrossBlock(nn.Module):
    """Cross attention without norms of its inputs, an MLP with one, and a last norm (section 2.4, step 3)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0, qkv_bias: bool = True, drop: float = 0.0):
        super().__init__()
        self.attn = CrossAttention(dim, num_heads, qkv_bias, drop=drop)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop)
        self.norm_post = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Return the updated queries (B, Q, D)."""
        queries = queries + self.attn(queries, tokens)
        return self.norm_post(queries + self.mlp(self.norm2(queries)))


@dataclass(frozen=True)
class Assignment:
    """How N patches are assigned to K groups in B images.

    Attributes:
        raw: (B, 1, K, N), scaled scores, without noise.
        soft: (B, 1, K, N), softmax of ``raw`` over the groups.
        hard: (B, 1, K, N), the assignment that was used: 0 and 1 up to rounding, with noise in training.
        q, k: (B, 1, K, D) and (B, 1, N, D), projected groups and patches.
    """

    raw: Tensor
    soft: Tensor
    hard: Tensor
    q: Tensor
    k: Tensor


class Assign(nn.Module):
    """Attention of one head in which groups compete for patches (section 2.4, step 4).

    In training, Gumbel noise is added to the scores. Hard assignments have the gradient of soft ones (straight-through
    estimator, Jang et al., arXiv 1611.01144).

    Args:
        hard: each patch belongs to one group; False for the softmax over the groups.
    """

    def __init__(self, dim: int, qkv_bias: bool = True, hard: bool = True):
        super().__init__()
        self.scale, self.hard = dim**-0.5, hard
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim, bias=qkv_bias) for _ in range(3))
        self.proj = nn.Linear(dim, dim)

    def sample_gumbel(self, raw: Tensor) -> Tensor:
        """Return independent Gumbel(0, 1) noise of the shape of ``raw``."""
        return -torch.empty_like(raw).exponential_().clamp_min(torch.finfo(raw.dtype).tiny).log()

    def forward(self, groups: Tensor, patches: Tensor) -> tuple[Tensor, Assignment]:
        """Return the pooled patches of each group, (B, K, D), and the assignment.

        A group with n patches has the sum of their values over n + 1.

        Args:
            groups: (B, K, D).
            patches: (B, N, D).
        """
        q, k, v = self.q_proj(groups), self.k_proj(patches), self.v_proj(patches)
        raw = q @ k.transpose(1, 2) * self.scale  # (B, K, N)
        soft = raw.softmax(dim=1)
        used = (raw + self.sample_gumbel(raw.detach()[:, None])[:, 0]).softmax(dim=1) if self.training else soft
        if self.hard:
            one_hot = torch.zeros_like(used).scatter_(1, used.argmax(dim=1, keepdim=True), 1.0)
            used = one_hot - used.detach() + used
        weights = used / (used.sum(dim=2, keepdim=True) + 1.0)
        return self.proj(weights @ v), Assignment(*(x[:, None] for x in (raw, soft, used, q, k)))


class GroupingBlock(nn.Module):
    """Pools patches into groups that learnable tokens ask for (section 2.4).

    Args:
        dim, out_dim: channels of patches, and of groups.
        num_heads: of the cross attention.
        num_tokens, num_groups: learnable tokens, and groups that an MLP over the tokens makes of them.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        num_heads: int,
        num_tokens: int,
        num_groups: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        hard: bool = True,
        drop: float = 0.0,
    ):
        super().__init__()
        self.norm_tokens = nn.LayerNorm(dim)
        self.mlp_inter = Mlp(num_tokens, dim // 2, num_groups)
        self.norm_post_tokens = nn.LayerNorm(dim)
        self.norm_x = nn.LayerNorm(dim)
        self.pre_assign_attn = CrossBlock(dim, num_heads, mlp_ratio, qkv_bias, drop)
        self.assign = Assign(dim, qkv_bias, hard)
        self.norm_new_x = nn.LayerNorm(dim)
        self.mlp_channels = Mlp(dim, int(dim * mlp_ratio), out_dim, drop=drop)
        same = dim == out_dim
        self.reduction = (
            nn.Identity() if same else nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, out_dim, bias=False))
        )

    def forward(self, patches: Tensor, tokens: Tensor) -> tuple[Tensor, Assignment]:
        """Return the groups (B, K, out_dim) and the assignment of patches (B, N, dim) by tokens (B, T, dim)."""
        patches = self.norm_x(patches)
        queries = self.mlp_inter(self.norm_tokens(tokens).transpose(1, 2)).transpose(1, 2)  # (B, K, dim)
        queries = self.pre_assign_attn(self.norm_post_tokens(queries), patches)
        pooled, assignment = self.assign(queries, patches)
        groups = pooled + queries
        return self.reduction(groups) + self.mlp_channels(self.norm_new_x(groups)), assignment


def self_attention_block(
    dim: int,
    num_heads: int,
    mlp_ratio: float = 4.0,
    qkv_bias: bool = True,
    drop: float = 0.0,
    attn_drop: float = 0.0,
    drop_path: float = 0.0,
) -> Block:
    """Return a block of a vision transformer with norms before attention and MLP (section 2.2)."""
    return Block(
        dim,
        num_heads,
        mlp_ratio,
        qkv_bias=qkv_bias,
        proj_drop=drop,
        attn_drop=attn_drop,
        drop_path=drop_path,
        norm_layer=nn.LayerNorm,
    )
