"""``ContextCrops``: the namer that classifies masked crops in the context of the whole image.

Contextual shift: the tokens of background patches of the crop are replaced by the class token of the whole image (SCAN,
arXiv 2312.04089, section 3.3; specification, section 8).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from detectron2.config import CfgNode
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from ovseg.clip.adapter import ClipAdapter
from ovseg.clip.vit import Replacement, WholeImages, embed_patches, encode_patches, foreground_patches
from ovseg.errors import OvsegError, argument
from ovseg.io.devices import to_device
from ovseg.naming.crops import MaskedCrops, crop_masks
from ovseg.naming.scores import NAMERS
from ovseg.proposals.views import Views


@NAMERS.register()
class ContextCrops(MaskedCrops):
    """:class:`MaskedCrops` in which part of the background's tokens is replaced by the class token of the whole image.

    Args:
        clip_adapter: CLIP, with its original image tower.
        replace_ratio: part of a crop's background patches that is replaced, in [0, 1].
        replace_layers: numbers of the blocks after which patches are replaced, 1 for the first.
        replace_seed: seed of the random patches; each image has a seed that depends on this number and its pixels.
            Negative: draw from Python's global stream, as the original.
        context_of_first: give all images of a batch the context of the first, as in the original.
        crops: the remaining arguments of :class:`MaskedCrops`.

    Raises:
        OvsegError: a block below 1.
    """

    def __init__(
        self,
        clip_adapter: ClipAdapter,
        *,
        replace_ratio: float = 0.15,
        replace_layers: Sequence[int] = (1, 3, 5, 7, 9),
        replace_seed: int = 0,
        context_of_first: bool = True,
        **crops: Any,
    ):
        super().__init__(clip_adapter, **crops)
        self.replace_ratio = replace_ratio
        self.replace_blocks = shifted_blocks(replace_layers, clip_adapter.original_clip)
        self.replace_seed = replace_seed
        self.context_of_first = context_of_first

    @staticmethod
    def arguments(cfg: CfgNode) -> dict[str, Any]:
        adapter = cfg.MODEL.CLIP_ADAPTER
        if adapter.MASK_PROMPT_FWD:
            raise OvsegError(
                "MODEL.CLIP_ADAPTER.MASK_PROMPT_FWD is True, but crops in context have no mask prompts: set it to False"
            )
        return MaskedCrops.arguments(cfg) | {
            "replace_ratio": adapter.REPLACE_RATIO,
            "replace_layers": adapter.REPLACE_LAYER,
            "replace_seed": adapter.REPLACE_SEED,
            "context_of_first": adapter.CONTEXT_OF_FIRST_IMAGE,
        }

    def inputs(self, views: Views, index: int, probabilities: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield crops (v, 3, S, S), which of their patches are drawn (v, blocks, P), class tokens (v, L + 1, width)."""
        whole = whole_images(views, self.clip_adapter)
        tokens = whole.class_tokens[:, 0 if self.context_of_first else index]  # (L + 1, width)
        drawn = self.draw(probabilities, self.generator(views.requests[index]["image"]))
        crops = super().inputs(views, index, probabilities)
        for (crop, _), which in zip(crops, drawn.transpose(0, 1).split(self.chunk_size), strict=True):
            yield crop, which, tokens.expand(len(crop), -1, -1)

    def run_tower(self, visual: nn.Module, crops: Tensor, drawn: Tensor, class_tokens: Tensor) -> Tensor:
        drawn, class_tokens = drawn.transpose(0, 1), class_tokens.transpose(0, 1)
        with self.clip_adapter.autocast(crops.device.type):
            features = encode_shifted(visual, crops, drawn, class_tokens, self.replace_blocks)
        return features.float()

    def draw(self, probabilities: Tensor, generator: Generator) -> Tensor:
        """Draw the patches to replace of all V masks of an image at once; bool (blocks, V, P)."""
        masks = torch.cat([crop_masks(*cut, self.clip_adapter.image_size) for cut in self.cuts(probabilities)])
        visual = self.clip_adapter.clip_model.visual
        return draw_patches(visual, masks, self.replace_ratio, len(self.replace_blocks), generator)

    def generator(self, image: Tensor) -> Generator:
        """Return the source of an image's draws; with a seed it depends on the pixels' values alone."""
        if self.replace_seed < 0:
            return random
        pixels = image.to("cpu", torch.uint8).contiguous().numpy()
        return random.Random(f"{self.replace_seed} {hashlib.sha256(pixels.tobytes()).hexdigest()}")


def whole_images(views: Views, clip_adapter: ClipAdapter) -> WholeImages:
    """Return the tokens of the whole images in the original CLIP, computed once for each batch."""
    return views.once("whole images", lambda: clip_adapter.encode_whole(views.images, views.divisibility))


class Generator(Protocol):
    """Python's ``random.Random``, or the module ``random`` for the global stream."""

    def sample(self, population: Sequence[int], k: int) -> list[int]: ...


def shifted_blocks(layers: Iterable[int], visual: VisionTransformer) -> tuple[int, ...]:
    """Return the blocks after which tokens are replaced: those of ``layers`` that the tower has, each once, ascending.

    Raises:
        OvsegError: a number below 1.
    """
    layers = sorted(set(layers))
    if layers and layers[0] < 1:
        raise OvsegError(f"{argument('replace_layers')} has {layers[0]}: blocks are numbered from 1")
    return tuple(layer for layer in layers if layer <= len(visual.transformer.resblocks))


def draw(counts: Sequence[int], ratio: float, layers: int, generator: Generator) -> list[list[list[int]]]:
    """Draw background patches without replacement, independently for each layer and region.

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
    """Return a mask of the drawn background patches.

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
    return to_device(drawn, foreground.device).gather(2, number.expand(drawn.shape)) & background


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
