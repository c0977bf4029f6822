"""Contextual shift: background patches of a crop give way to the class token of the whole image.

SCAN, arXiv 2312.04089, section 3.3; specification, section 8.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor

from ovseg.clip.vit import Replacement, embed_patches, encode_patches, foreground_patches
from ovseg.errors import OvsegError


class Generator(Protocol):
    """Python's ``random.Random``, or the module ``random`` for the global stream."""

    def sample(self, population: Sequence[int], k: int) -> list[int]: ...


@dataclass(frozen=True)
class Context:
    """One image around its crops.

    Attributes:
        class_tokens: (L + 1, width) of the whole image, see :class:`ovseg.clip.whole_image.WholeImages`.
        seed: of this image's draws; None draws from Python's global stream.
    """

    class_tokens: Tensor
    seed: str | None = None

    def generator(self) -> Generator:
        """The source of this image's draws; with a seed it starts anew on each call."""
        return random if self.seed is None else random.Random(self.seed)


def shifted_blocks(layers: Iterable[int], visual: VisionTransformer) -> tuple[int, ...]:
    """The blocks that tokens are replaced after: those of ``layers`` that the tower has, each once, ascending.

    Raises:
        OvsegError: a number below 1.
    """
    layers = sorted(set(layers))
    if layers and layers[0] < 1:
        raise OvsegError(f"MODEL.CLIP_ADAPTER.REPLACE_LAYER has {layers[0]}: blocks are numbered from 1")
    return tuple(layer for layer in layers if layer <= len(visual.transformer.resblocks))


def draw(counts: Sequence[int], ratio: float, layers: int, generator: Generator) -> list[list[list[int]]]:
    """Draw background patches without replacement, afresh for every layer and region.

    Args:
        counts: number of background patches of each region.
        ratio: part of them to draw, rounded down.
        layers: number of layers.
        generator: draws come layer by layer, then region by region, as in the original.

    Returns:
        for each layer and region the drawn numbers, which count the region's background patches row by row.
    """
    return [[generator.sample(range(count), int(ratio * count)) for count in counts] for _ in range(layers)]


def drawn_patches(foreground: Tensor, picks: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """Where the drawn background patches are.

    Args:
        foreground: bool (V, P), see :func:`ovseg.clip.vit.foreground_patches`.
        picks: from :func:`draw`, for the V regions.

    Returns:
        bool (layers, V, P).
    """
    drawn = torch.zeros(len(picks), *foreground.shape, dtype=torch.bool)  # by number, then by place
    for layer, of_layer in zip(drawn, picks, strict=True):
        for row, numbers in zip(layer, of_layer, strict=True):
            row[numbers] = True
    background = ~foreground
    number = (background.cumsum(1) - 1).clamp(min=0)
    return drawn.to(foreground.device).gather(2, number.expand(drawn.shape)) & background


def draw_patches(visual: VisionTransformer, masks: Tensor, ratio: float, layers: int, generator: Generator) -> Tensor:
    """Draw background patches of regions: bool (layers, V, P) for masks float (V, 1, S, S); one host transfer."""
    foreground = foreground_patches(visual, masks)
    counts = (~foreground).sum(1).tolist()
    return drawn_patches(foreground, draw(counts, ratio, layers, generator))


def encode_shifted(
    visual: VisionTransformer, crops: Tensor, drawn: Tensor, class_tokens: Tensor, blocks: Sequence[int]
) -> Tensor:
    """Encode crops; after each of ``blocks`` the drawn patches' tokens are overwritten by the context's class token.

    Foreground patches, patches that were not drawn and the crop's own class token stay. Gradients flow to the tower
    through all that stays.

    Args:
        visual: the tower.
        crops: (V, 3, S, S) normalised.
        drawn: bool (len(blocks), V, P) from :func:`draw_patches`.
        class_tokens: (L + 1, 1, width), one context for all crops, or (L + 1, V, width), each crop's own.
        blocks: ascending, from :func:`shifted_blocks`.

    Returns:
        (V, D) features, not normalised.
    """
    tokens = (class_tokens[block][:, None] for block in blocks)
    replaced = dict(zip(blocks, map(Replacement, drawn, tokens), strict=True))
    return encode_patches(visual, embed_patches(visual, crops), replaced)
