"""``MaskedCrops``: the namer that classifies the crop around each mask with CLIP.

OVSeg, arXiv 2210.04150, section 3.1; specification, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.clip.adapter import KEYS, ClipAdapter
from ovseg.clip.vit import embed_patches, encode_masked_image, encode_patches, is_plain_vit
from ovseg.errors import OvsegError, argument_names
from ovseg.io.devices import to_device
from ovseg.naming.scores import NAMERS, Scores, best_synonym
from ovseg.naming.selection import ALL_CROPS, CropSelection
from ovseg.proposals.views import Masks, Part, Views
from ovseg.vocabulary import Vocabulary

BICUBIC_A = -0.75  # PyTorch's bicubic kernel
CROPS_AT_A_TIME = {"cpu": 8, "cuda": 32}


@NAMERS.register()
class MaskedCrops(Part):
    """Namer that encodes the crop of each mask with CLIP, its background filled with one colour or mask prompts.

    The crops of all images of a batch go through CLIP as one stream.

    Args:
        clip_adapter: CLIP.
        mask_fill: "mean" or "zero", the colour behind the masks.
        mask_expand_ratio: factor on the sides of the masks' boxes.
        mask_threshold: probability above which a pixel belongs to a mask. Masks without such a pixel get no scores.
        mask_matting: multiply crops by the mask probability instead of the binary mask.
        mask_crops: fill the background; if False, crops keep it and prompts replace nothing.
        mask_prompts: replace fully masked patches by the prompts of CLIP's image tower.
        crops_at_a_time: crops that CLIP encodes at a time; 0 for :data:`CROPS_AT_A_TIME`.
        selection: which masks are classified; see :class:`CropSelection`.
    """

    explains: ClassVar[str] = "clip"

    def __init__(
        self,
        clip_adapter: ClipAdapter,
        *,
        mask_fill: str = "mean",
        mask_expand_ratio: float = 1.0,
        mask_threshold: float = 0.4,
        mask_matting: bool = False,
        mask_crops: bool = True,
        mask_prompts: bool = False,
        crops_at_a_time: int = 0,
        selection: CropSelection = ALL_CROPS,
    ):
        super().__init__()
        self.clip_adapter = clip_adapter
        self.mask_fill = mask_fill
        self.mask_expand_ratio = mask_expand_ratio
        self.mask_threshold = mask_threshold
        self.mask_matting = mask_matting
        self.mask_crops = mask_crops
        self.mask_prompts = mask_prompts
        self.crops_at_a_time = crops_at_a_time
        self.selection = selection

    @classmethod
    def from_config(cls, cfg: CfgNode, clip_adapter: ClipAdapter) -> MaskedCrops:
        with argument_names(KEYS):
            return cls(clip_adapter, **cls.arguments(cfg))

    @staticmethod
    def arguments(cfg: CfgNode) -> dict[str, Any]:
        """Return the arguments that the configuration holds."""
        adapter = cfg.MODEL.CLIP_ADAPTER
        if adapter.MASK_PROMPT_FWD and adapter.MASK_PROMPT_DEPTH <= 0:
            raise OvsegError(
                "MODEL.CLIP_ADAPTER.MASK_PROMPT_FWD is True but MASK_PROMPT_DEPTH is 0: there are no prompts to use; "
                "set the depth of the checkpoint (3 in the published ones) or MASK_PROMPT_FWD to False"
            )
        return {
            "mask_fill": adapter.MASK_FILL,
            "mask_expand_ratio": adapter.MASK_EXPAND_RATIO,
            "mask_threshold": adapter.MASK_THR,
            "mask_matting": adapter.MASK_MATTING,
            "mask_crops": adapter.MASK_CROPS,
            "mask_prompts": adapter.MASK_PROMPT_FWD,
            "crops_at_a_time": adapter.REGION_CHUNK_SIZE,
            "selection": CropSelection.from_config(cfg),
        }

    def forward(self, views: Views, masks: Sequence[Masks], words: Sequence[Vocabulary | None]) -> list[Scores | None]:
        """Return the scores of each image, see :mod:`ovseg.naming.scores`."""
        asked = [index for index, vocabulary in enumerate(words) if vocabulary is not None]
        seen, rows = rows_with_pixel([masks[index].probabilities for index in asked], self.mask_threshold)
        shown, sources = [], []
        for index, kept in zip(asked, rows, strict=True):
            found = masks[index]
            probabilities = found.probabilities if kept is None else found.probabilities[kept]
            known = found.scores if found.scores is None or kept is None else found.scores[kept]
            sources.append(self.selection(probabilities, self.mask_threshold, known))
            shown.append((index, sources[-1].select(probabilities)))
        scores: list[Scores | None] = [None] * len(words)
        for index, features, of_mask, source in zip(asked, self.features(views, shown), seen, sources, strict=True):
            vocabulary = words[index]
            text = self.clip_adapter.text_matrix(vocabulary.texts, vocabulary.templates)
            logits = best_synonym(self.clip_adapter.similarity(features, text), vocabulary)
            scores[index] = Scores(source.spread(logits[:, :-1].softmax(-1)), of_mask, source.estimated)
        return scores

    def features(self, views: Views, masks: Iterable[tuple[int, Tensor]]) -> list[Tensor]:
        """Encode the crops of masks.

        Args:
            views: the images.
            masks: an image's index and probabilities (V, H, W) of masks of it that have a pixel each.

        Returns:
            For each image CLIP's features, float32 (V, D), not normalised.
        """
        counts: list[int] = []

        def pieces() -> Iterator[tuple[Tensor, ...]]:
            for index, probabilities in masks:
                counts.append(len(probabilities))
                if counts[-1]:
                    yield from self.inputs(views, index, probabilities)

        encoded, clip = [], self.clip_adapter
        for rows in regroup(pieces(), self.chunk_size):
            encoded.append(self.encode(*rows))
        return list((torch.cat(encoded) if encoded else clip.pixel_mean.new_zeros(0, clip.embed_dim)).split(counts))

    def inputs(self, views: Views, index: int, probabilities: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield the arguments of :meth:`encode` for masks (V, H, W) of an image, a few masks at a time.

        Here these are crops (v, 3, S, S), normalised, and their masks (v, 1, S, S); S is CLIP's input resolution.
        """
        image, clip = views.images[index].float(), self.clip_adapter
        mean, std = clip.pixel_mean[0], clip.pixel_std[0]
        fill = mean if self.mask_fill == "mean" else torch.zeros_like(mean)
        for masks, boxes in self.cuts(probabilities):
            yield crop_regions(image, masks, boxes, clip.image_size, mean, std, fill, clip.preprocessing.interpolation)

    def encode(self, *inputs: Tensor) -> Tensor:
        """Return CLIP's features of crops, float32 (v, D), not normalised.

        Args:
            inputs: of v crops, as :meth:`inputs` yields them.
        """
        return self.run_tower(self.clip_adapter.image_tower, *inputs)

    def run_tower(self, visual: nn.Module, crops: Tensor, masks: Tensor) -> Tensor:
        """Compute :meth:`encode` with an image tower."""
        with self.clip_adapter.autocast(crops.device.type):
            if self.mask_prompts:
                features = encode_masked_image(visual, crops, masks)
            elif is_plain_vit(visual):
                features = encode_patches(visual, embed_patches(visual, crops))
            else:
                features = visual(crops)
        return features.float()

    def cuts(self, probabilities: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the maps that crops are cut with, float (v, H, W), and their boxes, int64 (v, 4), a few at a time."""
        for chunk in probabilities.split(self.chunk_size) if len(probabilities) else ():
            binary = chunk > self.mask_threshold
            boxes = expand_boxes(mask_boxes(binary), self.mask_expand_ratio, *binary.shape[1:])
            masks = chunk if self.mask_matting else binary.float()
            yield masks if self.mask_crops else torch.ones_like(masks), boxes

    @property
    def chunk_size(self) -> int:
        """Number of crops that CLIP encodes at a time."""
        device = self.clip_adapter.pixel_mean.device.type
        return self.crops_at_a_time or CROPS_AT_A_TIME.get(device, CROPS_AT_A_TIME["cuda"])


def has_pixel(probabilities: Tensor, threshold: float) -> Tensor:
    """Return which masks (Q, H, W) have a pixel above the threshold, bool (Q,)."""
    return probabilities.flatten(1).amax(1) > threshold


def rows_with_pixel(masks: Sequence[Tensor], threshold: float) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return :func:`has_pixel` of the masks of several images, and which masks these are, by one transfer to the host.

    Args:
        masks: (Q, H, W) of each image.
        threshold: see :func:`has_pixel`.

    Returns:
        for each image bool (Q,), and int64 (V,), None for all masks.
    """
    seen = [has_pixel(of_image, threshold) for of_image in masks]
    if not seen:
        return [], []
    on_host = torch.cat(seen).cpu().split([len(of_image) for of_image in seen])
    rows = [
        None if kept.all() else to_device(kept.nonzero()[:, 0], of_image.device)
        for kept, of_image in zip(on_host, seen, strict=True)
    ]
    return seen, rows


def mask_boxes(masks: Tensor) -> Tensor:
    """Return the bounding boxes of masks, each of which has a pixel.

    Args:
        masks: bool (V, H, W).

    Returns:
        float32 (V, 4): x0, y0, x1, y1 in pixels, x1 and y1 exclusive.
    """
    ends = []
    for occupied in (masks.any(1), masks.any(2)):  # columns (V, W), rows (V, H)
        occupied = occupied.to(torch.uint8)
        ends.append((occupied.argmax(1), occupied.shape[1] - occupied.flip(1).argmax(1)))
    (x0, x1), (y0, y1) = ends
    return torch.stack((x0, y0, x1, y1), dim=1).float()


def expand_boxes(boxes: Tensor, ratio: float, height: int, width: int) -> Tensor:
    """Scale boxes about their centres, truncate corners toward zero and clamp them to the image.

    Args:
        boxes: float (V, 4) as from :func:`mask_boxes`.
        ratio: factor on width and height.

    Returns:
        int64 (V, 4), at least one pixel wide and high.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    centre, half = (low + high) / 2, (high - low) * ratio / 2
    low, high = (centre - half).trunc().long().clamp(min=0), (centre + half).trunc().long()
    sides = []
    for axis, limit in enumerate((width, height)):  # no tensor of both, which would be a transfer to the device
        start = low[:, axis].clamp(max=limit - 1)
        sides.append((start, high[:, axis].clamp(max=limit).maximum(start + 1)))
    (x0, x1), (y0, y1) = sides
    return torch.stack((x0, y0, x1, y1), dim=1)


def crop_regions(
    image: Tensor,
    masks: Tensor,
    boxes: Tensor,
    size: int,
    mean: Tensor,
    std: Tensor,
    fill: Tensor,
    interpolation: str = "bicubic",
) -> tuple[Tensor, Tensor]:
    """Cut, fill, normalise and resize all regions of one image at once.

    Equal to cutting each box, blending ``image * mask + (1 - mask) * fill``, normalising, and resizing with
    PyTorch's interpolation (no antialias, ``align_corners=False``, borders of the box repeated); the mask by nearest
    neighbour. On a GPU this works without any transfer to the host.

    Args:
        image: float (3, H, W), 0 .. 255.
        masks: float (V, H, W), 0 .. 1.
        boxes: int64 (V, 4) x0, y0, x1, y1, exclusive ends.
        size: side S of the result, pixels.
        mean, std, fill: (3, 1, 1), 0 .. 255.
        interpolation: "bicubic" or "bilinear".

    Returns:
        crops float32 (V, 3, S, S) and their masks float32 (V, 1, S, S).
    """
    background = (fill - mean) / std
    resample = resample_each if image.device.type == "cpu" else resample_together
    crops = resample((image - mean) / std - background, masks, boxes, size, interpolation) + background
    return crops, crop_masks(masks, boxes, size)


def resample_each(image: Tensor, masks: Tensor, boxes: Tensor, size: int, interpolation: str = "bicubic") -> Tensor:
    """Return boxes of ``image * mask``, resized one after the other, which is fastest on a CPU; (V, 3, S, S)."""
    crops = image.new_empty(len(masks), len(image), size, size)
    for crop, mask, (x0, y0, x1, y1) in zip(crops, masks, boxes.tolist(), strict=True):
        region = image[:, y0:y1, x0:x1] * mask[y0:y1, x0:x1]
        crop.copy_(F.interpolate(region[None], (size, size), mode=interpolation, align_corners=False)[0])
    return crops


def resample_together(image: Tensor, masks: Tensor, boxes: Tensor, size: int, interpolation: str = "bicubic") -> Tensor:
    """Return the crops of :func:`resample_each`, computed at once without a transfer to the host."""
    regions, width = len(masks), image.shape[2]
    pixels = image.flatten(1).T.contiguous()  # (H*W, 3): one look-up fetches a pixel's three values
    flat_masks = masks.reshape(regions, -1)
    taps = _bicubic_taps if interpolation == "bicubic" else _bilinear_taps
    columns, column_weights = taps(boxes[:, 0], boxes[:, 2], size)  # (V, S, 4 or 2)
    rows, row_weights = taps(boxes[:, 1], boxes[:, 3], size)

    crops = image.new_zeros(regions, size, size, 3)
    for row_tap in range(rows.shape[2]):
        line = torch.zeros_like(crops)
        for column_tap in range(columns.shape[2]):
            index = rows[:, :, None, row_tap] * width + columns[:, None, :, column_tap]  # (V, S, S)
            mask = flat_masks.gather(1, index.flatten(1)).view(index.shape)
            masked = F.embedding(index, pixels).mul_(mask[..., None])  # (V, S, S, 3)
            line.addcmul_(masked, column_weights[:, None, :, column_tap, None])
        crops.addcmul_(line, row_weights[:, :, None, row_tap, None])
    return crops.permute(0, 3, 1, 2)


def crop_masks(masks: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Return the masks in boxes, resized by nearest neighbour: the second result of :func:`crop_regions`."""
    start, length = boxes[:, :2, None], (boxes[:, 2:] - boxes[:, :2])[:, :, None]  # (V, 2, 1), x and y
    nearest = (torch.arange(size, device=boxes.device) * (length.float() / size)).floor().long()
    columns, rows = (start + nearest.minimum(length - 1)).unbind(1)  # (V, S) each
    index = rows[:, :, None] * masks.shape[2] + columns[:, None]  # (V, S, S)
    return masks.flatten(1).gather(1, index.flatten(1)).view(len(masks), 1, size, size)


def regroup(pieces: Iterable[tuple[Tensor, ...]], size: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield the rows of pieces in groups of ``size``; the last group may be smaller.

    Args:
        pieces: tuples of tensors of equal length, consumed lazily.
    """
    waiting: list[list[Tensor]] = []
    count = 0
    for piece in pieces:
        while len(piece[0]):
            room = size - count
            waiting.append([rows[:room] for rows in piece])
            piece = tuple(rows[room:] for rows in piece)
            count += len(waiting[-1][0])
            if count == size:
                yield tuple(map(torch.cat, zip(*waiting, strict=True)))
                waiting, count = [], 0
    if waiting:
        yield tuple(map(torch.cat, zip(*waiting, strict=True)))


def _bicubic_taps(start: Tensor, stop: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return source indices and weights of bicubic resizing [start, stop) to ``size`` samples: (V, size, 4) each."""
    source, length = _centres(start, stop, size)
    first = source.floor()
    t = source - first
    distances = (t + 1, t, 1 - t, 2 - t)
    weights = torch.stack([_cubic_kernel(x, outer=i in (0, 3)) for i, x in enumerate(distances)], dim=2)
    offsets = torch.arange(-1, 3, device=start.device)
    taps = (first.long()[..., None] + offsets).clamp(min=0).minimum(length[..., None] - 1)
    return start[:, None, None] + taps, weights


def _bilinear_taps(start: Tensor, stop: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return source indices and weights of bilinear resizing [start, stop) to ``size`` samples: (V, size, 2) each."""
    source, length = _centres(start, stop, size)
    source = source.clamp(min=0)
    first = source.floor()
    t = source - first
    taps = (first.long()[..., None] + torch.arange(2, device=start.device)).minimum(length[..., None] - 1)
    return start[:, None, None] + taps, torch.stack((1 - t, t), dim=2)


def _centres(start: Tensor, stop: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the centres of ``size`` samples of [start, stop), (V, size), and the lengths, (V, 1)."""
    length = (stop - start)[:, None]
    scale = length.float() / size
    # PyTorch's kernel rounds this product and difference once (fused multiply-add): hence float64
    exact = (scale.cpu() if scale.device.type == "mps" else scale).double()  # MPS has no float64
    return (exact * (torch.arange(size, device=exact.device) + 0.5) - 0.5).float().to(start.device), length


def _cubic_kernel(x: Tensor, outer: bool) -> Tensor:
    """Return Keys' cubic convolution kernel (1981) at distance ``x``: 1 <= x <= 2 if outer, else 0 <= x <= 1."""
    a = BICUBIC_A
    if outer:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return ((a + 2) * x - (a + 3)) * x * x + 1
