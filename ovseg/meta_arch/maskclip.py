"""MaskCLIP (Zhou et al., ECCV 2022, arXiv 2112.01071) as published: the original's files, and its numbers.

Its vision transformer has CLIP's weights, but another activation (the exact GELU) and epsilon of the norms (1e-6) than
CLIP was trained with. :func:`ovseg.meta_arch.dense_clip.DenseCLIP` is the same method with CLIP as it was trained, for
words and images of any kind; this module is for comparisons with the original (docs/baselines.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ovseg.clip.dense_towers import attend_all
from ovseg.clip.dense_vit import (
    KEY_PART,
    LAST_TOKENS,
    MODES,
    VALUE,
    as_maps,
    pad_to_multiple,
    self_projection,
    value_path,
)
from ovseg.clip.preprocessing import OPENAI
from ovseg.clip.vit import resize_positions
from ovseg.errors import OvsegError, shown
from ovseg.naming.dense import cosine_map, refine

ACTIVATIONS = {"gelu (exact)": nn.GELU, "gelu": nn.GELU}


class MaskCLIP(nn.Module):
    """The published model with a vision transformer; module names are those of its files.

    Args:
        backbone: the transformer.
        decode_head: the projection to the joint space.
        mean, std: of images 0 .. 255, three numbers each.
    """

    def __init__(self, backbone: Transformer, decode_head: LinearHead, mean: Any, std: Any):
        super().__init__()
        self.backbone, self.decode_head = backbone, decode_head
        for name, values in (("pixel_mean", mean), ("pixel_std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None], persistent=False)

    @torch.no_grad()
    def score_map(
        self,
        image: Tensor,
        text: Tensor | None = None,
        key_smoothing: float = 0.0,
        denoising: float = 0.0,
        mode: str = VALUE,
    ) -> Tensor:
        """Return the scores of texts at each patch of an image, padded at the right and the bottom to whole patches.

        Args:
            image: (3, H, W) RGB, 0 .. 255, any dtype.
            text: unit vectors (K, D); None for those of the file.
            key_smoothing: threshold of :func:`ovseg.naming.dense.smooth`; 0 for none.
            denoising: threshold of :func:`ovseg.naming.dense.denoise`; 0 for none.
            mode: one of :data:`ovseg.clip.dense_vit.MODES`.

        Returns:
            float32 (K, h, w): cosines, or probabilities if smoothed.

        Raises:
            OvsegError: the image, the texts or the mode do not fit.
        """
        image = torch.as_tensor(image)
        if image.dim() != 3 or len(image) != 3:
            raise OvsegError(f"image has the shape {list(image.shape)}: give one of shape (3, H, W)")
        if mode not in MODES:
            raise OvsegError(f"mode is {shown(mode)}: choose one of {', '.join(MODES)}")
        text = self.decode_head.texts(text)
        pixels = (image.to(self.pixel_mean.device).float() - self.pixel_mean) / self.pixel_std
        features, keys = self.backbone(pixels[None], mode)
        scores = cosine_map(self.decode_head.proj(features)[0], text)
        return refine(scores, keys[0], key_smoothing, denoising)

    def forward(self, image: Tensor, text: Tensor | None = None, **options: Any) -> Tensor:
        """Return :meth:`score_map`; there is nothing to train."""
        if self.training:
            raise OvsegError("MaskCLIP has nothing to train: call eval() first")
        return self.score_map(image, text, **options)


class Transformer(nn.Module):
    """Vision transformer under the published names: ``ln0`` and ``ln1`` are CLIP's ``ln_pre`` and ``ln_post``."""

    def __init__(
        self, image_size: int, patch: int, width: int, layers: int, heads: int, mlp_ratio: float, eps: float, act: Any
    ):
        super().__init__()
        self.grid = (image_size // patch, image_size // patch)
        self.patch = patch
        norm = partial(nn.LayerNorm, width, eps=eps)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], width))
        self.patch_embed = nn.ModuleDict({"projection": nn.Conv2d(3, width, patch, patch, bias=False)})
        hidden = int(width * mlp_ratio)
        self.layers = nn.ModuleList(Block(norm(), norm(), width, heads, hidden, act()) for _ in range(layers))
        self.ln0, self.ln1 = norm(), norm()

    def forward(self, pixels: Tensor, mode: str = VALUE) -> tuple[Tensor, Tensor]:
        """Return the last features and keys.

        Args:
            pixels: (B, 3, H, W) normalised.
            mode: one of :data:`ovseg.clip.dense_vit.MODES`.

        Returns:
            (B, C, h, w) both.
        """
        last, (x, grid) = self.layers[-1], self.before_last(pixels)
        keys = self_projection(last.attn["attn"], last.ln1(x), KEY_PART)
        if mode == LAST_TOKENS:
            tokens = last(x)
        else:
            tokens = value_path(x, last.ln1, last.attn["attn"], last.ln2, last.ffn, residual=mode == VALUE)
        return as_maps(self.ln1(tokens), grid), as_maps(keys, grid)

    def before_last(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the input of the last block, (B, 1 + P, C) with the class token first, and the grid of patches."""
        patches = self.patch_embed["projection"](pad_to_multiple(pixels, self.patch))
        grid = tuple(patches.shape[2:])
        x = torch.cat((self.cls_token.expand(len(patches), -1, -1), patches.flatten(2).transpose(1, 2)), dim=1)
        x = self.ln0(x + resize_positions(self.pos_embed[0], self.grid, grid))
        for block in self.layers[:-1]:
            x = block(x)
        return x, grid


class Block(nn.Module):
    """Block of the transformer: attention and MLP, each after a norm, with residuals."""

    def __init__(self, norm_1: nn.Module, norm_2: nn.Module, width: int, heads: int, hidden: int, act: nn.Module):
        super().__init__()
        self.ln1, self.ln2 = norm_1, norm_2
        self.attn = nn.ModuleDict({"attn": nn.MultiheadAttention(width, heads, batch_first=True)})
        self.ffn = MLP(width, hidden, act)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, N, C) after the block."""
        y = self.ln1(x)
        x = x + self.attn["attn"](y, y, y, need_weights=False)[0]
        return x + self.ffn(self.ln2(x))


class MLP(nn.Module):
    """Two linear layers, ``layers.0.0`` and ``layers.1``."""

    def __init__(self, width: int, hidden: int, act: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(nn.Sequential(nn.Linear(width, hidden), act), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class LinearHead(nn.Module):
    """Projection of a transformer's features to the joint space, and the text embeddings of a published file.

    Args:
        channels: of the features.
        text_channels: D of the joint space.
        text_categories: number of text embeddings in the file; 0 for none.
    """

    def __init__(self, channels: int, text_channels: int, text_categories: int = 0):
        super().__init__()
        if text_categories:
            self.register_buffer("text_embeddings", torch.zeros(text_categories, text_channels))
        self.proj = nn.Conv2d(channels, text_channels, 1, bias=False)

    def texts(self, given: Tensor | None) -> Tensor:
        """Return text embeddings (K, D), default those of the file, in the dtype and on the device of the model."""
        text, width = getattr(self, "text_embeddings", None) if given is None else given, self.proj.out_channels
        if text is None:
            raise OvsegError("this model has no text embeddings: give text, unit vectors (K, D)")
        text = torch.as_tensor(text)
        if text.dim() != 2 or text.shape[1] != width:
            raise OvsegError(f"text has the shape {list(text.shape)}: give one of shape (K, {width})")
        return text.to(self.proj.weight)


class ConvolutionalHead(nn.Module):
    """Head of the published models with a CLIP ResNet: its attention pooling, as 1 x 1 convolutions.

    Args:
        channels: C of the features.
        text_channels: D of the joint space.
        heads: of the attention.
    """

    def __init__(self, channels: int, text_channels: int, heads: int):
        super().__init__()
        self.heads = heads
        for name in ("q_proj", "k_proj", "v_proj"):
            self.add_module(name, nn.Conv2d(channels, channels, 1))
        self.c_proj = nn.Conv2d(channels, text_channels, 1)

    @torch.no_grad()
    def score_map(
        self,
        features: Tensor,
        text: Tensor,
        key_smoothing: float = 0.0,
        denoising: float = 0.0,
        attention_pooling: bool = False,
    ) -> Tensor:
        """Return the scores of texts at each place of the last feature map of a ResNet.

        Args:
            features: (C, h, w).
            text: unit vectors (K, D).
            key_smoothing, denoising: see :meth:`MaskCLIP.score_map`.
            attention_pooling: the whole attention, without position embeddings, in place of its values alone.

        Returns:
            float32 (K, h, w): cosines, or probabilities if smoothed.
        """
        features = features[None]
        values = self.v_proj(features)
        if attention_pooling:
            values = attend_all(features, self.q_proj, self.k_proj, self.v_proj, self.heads)
        scores = cosine_map(self.c_proj(values)[0], text)
        return refine(scores, self.k_proj(features)[0], key_smoothing, denoising)


def build_maskclip(arch: Mapping[str, Any]) -> MaskCLIP:
    """Return the published model, with random weights, in evaluation mode; :func:`load_weights` reads its files.

    Args:
        arch: ``vit``: ``image_size``, ``patch``, ``width``, ``layers``, ``heads``, and optionally ``mlp_ratio`` (4),
            ``layer_norm_eps`` (1e-6) and ``activation`` ("gelu (exact)"); ``text_channels``, dimension D of the joint
            space; optionally ``text_categories``, the number of text embeddings in the file (0), ``pixel_mean`` and
            ``pixel_std``, 0 .. 255 (those of CLIP). Other keys are ignored.

    Raises:
        OvsegError: a key is missing or its value cannot be used.
    """
    if not isinstance(arch, Mapping):
        raise OvsegError(f"arch is {shown(arch)}: give a dict of the sizes of MaskCLIP's vision transformer")
    vit = arch.get("vit")
    needed = ("image_size", "patch", "width", "layers", "heads")
    absent = [f"vit.{key}" for key in needed if not isinstance(vit, Mapping) or key not in vit]
    if absent := absent + [key for key in ("text_channels",) if key not in arch]:
        raise OvsegError(f"arch lacks {', '.join(absent)}: give the sizes of MaskCLIP's vision transformer")
    activation = vit.get("activation", "gelu")
    if activation not in tuple(ACTIVATIONS):
        raise OvsegError(f"arch vit.activation is {shown(activation)}: give gelu (exact), or use DenseCLIP")
    sizes = {key: vit[key] for key in needed}
    wrong = [key for key, value in sizes.items() if type(value) is not int or value < 1]
    if wrong or vit["width"] % vit["heads"]:
        key = wrong[0] if wrong else "width"
        what = "a whole number from 1" if wrong else f"a multiple of vit.heads, {vit['heads']}"
        raise OvsegError(f"arch vit.{key} is {shown(vit[key])}: give {what}")
    mean, std = ([255 * value for value in values] for values in (OPENAI.mean, OPENAI.std))
    try:
        backbone = Transformer(
            **sizes,
            mlp_ratio=vit.get("mlp_ratio", 4),
            eps=vit.get("layer_norm_eps", 1e-6),
            act=ACTIVATIONS[activation],
        )
        head = LinearHead(vit["width"], arch["text_channels"], arch.get("text_categories", 0))
        return MaskCLIP(backbone, head, arch.get("pixel_mean", mean), arch.get("pixel_std", std)).eval()
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise OvsegError(f"arch has a value that cannot be used ({error}): see build_maskclip") from error
