"""Swin Transformer backbone for dense prediction (Liu et al., "Swin Transformer", ICCV 2021, arXiv 2103.14030)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

STAGE_NAMES = ("res2", "res3", "res4", "res5")


class WindowAttention(nn.Module):
    """Multi-head self-attention inside square windows with a learnt relative position bias (section 3.2).

    Args:
        dim: channels.
        window_size: side of a window in tokens, w.
        num_heads: attention heads.
        qkv_bias: whether the query, key and value projections have a bias.
        qk_scale: factor on the queries; None means ``(dim / num_heads) ** -0.5``.
        attn_drop, proj_drop: dropout probabilities of the attention weights and of the output.
    """

    def __init__(
        self,
        dim: int,
        window_size: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window_size), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the attention output within each window.

        Args:
            x: (B * nW, w * w, C) tokens of all windows, windows of one image next to each other.
            mask: (nW, w * w, w * w) added to the attention logits, or None.

        Returns:
            (B * nW, w * w, C).
        """
        windows, tokens, channels = x.shape
        # (3, B*nW, heads, w*w, C/heads)
        qkv = self.qkv(x).reshape(windows, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.view(tokens, tokens, self.num_heads).permute(2, 0, 1)  # (heads, w*w, w*w)
        if mask is not None:  # all heads of an image's windows side by side: the mask is the same for each image
            bias = (bias + mask[:, None]).flatten(0, 1)  # (nW * heads, w*w, w*w)
            qkv = qkv.reshape(3, -1, len(bias), *qkv.shape[3:])
        dropout = self.attn_drop.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(*qkv, attn_mask=bias[None], dropout_p=dropout, scale=self.scale)
        attended = attended.reshape(windows, self.num_heads, tokens, -1).transpose(1, 2)
        return self.proj_drop(self.proj(attended.reshape(windows, tokens, channels)))


class SwinBlock(nn.Module):
    """Pre-norm block: (shifted) window attention, then an MLP with exact GELU (section 3.2, equation 3)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        shift: int,
        mlp_ratio: float,
        drop: float,
        drop_path: float,
        **attention,
    ):
        super().__init__()
        self.window_size = window_size
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window_size, num_heads, proj_drop=drop, **attention)
        self.drop_path = StochasticDepth(drop_path, mode="row")
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, x: Tensor, shift_mask: Tensor) -> Tensor:
        """Return the block's output (B, H, W, C); ``shift_mask``: see :func:`shifted_window_mask`."""
        batch, height, width, channels = x.shape
        size = self.window_size
        y = F.pad(self.norm1(x), (0, 0, 0, -width % size, 0, -height % size))
        padded_height, padded_width = y.shape[1:3]
        if self.shift:
            y = y.roll((-self.shift, -self.shift), (1, 2))
        # (B, H/w, w, W/w, w, C) -> (B * nW, w * w, C)
        y = y.view(batch, padded_height // size, size, padded_width // size, size, channels)
        y = y.transpose(2, 3).reshape(-1, size * size, channels)
        y = self.attn(y, shift_mask if self.shift else None)
        y = y.view(batch, padded_height // size, padded_width // size, size, size, channels)
        y = y.transpose(2, 3).reshape(batch, padded_height, padded_width, channels)
        if self.shift:
            y = y.roll((self.shift, self.shift), (1, 2))
        x = x + self.drop_path(y[:, :height, :width])
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Mlp(nn.Module):
    """Two linear layers with GELU between; (..., dim) -> (..., dim)."""

    def __init__(self, dim: int, hidden: int, drop: float):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class PatchMerging(nn.Module):
    """Module that halves the resolution by joining 2 x 2 neighbours; (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), 2C)."""

    def __init__(self, dim: int):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        neighbours = (x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2])
        return self.reduction(self.norm(torch.cat(neighbours, -1)))


class SwinStage(nn.Module):
    """The blocks of one resolution, and the merging to the next one (None in the last stage)."""

    def __init__(self, dim: int, depth: int, window_size: int, drop_path: Sequence[float], merge: bool, **block):
        super().__init__()
        self.window_size = window_size
        self.blocks = nn.ModuleList(
            SwinBlock(
                dim,
                window_size=window_size,
                shift=window_size // 2 if index % 2 else 0,
                drop_path=drop_path[index],
                **block,
            )
            for index in range(depth)
        )
        self.downsample = PatchMerging(dim) if merge else None

    def forward(self, x: Tensor) -> Tensor:
        mask = shifted_window_mask(x.shape[1], x.shape[2], self.window_size, x.device)
        for block in self.blocks:
            x = block(x, mask)
        return x


class PatchEmbed(nn.Module):
    """Embedding of non-overlapping patches as tokens; (B, 3, H, W) -> (B, ceil(H/p), ceil(W/p), C)."""

    def __init__(self, patch_size: int, dim: int, norm: bool):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size)
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        image = F.pad(image, (0, -width % self.patch_size, 0, -height % self.patch_size))
        return self.norm(self.proj(image).permute(0, 2, 3, 1))


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(Backbone):
    """Swin-V1 with outputs ``res2`` .. ``res5`` at strides 4 .. 32 (patch size 4).

    Inputs may have any size: maps are padded to whole windows inside each block. Stage outputs are taken before
    merging, each through its own LayerNorm.

    Args:
        pretrain_image_size: side that the absolute position embedding was made for, pixels.
        patch_size: side of a patch, pixels.
        embed_dim: channels E of ``res2``; stage i has E * 2**i.
        depths, num_heads: blocks and attention heads per stage.
        window_size: side of a window, tokens.
        mlp_ratio: hidden width of the MLPs relative to their input.
        qkv_bias, qk_scale: see :class:`WindowAttention`.
        drop_rate, attn_drop_rate, drop_path_rate: dropout of activations and of attention weights, and the
            stochastic depth of the last block (rising linearly from 0).
        absolute_position_embedding, patch_norm: optional parts of the patch embedding.
        norm_indices: stages whose output is normalised; None means all.
        project_dim: channels of the extra feature ``fc`` (LayerNorm and a linear layer on the last stage), or None.
        out_features: names among ``res2`` .. ``res5`` and ``fc``.
    """

    @configurable
    def __init__(
        self,
        *,
        pretrain_image_size: int = 224,
        patch_size: int = 4,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.3,
        absolute_position_embedding: bool = False,
        patch_norm: bool = True,
        norm_indices: Sequence[int] | None = None,
        project_dim: int | None = None,
        out_features: Sequence[str] = STAGE_NAMES,
    ):
        super().__init__()
        channels = [embed_dim * 2**i for i in range(len(depths))]
        self.patch_embed = PatchEmbed(patch_size, embed_dim, patch_norm)
        self.absolute_pos_embed = None
        if absolute_position_embedding:
            side = pretrain_image_size // patch_size
            self.absolute_pos_embed = nn.Parameter(
                nn.init.trunc_normal_(torch.zeros(1, embed_dim, side, side), std=0.02)
            )
        self.pos_drop = nn.Dropout(drop_rate)
        drop_path = np.linspace(0, drop_path_rate, sum(depths)).tolist()
        self.layers = nn.ModuleList(
            SwinStage(
                channels[i],
                depth,
                window_size,
                drop_path[sum(depths[:i]) : sum(depths[: i + 1])],
                merge=i < len(depths) - 1,
                num_heads=num_heads[i],
                mlp_ratio=mlp_ratio,
                drop=drop_rate,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                attn_drop=attn_drop_rate,
            )
            for i, depth in enumerate(depths)
        )
        self.norm_indices = range(len(depths)) if norm_indices is None else tuple(norm_indices)
        for i in self.norm_indices:
            self.add_module(f"norm{i}", nn.LayerNorm(channels[i]))
        if project_dim is not None:
            self.norm = nn.LayerNorm(channels[-1])
            self.fc = nn.Linear(channels[-1], project_dim, bias=False)

        strides = [patch_size * 2**i for i in range(len(depths))]
        self._size_divisibility = strides[-1]
        self._out_features = list(out_features)
        self._out_feature_channels = dict(zip(STAGE_NAMES, channels, strict=False)) | {"fc": project_dim}
        self._out_feature_strides = dict(zip(STAGE_NAMES, strides, strict=False)) | {"fc": strides[-1]}

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        swin = cfg.MODEL.SWIN
        return {
            "pretrain_image_size": swin.PRETRAIN_IMG_SIZE,
            "patch_size": swin.PATCH_SIZE,
            "embed_dim": swin.EMBED_DIM,
            "depths": swin.DEPTHS,
            "num_heads": swin.NUM_HEADS,
            "window_size": swin.WINDOW_SIZE,
            "mlp_ratio": swin.MLP_RATIO,
            "qkv_bias": swin.QKV_BIAS,
            "qk_scale": swin.QK_SCALE,
            "drop_rate": swin.DROP_RATE,
            "attn_drop_rate": swin.ATTN_DROP_RATE,
            "drop_path_rate": swin.DROP_PATH_RATE,
            "absolute_position_embedding": swin.APE,
            "patch_norm": swin.PATCH_NORM,
            "norm_indices": swin.NORM_INDICES,
            "project_dim": swin.PROJECT_DIM if swin.PROJECTION else None,
            "out_features": swin.OUT_FEATURES,
        }

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Compute the feature maps.

        Args:
            image: (B, 3, H, W) normalised.

        Returns:
            For each of ``out_features`` a float tensor (B, C, ceil(H / stride), ceil(W / stride)).
        """
        x = self.patch_embed(image)
        if self.absolute_pos_embed is not None:
            embedding = F.interpolate(self.absolute_pos_embed, x.shape[1:3], mode="bicubic", align_corners=False)
            x = x + embedding.permute(0, 2, 3, 1)
        x = self.pos_drop(x)
        features = {}
        for i, stage in enumerate(self.layers):
            x = stage(x)
            if STAGE_NAMES[i] in self._out_features:
                normed = getattr(self, f"norm{i}")(x) if i in self.norm_indices else x
                features[STAGE_NAMES[i]] = normed.permute(0, 3, 1, 2).contiguous()
            if stage.downsample is not None:
                x = stage.downsample(x)
        if "fc" in self._out_features:
            features["fc"] = self.fc(self.norm(x)).permute(0, 3, 1, 2).contiguous()
        return features

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility


def relative_position_index(window_size: int) -> Tensor:
    """Return the row of the bias table for each pair of tokens in a window; int64 (w * w, w * w)."""
    axis = torch.arange(window_size)
    y, x = (grid.flatten() for grid in torch.meshgrid(axis, axis, indexing="ij"))
    dy = y[:, None] - y[None] + window_size - 1
    dx = x[:, None] - x[None] + window_size - 1
    return dy * (2 * window_size - 1) + dx


def shifted_window_mask(height: int, width: int, window_size: int, device: torch.device) -> Tensor:
    """Return the attention mask of cyclically shifted windows, -100 between tokens that are not neighbours in the map.

    Returns:
        float (nW, w * w, w * w) for the map padded to whole windows.
    """
    shift = window_size // 2
    # After the roll, the last window of an axis has two strips that are not neighbours: before and after the seam.
    rows, columns = (
        (position >= size - window_size).long() + (position >= size - shift).long()
        for size in (height + -height % window_size, width + -width % window_size)
        for position in [torch.arange(size, device=device)]
    )
    region = rows[:, None] * 3 + columns[None]  # (Hp, Wp)
    windows = region.unflatten(0, (-1, window_size)).unflatten(2, (-1, window_size))
    windows = windows.transpose(1, 2).reshape(-1, window_size * window_size)
    return (windows[:, None] != windows[:, :, None]) * -100.0
