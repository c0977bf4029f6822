"""Graphs: a network of a model with its inputs, and a module for each kind of network that is exported.

The modules call the parts of a model, and contain no layers of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ovseg.clip.adapter import ClipAdapter, unit
from ovseg.clip.dense import LAST
from ovseg.clip.dense_towers import DenseTower
from ovseg.clip.vit import look_at_whole
from ovseg.meta_arch.calibration import LookAtClip
from ovseg.naming.crops import MaskedCrops
from ovseg.naming.fused_pixels import FusedPixels
from ovseg.naming.group_embeddings import GroupEmbeddings
from ovseg.naming.region_model import RegionModel, describe
from ovseg.naming.region_words import RegionWords
from ovseg.proposals.group_tokens import GroupTokens
from ovseg.proposals.network import MaskNetwork
from ovseg.proposals.region_queries import RegionQueries

LARGEST = 4096  # of a dynamic axis, in its multiples


@dataclass(frozen=True)
class Axis:
    """An axis of any length.

    Attributes:
        name: axes of one name have one length, up to ``multiple``.
        sizes: two lengths that a graph is checked with, divided by ``multiple``.
        multiple: the length is a multiple of this.
    """

    name: str
    sizes: tuple[int, int]
    multiple: int = 1

    @property
    def text(self) -> str:
        return self.name if self.multiple == 1 else f"{self.multiple}*{self.name}"


@dataclass(frozen=True)
class Input:
    """An input of a graph.

    Attributes:
        shape: lengths, or :class:`Axis`.
        kind: of the random values that a graph is checked with: "normal" float32; "share" float32, a rectangle of
            ones; "bool", one of four is true.
    """

    shape: tuple[int | Axis, ...]
    kind: str = "normal"

    def sizes(self, which: int) -> tuple[int, ...]:
        """Return the first or the second of two shapes; they are equal for fixed ones."""
        return tuple(axis.sizes[which] * axis.multiple if isinstance(axis, Axis) else axis for axis in self.shape)

    def random(self, which: int, generator: torch.Generator) -> Tensor:
        """Return random values of the first or the second shape."""
        sizes = self.sizes(which)
        if self.kind == "bool":
            return torch.rand(sizes, generator=generator) < 0.25
        if self.kind == "normal":
            return torch.randn(sizes, generator=generator)
        masks = torch.zeros(sizes)
        for mask in masks.flatten(0, -3):
            top, left = (int(torch.randint(side // 2 + 1, (), generator=generator)) for side in sizes[-2:])
            mask[top : top + max(1, sizes[-2] // 2), left : left + max(1, sizes[-1] // 3)] = 1
        return masks

    @property
    def described(self) -> dict[str, Any]:
        """Shape and type, for ``export.json``."""
        shape = [axis.text if isinstance(axis, Axis) else axis for axis in self.shape]
        return {"shape": shape, "dtype": "bool" if self.kind == "bool" else "float32"}


@dataclass(frozen=True)
class Graph:
    """A network that is exported.

    Attributes:
        name: of its file.
        module: called with the inputs in their order, it returns one tensor, or a tuple of them.
        inputs: by name.
        outputs: names.
        about: one line, for ``export.json``.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Input]
    outputs: Sequence[str]
    about: str

    def examples(self, which: int) -> tuple[Tensor, ...]:
        """Return random inputs of the first or the second shape, always the same ones."""
        generator = torch.Generator().manual_seed(which)
        return tuple(given.random(which, generator) for given in self.inputs.values())

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...] | None:
        """Return the dynamic axes of the inputs as ``torch.export`` takes them; None if there are none."""
        found: dict[str, Any] = {}

        def dimension(axis: Axis) -> Any:
            if axis.name not in found:
                found[axis.name] = torch.export.Dim(axis.name, min=1, max=LARGEST)
            return found[axis.name] if axis.multiple == 1 else axis.multiple * found[axis.name]

        shapes = tuple(
            {index: dimension(axis) for index, axis in enumerate(given.shape) if isinstance(axis, Axis)}
            for given in self.inputs.values()
        )
        return shapes if found else None


class Cut(nn.Module):
    """Part of a model whose inputs and outputs are tensors.

    Args:
        parts: modules that :meth:`forward` calls; they are attributes of these names.
    """

    def __init__(self, **parts: Any):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.eval()


class MaskCut(Cut):
    """Image (1, 3, H, W), normalised -> mask logits (1, Q, H / 4, W / 4), class embeddings (1, Q, D)."""

    network: MaskNetwork

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        embeddings, logits = self.network.sem_seg_head(self.network.backbone(image))[-1]
        return logits, embeddings


class CropCut(Cut):
    """Crops (N, 3, S, S), normalised, and what the namer replaces of them -> unit vectors (N, D)."""

    namer: MaskedCrops

    def forward(self, crops: Tensor, masks: Tensor) -> Tensor:
        return unit(self.namer.encode(crops, masks))


class PlainCropCut(Cut):
    """:class:`CropCut` of a namer that replaces nothing."""

    namer: MaskedCrops

    def forward(self, crops: Tensor) -> Tensor:
        return unit(MaskedCrops.encode(self.namer, crops, crops))


class ContextCropCut(Cut):
    """:class:`CropCut` of crops in context: (N, 3, S, S), (N, blocks, P), (N, L + 1, width) -> (N, D)."""

    namer: MaskedCrops

    def forward(self, crops: Tensor, drawn: Tensor, class_tokens: Tensor) -> Tensor:
        return unit(self.namer.encode(crops, drawn, class_tokens))


class CalibrationCut(Cut):
    """Class embeddings (1, Q, D), image (1, 3, S, S) -> calibrated ones (1, Q, D), class tokens (L + 1, width)."""

    refine: LookAtClip
    clip_adapter: ClipAdapter

    def forward(self, embeddings: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        clip = self.clip_adapter
        whole = look_at_whole(clip.original_clip, image, clip.original_depths)
        return self.refine.calibrate(embeddings, whole.patches, whole.features), whole.class_tokens[:, 0]


class RegionCut(Cut):
    """Image (1, 3, S, S), valid places (1, S / 4, S / 4) -> mask logits (1, N, h, w), pixel embeddings (1, D, h, w)."""

    proposer: RegionQueries
    namer: RegionWords

    def forward(self, image: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        trunk = self.proposer.trunk
        fused = trunk.pyramid(trunk.backbone(image))
        return self.proposer.decode(fused, valid), self.namer.semantic_branch(fused)


class PixelCut(Cut):
    """Image (1, 3, H, W), normalised -> pixel embeddings (1, D, H / 4, W / 4)."""

    scorer: FusedPixels

    def forward(self, image: Tensor) -> Tensor:
        trunk = self.scorer.trunk
        return self.scorer.branch(trunk.pyramid(trunk.backbone(image)))


class PlaceCut(Cut):
    """Image (1, 3, H, W), normalised -> embeddings of places (D, h, w)."""

    tower: DenseTower

    def __init__(self, tower: DenseTower):
        super().__init__(visual=tower.visual, tower=tower)

    def forward(self, image: Tensor) -> Tensor:
        return self.tower.places(self.tower.maps(image)[LAST][0])


class PooledCut(PlaceCut):
    """Image (1, 3, H, W), normalised; shares of places in masks (V, h, w) -> unit vectors (V, D)."""

    def forward(self, image: Tensor, shares: Tensor) -> Tensor:
        maps = {layer: of_image[0] for layer, of_image in self.tower.maps(image).items()}
        return unit(self.tower.regions(maps, shares))


class MapCut(PlaceCut):
    """Image (1, 3, H, W), normalised -> maps of layers, (C, h, w) each."""

    def __init__(self, tower: DenseTower, layers: Sequence[str]):
        super().__init__(tower)
        self.layers = tuple(layers)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self.tower.maps(image, self.layers)
        return tuple(maps[layer][0] for layer in (LAST, *self.layers))


class TrainedRegionCut(Cut):
    """Masks (V, H, W), unit text embeddings (T, E), three maps of :class:`MapCut` -> logits of texts (V, T)."""

    model: RegionModel

    def __init__(self, model: RegionModel, layers: Sequence[str]):
        super().__init__(model=model)
        self.layers = tuple(layers)

    def forward(self, masks: Tensor, text: Tensor, last: Tensor, first: Tensor, second: Tensor) -> Tensor:
        maps = dict(zip((LAST, *self.layers), (last, first, second), strict=True))
        return self.model(*describe(maps, masks), text)


class GroupCut(Cut):
    """Image (1, 3, H, W), normalised -> assignment (1, K, h, w); unit vectors of groups (K, d), of the image (1, d)."""

    proposer: GroupTokens
    namer: GroupEmbeddings

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        groups = self.proposer.img_encoder(image)
        maps = groups.assignment.soft[:, 0].unflatten(-1, groups.grid)
        project = self.namer.img_projector
        return maps, unit(project(groups.features[0])), unit(project(groups.pooled))
