"""``LookAtClip``: semantic-assisted calibration of class embeddings (SCAN, arXiv 2312.04089, section 3.2).

Specification, section 7. Names of parameters are those of the published checkpoints.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.clip.adapter import KEYS, ClipAdapter, unit
from ovseg.errors import OvsegError, argument, argument_names
from ovseg.naming.contextual_shift import whole_images
from ovseg.proposals.views import Part, Views

HEADS = 8
BLOCKS = 5


class LookAtClip(Part):
    """Calibration of class embeddings by the tokens of the whole image in the original CLIP.

    Class embeddings attend to the patch tokens, enhanced in the frequency domain; the image feature is added.

    Args:
        clip_adapter: CLIP, with its original image tower and the depths of the patch tokens.
        frequency_sigmas: width of the frequency filter for each of these depths.
        feedforward: width between the two linear layers of the lightweight transformer's blocks.

    Raises:
        OvsegError: the numbers of widths and depths differ, or the heads cannot share CLIP's dimension.
    """

    def __init__(self, clip_adapter: ClipAdapter, frequency_sigmas: Sequence[float], feedforward: int = 2048):
        super().__init__()
        depths, dim = clip_adapter.original_depths, clip_adapter.embed_dim
        if not depths or len(frequency_sigmas) != len(depths) or min(frequency_sigmas) <= 0:
            raise OvsegError(
                f"{argument('frequency_sigmas')} is {list(frequency_sigmas)}: give one positive number for each of "
                f"{argument('original_depths')} {list(depths)}"
            )
        if dim % HEADS:
            raise OvsegError(
                f"CLIP {clip_adapter.source.name} has embeddings of {dim} dimensions, which {HEADS} attention heads "
                f"cannot share: choose a CLIP whose dimension is a multiple of {HEADS}"
            )
        visual = clip_adapter.original_clip
        width = visual.conv1.out_channels
        self.clip_adapter = clip_adapter
        self.learnable_weight = nn.Parameter(torch.tensor([0.1]))
        self.LFM = LFM(width, visual.grid_size, frequency_sigmas)
        self.oriclip_mlp = nn.Sequential(OrderedDict(fc1=nn.Linear(width, dim), fc2=nn.Linear(dim, dim)))
        self.fusion_decoder = FusionDecoder(dim)
        self.lightweight_transformer = LightweightTransformer(dim, feedforward)

    @classmethod
    def from_config(cls, cfg: CfgNode, clip_adapter: ClipAdapter) -> LookAtClip:
        with argument_names(KEYS | {"frequency_sigmas": "MODEL.FREQUENCY_SIGMA"}):
            return cls(clip_adapter, cfg.MODEL.FREQUENCY_SIGMA, cfg.MODEL.SCAN_FEEDFORWARD)

    def forward(self, embeddings: Tensor, views: Views) -> Tensor:
        """Return calibrated class embeddings, each independent of the others; (B, N, D) -> (B, N, D)."""
        whole = whole_images(views, self.clip_adapter)
        return self.calibrate(embeddings, whole.patches, whole.features)

    def calibrate(self, embeddings: Tensor, patches: Tensor, features: Tensor) -> Tensor:
        """Return calibrated class embeddings (B, N, D) from those of :class:`ovseg.clip.vit.WholeImages`."""
        enhanced = self.LFM(patches)  # (B, levels, width, g, g)
        memory = self.oriclip_mlp(enhanced.flatten(3).transpose(2, 3).flatten(1, 2))  # (B, levels * g * g, D)
        image = self.learnable_weight * unit(features)[:, None]  # (B, 1, D)
        return self.lightweight_transformer(self.fusion_decoder(embeddings, memory) + image)


class LFM(nn.Module):
    """Low-frequency enhancement module: adds to feature maps their filtered version.

    The filter is centred on the middle of an unshifted spectrum, as in the original: it damps the highest frequencies
    most, and a wide filter also damps the mean (specification, section 7.2).

    Args:
        channels: V of the maps.
        grid: sides (g, g) of the maps.
        sigmas: width of each level's filter.
    """

    def __init__(self, channels: int, grid: tuple[int, int], sigmas: Sequence[float]):
        super().__init__()
        self.conv1 = nn.Conv2d(2 * channels, 2 * channels, kernel_size=1)
        self.conv2 = nn.Conv2d(2 * channels, 2 * channels, kernel_size=1)
        y, x = (torch.arange(side) - side // 2 for side in grid)
        squares = y[:, None] ** 2 + x**2
        keep = torch.stack([1 - torch.exp(-squares / (2 * sigma**2)) for sigma in sigmas])
        self.register_buffer("keep", keep[:, None], persistent=False)  # (levels, 1, g, g)

    def forward(self, x: Tensor) -> Tensor:
        """Return enhanced maps, float32 also under autocast; (B, levels, V, g, g) -> (B, levels, V, g, g)."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            spectrum = torch.fft.fft2(x) * self.keep
            parts = torch.cat((spectrum.real, spectrum.imag), dim=2).flatten(0, 1)  # (B * levels, 2V, g, g)
            parts = self.conv2(F.relu(self.conv1(parts))).unflatten(0, x.shape[:2])
            real, imaginary = parts.chunk(2, dim=2)
            return x + torch.fft.ifft2(torch.complex(real, imaginary)).real


class FusionDecoder(nn.Module):
    """Stack of cross-attention layers, without self-attention of the queries (specification, section 7.4)."""

    def __init__(self, dim: int):
        super().__init__()
        self.multiattn = nn.ModuleList(nn.MultiheadAttention(dim, HEADS, batch_first=True) for _ in range(BLOCKS))
        self.ln = nn.ModuleList(nn.LayerNorm(dim) for _ in range(BLOCKS - 1))

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Return updated queries; queries (B, Q, D), memory (B, M, D) -> (B, Q, D)."""
        for attention, norm in zip(self.multiattn, (*self.ln, nn.Identity()), strict=True):
            queries = norm(queries + attention(queries, memory, memory, need_weights=False)[0])
        return queries


class LoneEncoderLayer(nn.Module):
    """PyTorch's ``TransformerEncoderLayer`` (post-norm, ReLU) for sequences of one element.

    Attention over one element returns the value of that element for any queries and keys, so these are not computed;
    their weights keep their names and have no effect.

    Args:
        dim: D.
        feedforward: width between the two linear layers.
        dropout: of attention weights, of the attention's result, and in the feed-forward part.
    """

    def __init__(self, dim: int, feedforward: int, dropout: float = 0.1):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, HEADS)  # its parameters; its forward is not called
        self.linear1 = nn.Linear(dim, feedforward)
        self.linear2 = nn.Linear(feedforward, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for each row; (..., D) -> (..., D)."""
        x = self.norm1(x + self.dropout(self._attend(x)))
        return self.norm2(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x))))))

    def _attend(self, x: Tensor) -> Tensor:
        attention, dim = self.self_attn, x.shape[-1]
        value = F.linear(x, attention.in_proj_weight[2 * dim :], attention.in_proj_bias[2 * dim :])
        weight = self.dropout(value.new_ones(*value.shape[:-1], HEADS, 1))  # a head's attention to the one element
        return attention.out_proj((value.unflatten(-1, (HEADS, -1)) * weight).flatten(-2))


class LightweightTransformer(nn.Module):
    """Transformer encoder with each query as a sequence of its own, as in the original (specification, section 7.5)."""

    def __init__(self, dim: int, feedforward: int = 2048):
        super().__init__()
        self.layers = nn.ModuleList(LoneEncoderLayer(dim, feedforward) for _ in range(BLOCKS))

    def forward(self, x: Tensor) -> Tensor:
        """Return the encoder's output for each row; (..., D) -> (..., D)."""
        for layer in self.layers:
            x = layer(x)
        return x
