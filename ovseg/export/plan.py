"""Which graphs a model has, how their results are combined, and which parts are not exported, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ovseg.clip.adapter import ClipAdapter
from ovseg.clip.dense_towers import DenseTower
from ovseg.clip.vit import is_plain_vit
from ovseg.export import graphs as cuts
from ovseg.export.graphs import Axis, Graph, Input
from ovseg.naming import (
    AlignedCrops,
    ContextCrops,
    DenseScores,
    MaskedCrops,
    NativeCrops,
    PooledMap,
    QueryEmbedding,
    TrainedRegions,
)
from ovseg.naming.fused_pixels import FusedPixels
from ovseg.naming.group_pixels import GroupPixels
from ovseg.naming.region_words import RegionWords
from ovseg.proposals.boundary_tree import BoundaryTree
from ovseg.proposals.group_tokens import GroupTokens
from ovseg.proposals.network import MaskNetwork
from ovseg.proposals.region_queries import STRIDE, RegionQueries
from ovseg.proposals.sam import SAM

CROPS = Axis("n", (3, 1))
REGIONS = Axis("v", (5, 2))
TEXTS = Axis("t", (7, 3))
PADS_BY_SIZE = "the padding inside its backbone depends on the size of the image: give --size HxW"
NOT_EXPORTED = {
    BoundaryTree: "regions are merged by NumPy, SciPy and OpenCV, not by a network: give its masks to the runtime",
    SAM: "Segment Anything is a model of transformers, which has exporters of its own: give its masks to the runtime",
    GroupTokens: "OVSegmentor's groups are exported with their namer only (MODEL.META_ARCHITECTURE OVSegmentor)",
    NativeCrops: "crops have sizes of their own, and go through CLIP one at a time: set REGION_RESIZED to True",
    QueryEmbedding: "",  # cosines of embeddings of the proposer's graph
    RegionWords: "",  # likewise
}


@dataclass(frozen=True)
class Size:
    """Height and width of images in graphs.

    Attributes:
        fixed: height and width; None for any.
        usual: the shorter side of images, from which the sizes of checks follow.
    """

    fixed: tuple[int, int] | None
    usual: int

    def sides(self, multiple: int, prefix: str = "") -> tuple[int | Axis, int | Axis]:
        """Return height and width, rounded up to multiples."""
        if self.fixed is not None:
            return tuple(-(-side // multiple) * multiple for side in self.fixed)
        few = max(2, -(-self.usual // multiple))
        more = few + max(1, few // 4)
        return Axis(f"{prefix}h", (few, more), multiple), Axis(f"{prefix}w", (more, few), multiple)

    def whole(self, longer: int, multiple: int) -> Size:
        """Return the size of images whose longer side becomes this number of pixels, see ``resize_whole``."""
        if self.fixed is None:
            return self
        scale = longer / max(self.fixed)
        return Size(tuple(max(multiple, round(side * scale / multiple) * multiple) for side in self.fixed), self.usual)

    def map(self, multiple: int, prefix: str = "") -> tuple[int | Axis, int | Axis]:
        """Return height and width of a map with a place for each multiple of the sides."""
        sides = self.sides(multiple, prefix)
        return tuple(Axis(side.name, side.sizes) if isinstance(side, Axis) else side // multiple for side in sides)


@dataclass(frozen=True)
class Plan:
    """Graphs of a model.

    Attributes:
        graphs: those that are exported.
        left_out: reasons, by the name of the part.
    """

    graphs: tuple[Graph, ...]
    left_out: dict[str, str]


def plan_of(model: nn.Module, size: Size) -> Plan:
    """Return the graphs of a model, and what is not exported."""
    graphs: list[Graph] = []
    left_out: dict[str, str] = {}
    parts = getattr(model, "parts", ())
    for part in parts:
        if size.fixed is None and pads_by_size(part):
            left_out[type(part).__name__] = PADS_BY_SIZE
            continue
        found = list(graphs_of(part, size, parts))
        graphs += found
        kind = next((kind for kind in NOT_EXPORTED if isinstance(part, kind)), None)
        reason = NOT_EXPORTED[kind] if kind else f"no graph is known for {type(part).__name__}"
        if not found and reason:
            left_out[type(part).__name__] = reason
    return Plan(tuple(graphs), left_out)


def pads_by_size(part: nn.Module) -> bool:
    """Return whether a part takes whole images, and has layers whose padding depends on the size of the image."""
    if isinstance(part, (MaskedCrops, RegionQueries, RegionWords)):  # their inputs have one size
        return False
    return any(type(module).__name__ in ("Conv2dSame", "D2SwinTransformer") for module in part.modules())


def graphs_of(part: nn.Module, size: Size, parts: tuple[nn.Module, ...]) -> Iterator[Graph]:
    """Yield the graphs of a proposer, namer or scorer."""
    if isinstance(part, MaskNetwork):
        yield from _of_masks(part, size)
    elif isinstance(part, RegionQueries):
        namer = next((namer for namer in parts if isinstance(namer, RegionWords)), None)
        if namer is not None:
            yield _of_regions(part, namer)
    elif isinstance(part, TrainedRegions):
        yield from _of_trained_regions(part, size)
    elif isinstance(part, PooledMap):
        yield _of_pooled(part, size)
    elif isinstance(part, MaskedCrops) and not isinstance(part, NativeCrops):
        yield _of_crops(part)
    elif isinstance(part, FusedPixels):
        image = Input((1, 3, *size.sides(part.size_divisibility)))
        about = "image, normalised and padded -> embeddings of pixels at stride 4"
        yield Graph("pixels", cuts.PixelCut(scorer=part), {"image": image}, ("embeddings",), about)
    elif isinstance(part, DenseScores) and not (part.key_smoothing > 0):
        image = Input((1, 3, *size.sides(part.tower.stride)))
        about = "image, normalised -> embeddings of places in CLIP's joint space"
        yield Graph("places", cuts.PlaceCut(part.tower), {"image": image}, ("embeddings",), about)
    elif isinstance(part, GroupPixels):
        yield _of_groups(part)


def _of_masks(network: MaskNetwork, size: Size) -> Iterator[Graph]:
    image = Input((1, 3, *size.sides(max(network.size_divisibility, 32))))
    about = "image, normalised and padded -> mask logits at stride 4, class embeddings"
    yield Graph("masks", cuts.MaskCut(network=network), {"image": image}, ("mask_logits", "embeddings"), about)
    if network.refine is None:
        return
    clip: ClipAdapter = network.refine.clip_adapter
    predictor = network.sem_seg_head.predictor
    queries = getattr(predictor, "query_feat", None) or predictor.query_embed
    inputs = {
        "embeddings": Input((1, queries.num_embeddings, clip.embed_dim)),
        "image": Input((1, 3, clip.image_size, clip.image_size)),
    }
    about = "class embeddings; whole image, normalised by CLIP's values -> calibrated embeddings, CLIP's class tokens"
    cut = cuts.CalibrationCut(refine=network.refine, clip_adapter=clip)
    yield Graph("calibration", cut, inputs, ("calibrated", "class_tokens"), about)


def _of_regions(proposer: RegionQueries, namer: RegionWords) -> Graph:
    side = proposer.size_divisibility
    inputs = {
        "image": Input((1, 3, side, side)),
        "valid": Input((1, side // STRIDE, side // STRIDE), "bool"),
    }
    about = "image, normalised and padded; places inside it -> mask logits, embeddings of pixels at stride 4"
    cut = cuts.RegionCut(proposer=proposer, namer=namer)
    return Graph("regions", cut, inputs, ("mask_logits", "embeddings"), about)


def _of_crops(namer: MaskedCrops) -> Graph:
    clip = namer.clip_adapter
    side = clip.image_size
    inputs = {"crops": Input((CROPS, 3, side, side))}
    if isinstance(namer, ContextCrops):
        visual = clip.clip_model.visual
        places, blocks = visual.grid_size[0] * visual.grid_size[1], len(visual.transformer.resblocks)
        inputs["drawn"] = Input((CROPS, len(namer.replace_blocks), places), "bool")
        inputs["class_tokens"] = Input((CROPS, blocks + 1, visual.conv1.out_channels))
        cut: cuts.Cut = cuts.ContextCropCut(namer=namer)
        about = "crops; patches that are replaced; class tokens of the whole image -> unit vectors"
    elif namer.mask_prompts and not isinstance(namer, AlignedCrops) and is_plain_vit(clip.clip_model.visual):
        inputs["masks"] = Input((CROPS, 1, side, side), "share")
        cut, about = cuts.CropCut(namer=namer), "crops; their masks, for the mask prompts -> unit vectors"
    else:
        cut, about = cuts.PlainCropCut(namer=namer), "crops -> unit vectors"
    return Graph("crops", cut, inputs, ("features",), about)


def _of_pooled(namer: PooledMap, size: Size) -> Graph:
    tower: DenseTower = namer.tower
    size = size.whole(namer.size, tower.stride)
    inputs = {
        "image": Input((1, 3, *size.sides(tower.stride))),
        "shares": Input((REGIONS, *size.map(tower.stride)), "share"),
    }
    about = "image, normalised; share of each place that a mask covers -> unit vectors of masks"
    return Graph("pooled", cuts.PooledCut(tower), inputs, ("features",), about)


def _of_trained_regions(namer: TrainedRegions, size: Size) -> Iterator[Graph]:
    tower, layers = namer.tower, namer.layers
    of_masks, size = size.fixed, size.whole(namer.size, tower.stride)
    image = Input((1, 3, *size.sides(tower.stride)))
    names = ("last", *(layer.replace(".", "_") for layer in layers))
    yield Graph("maps", cuts.MapCut(tower, layers), {"image": image}, names, "image, normalised -> maps of layers")
    model = namer.regions
    with torch.no_grad():
        shapes = [tuple(found.shape) for found in cuts.MapCut(tower, layers)(torch.zeros(1, 3, 8 * tower.stride, 32))]
    height, width = (Axis("mask_h", (97, 64)), Axis("mask_w", (64, 97))) if of_masks is None else of_masks
    inputs = {
        "masks": Input((REGIONS, height, width), "share"),
        "text": Input((TEXTS, model.texts.shape[1])),
    }
    for name, (channels, places, _) in zip(names, shapes, strict=True):
        finer = [_scaled(axis, places // 8) for axis in size.map(tower.stride)]
        inputs[name] = Input((channels, *finer))
    about = "masks of the size of the image; text embeddings; maps -> logits of texts"
    yield Graph("regions", cuts.TrainedRegionCut(model, layers), inputs, ("logits",), about)


def _scaled(axis: int | Axis, factor: int) -> int | Axis:
    return Axis(axis.name, axis.sizes, factor) if isinstance(axis, Axis) else axis * factor


def _of_groups(scorer: GroupPixels) -> Graph:
    encoder = scorer.proposer.img_encoder
    height, width = (side or encoder.img_size for side in scorer.window)
    about = "window of an image, normalised -> soft assignment to groups; unit vectors of groups and of the window"
    cut = cuts.GroupCut(proposer=scorer.proposer, namer=scorer.namer)
    outputs = ("assignment", "groups", "image_embedding")
    return Graph("groups", cut, {"image": Input((1, 3, height, width))}, outputs, about)
