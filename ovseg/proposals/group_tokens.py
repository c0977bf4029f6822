"""``GroupTokens``: the proposer of masks that a vision transformer with learnable group tokens makes of patches.

It is the image encoder of OVSegmentor (Xu et al., CVPR 2023, arXiv 2301.09121), which learns from captions alone::

    image -> patches (N) --+--> blocks --> grouping block --> 8 groups --> blocks --> group features (8, D)
             tokens (64) --+                     |
                                                 +--> assignment of patches to groups (8, N)

Its weights are loaded by their published names. Sections are those of the specification of OVSegmentor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.checkpoint.first_weights import initialise
from ovseg.errors import OvsegError
from ovseg.proposals.group_blocks import Assignment, GroupingBlock, self_attention_block
from ovseg.proposals.views import PROPOSERS, Masks, Part, Views

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # RGB, 0 .. 255
_DETECTRON2_MEAN, _DETECTRON2_STD = [103.53, 116.28, 123.675], [1.0, 1.0, 1.0]  # defaults, of another kind of input


@dataclass(frozen=True)
class Groups:
    """What the encoder finds in B images.

    Attributes:
        assignment: of patches to groups.
        features: (B, K, D), of each group.
        pooled: (B, D), their mean.
        grid: rows and columns of the patches.
    """

    assignment: Assignment
    features: Tensor
    pooled: Tensor
    grid: tuple[int, int]

    def maps(self, size: tuple[int, int]) -> Tensor:
        """Return the soft assignment at a size in pixels, float32 (B, K, height, width), resized bilinearly."""
        maps = self.assignment.soft[:, 0].unflatten(-1, self.grid).float()
        return F.interpolate(maps, size, mode="bilinear", align_corners=False)


class PatchEmbed(nn.Module):
    """Embeds square patches; what is left at the right and the bottom of an image is not seen."""

    def __init__(self, patch_size: int, dim: int, norm: bool = False):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the tokens (B, N, D) of images (B, 3, H, W), and the rows and columns of patches."""
        maps = self.proj(images)
        return self.norm(maps.flatten(2).transpose(1, 2)), tuple(maps.shape[2:])


class Stage(nn.Module):
    """Blocks over patches and group tokens, then the grouping block; without group tokens, blocks alone."""

    def __init__(
        self, blocks: Sequence[nn.Module], group_token: Tensor | None = None, grouping: nn.Module | None = None
    ):
        super().__init__()
        if group_token is not None:
            self.group_token = nn.Parameter(group_token)
        self.blocks = nn.ModuleList(blocks)
        if grouping is not None:
            self.downsample = grouping

    def forward(self, tokens: Tensor) -> tuple[Tensor, Assignment | None]:
        """Return groups, or tokens, (B, *, D), and the assignment of a stage that has groups."""
        if not hasattr(self, "downsample"):
            for block in self.blocks:
                tokens = block(tokens)
            return tokens, None
        count = tokens.shape[1]
        tokens = torch.cat((tokens, self.group_token.expand(len(tokens), -1, -1)), dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.downsample(tokens[:, :count], tokens[:, count:])


class GroupEncoder(nn.Module):
    """Vision transformer whose patches become groups between its two stages (section 2).

    Args:
        img_size, patch_size: sides in pixels of training images and patches, which give the number of positions.
        embed_dim: channels, which each of ``embed_factors`` multiplies for one stage.
        depths, num_heads: blocks, and their heads, of each of the two stages.
        num_group_tokens: of the first stage; the second has none.
        num_output_groups: K.
        hard_assignment: see :class:`ovseg.proposals.group_blocks.Assign`.
        projection: channels of a matrix that the features are multiplied with; 0 for none.

    Raises:
        OvsegError: other than two stages, or numbers that do not fit each other.
    """

    def __init__(
        self,
        *,
        img_size: int = 224,
        patch_size: int = 16,
        embed_dim: int = 768,
        embed_factors: Sequence[int] = (1, 1),
        depths: Sequence[int] = (6, 6),
        num_heads: Sequence[int] = (8, 8),
        num_group_tokens: Sequence[int] = (64, 0),
        num_output_groups: Sequence[int] = (8,),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        patch_norm: bool = False,
        hard_assignment: bool = True,
        projection: int = 0,
    ):
        super().__init__()
        self.img_size, self.patch_size = img_size, patch_size
        first, last = (embed_dim * factor for factor in embed_factors)
        for dim, heads in zip((first, last), num_heads, strict=True):
            if dim % heads:
                raise OvsegError(f"MODEL.OVSEGMENTOR.IMG_ENCODER.NUM_HEADS has {heads}: give divisors of {dim}")
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        blocks = [
            self_attention_block(dim, heads, mlp_ratio, qkv_bias, drop_rate, attn_drop_rate, rate)
            for rate, (dim, heads) in zip(
                rates, [(first, num_heads[0])] * depths[0] + [(last, num_heads[1])] * depths[1], strict=True
            )
        ]
        settings = {"mlp_ratio": mlp_ratio, "qkv_bias": qkv_bias, "hard": hard_assignment, "drop": drop_rate}
        tokens, groups = num_group_tokens[0], num_output_groups[0]
        self.pos_embed = nn.Parameter(torch.zeros((img_size // patch_size) ** 2, first))
        self.patch_embed = PatchEmbed(patch_size, first, patch_norm)
        self.pos_drop = nn.Dropout(drop_rate)
        grouping = GroupingBlock(first, last, num_heads[0], tokens, groups, **settings)
        self.layers = nn.ModuleList(
            [Stage(blocks[: depths[0]], torch.zeros(1, tokens, first), grouping), Stage(blocks[depths[0] :])]
        )
        self.norm = nn.LayerNorm(last)
        self.proj = nn.Parameter(torch.zeros(last, projection)) if projection else None
        self.assign_dim, self.width = first, projection or last  # channels of the assignment, and of the features
        self.apply(initialise)
        for parameter in (self.pos_embed, self.layers[0].group_token):
            nn.init.trunc_normal_(parameter, std=0.02)
        if projection:
            nn.init.normal_(self.proj, std=last**-0.5)

    @classmethod
    def from_keys(cls, keys: CfgNode) -> GroupEncoder:
        """Return the encoder of ``MODEL.OVSEGMENTOR.IMG_ENCODER``."""
        own = ("TYPE", "IMGNET_PRETRAINED", "IMGNET_PRETRAINED_CHECKPOINT", "FIXED")
        settings = {name.lower(): value for name, value in keys.items() if name not in own}
        return cls(**settings, projection=512 if keys.IMGNET_PRETRAINED == "clip" else 0)

    def forward(self, images: Tensor) -> Groups:
        """Encode images (B, 3, H, W), normalised; any size in evaluation, ``img_size`` in training.

        Raises:
            OvsegError: training with images of another size.
        """
        if self.training and tuple(images.shape[2:]) != (self.img_size, self.img_size):
            raise OvsegError(
                f"training images have {images.shape[2]} x {images.shape[3]} pixels: set INPUT.IMG_AUG.IMG_SIZE to "
                f"MODEL.OVSEGMENTOR.IMG_ENCODER.IMG_SIZE, {self.img_size}"
            )
        below = [max(self.patch_size - side, 0) for side in images.shape[2:]]
        if any(below):  # an image of less than a patch
            images = F.pad(images, (0, below[1], 0, below[0]))
        patches, grid = self.patch_embed(images)
        patches = self.pos_drop(patches + self._positions(grid))
        groups, assignment = self.layers[0](patches)
        features = self.norm(self.layers[1](groups)[0])
        pooled = features.mean(dim=1)
        if self.proj is not None:
            features, pooled = features @ self.proj, pooled @ self.proj
        return Groups(assignment, features, pooled, grid)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Return the position embedding of a grid, (N, D), resized unless the grid is that of the training."""
        side = round(len(self.pos_embed) ** 0.5)
        if grid == (side, side):
            return self.pos_embed
        table = self.pos_embed.T.unflatten(1, (side, side))[None]  # (1, D, side, side)
        return F.interpolate(table, grid, mode="bicubic", align_corners=False)[0].flatten(1).T


@PROPOSERS.register()
class GroupTokens(Part):
    """Proposer of K masks that divide an image: each pixel is in the mask of its group, 0 and 1.

    Args:
        img_encoder: the encoder.
        pixel_mean, pixel_std: of its input, RGB, 0 .. 255.
    """

    gives_embeddings: ClassVar[bool] = False

    @configurable
    def __init__(
        self,
        img_encoder: GroupEncoder,
        pixel_mean: Sequence[float] = IMAGENET_MEAN,
        pixel_std: Sequence[float] = IMAGENET_STD,
    ):
        super().__init__()
        self.img_encoder = img_encoder
        self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the arguments of a configuration; Detectron2's default mean and deviation stand for ImageNet's."""
        mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
        if (list(mean), list(std)) == (_DETECTRON2_MEAN, _DETECTRON2_STD):
            mean, std = IMAGENET_MEAN, IMAGENET_STD
        encoder = GroupEncoder.from_keys(cfg.MODEL.OVSEGMENTOR.IMG_ENCODER)
        return {"img_encoder": encoder, "pixel_mean": mean, "pixel_std": std}

    def forward(self, views: Views) -> list[Masks]:
        """Return the masks of each image, float32 (K, H, W)."""
        return [Masks(one_group_per_pixel(self.group_maps(image))) for image in views.images]

    def group_maps(self, image: Tensor) -> Tensor:
        """Return the soft assignment of an image (3, H, W), RGB 0 .. 255, float32 (K, H, W)."""
        return self.img_encoder(self.normalise(image[None])).maps(tuple(image.shape[1:]))[0]

    def normalise(self, images: Tensor) -> Tensor:
        """Return images (B, 3, H, W), RGB 0 .. 255, as the encoder takes them."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.pixel_mean, self.pixel_std))
        return (images - mean) / std


def one_group_per_pixel(maps: Tensor) -> Tensor:
    """Return maps (K, H, W) with 1 for the largest of each pixel, the first among equals, and 0 elsewhere."""
    return torch.zeros_like(maps).scatter_(0, maps.argmax(dim=0, keepdim=True), 1.0)
