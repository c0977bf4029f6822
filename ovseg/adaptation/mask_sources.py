"""Where the masks of mask-text pairs come from: a segmenter, ground truth, or files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from ovseg.data.caption_files import CaptionedImage
from ovseg.data.worlds import World
from ovseg.errors import OvsegError
from ovseg.io.images import read_image, read_labels


@dataclass(frozen=True)
class Masks:
    """Masks of one image.

    Attributes:
        values: float32 (N, H, W), probabilities or 0 and 1.
        names: N class names, None where a mask has none.
    """

    values: Tensor
    names: tuple[str | None, ...]


class MaskSource(Protocol):
    """Gives the masks of an image; ``threshold`` is the value above which a pixel belongs to a mask."""

    threshold: float

    def __call__(self, item: CaptionedImage, pixels: np.ndarray) -> Masks:
        """Return masks of the size of ``pixels``, uint8 (H, W, 3) RGB; OvsegError if they cannot be read."""


class SegmenterMasks:
    """Proposals of a trained :class:`ovseg.segmenter.Segmenter`."""

    def __init__(self, segmenter: Any):
        self.segmenter = segmenter
        self.threshold = segmenter.model.mask_threshold

    def __call__(self, item: CaptionedImage, pixels: np.ndarray) -> Masks:
        values = self.segmenter.propose(pixels)
        return Masks(values, (None,) * len(values))


class MapMasks:
    """One PNG or TIFF for each image, ``STEM.png`` or with the image's own subfolders.

    Args:
        folder: of the maps.
        image_root: which the images' subfolders are below; None if there are none.
        instances: False: every value but ``ignore_label`` is a mask; True: every value but 0.
        names: class names by value, for label maps.
        ignore_label: value that is no mask.
    """

    threshold = 0.5

    def __init__(
        self, folder: Path, image_root: Path | None, instances: bool, names: Sequence[str] = (), ignore_label: int = 255
    ):
        self.folder, self.image_root = folder, image_root
        self.left_out = 0 if instances else ignore_label
        self.names = tuple(names)

    def __call__(self, item: CaptionedImage, pixels: np.ndarray) -> Masks:
        path = find_beside(self.folder, self.image_root, item.path, (".png", ".tif", ".tiff"))
        labels = fit_map(read_labels(str(path)), pixels, path)
        values = [int(value) for value in np.unique(labels) if value != self.left_out]
        if self.names and values and max(values) >= len(self.names):
            raise OvsegError(f"{path} holds the value {max(values)}, but there are {len(self.names)} label names")
        names = tuple(self.names[value] if self.names else None for value in values)
        return Masks(stack([labels == value for value in values], pixels), names)


class FileMasks:
    """A folder for each image, named after it, with a file for each mask, whose pixels are those that are not black."""

    threshold = 0.5

    def __init__(self, folder: Path, image_root: Path | None):
        self.folder, self.image_root = folder, image_root

    def __call__(self, item: CaptionedImage, pixels: np.ndarray) -> Masks:
        folder = find_beside(self.folder, self.image_root, item.path, ("",))
        files = sorted(folder.glob("*.png"))
        masks = [fit_map(read_image(file).max(axis=2), pixels, file) > 0 for file in files]
        return Masks(stack(masks, pixels), (None,) * len(masks))


class WorldMasks:
    """Ground truth of a world, such as the toy world.

    Args:
        world: whose ground truth.
        records: its dataset dicts.
    """

    threshold = 0.5

    def __init__(self, world: World, records: Sequence[Mapping[str, Any]]):
        self.world, self.records = world, {record["file_name"]: record for record in records}

    def __call__(self, item: CaptionedImage, pixels: np.ndarray) -> Masks:
        regions = self.world.regions(self.records[str(item.path)])
        masks = [fit_map(mask, pixels, item.path) for mask, _ in regions]
        return Masks(stack(masks, pixels), tuple(self.world.class_names[label] for _, label in regions))


def folder_masks(
    folder: Path, kind: str | None, image_root: Path | None, names: Sequence[str], ignore_label: int
) -> MaskSource:
    """Return the source that reads a folder of masks.

    Args:
        kind: one of ``MASK_KINDS`` of :mod:`ovseg.adaptation.mining_options`; None: "files" if the folder has
            subfolders of masks only, else "instances", or "labels" where there are names.

    Raises:
        OvsegError: no such folder.
    """
    if not folder.is_dir():
        raise OvsegError(f"there is no folder of masks {folder}")
    if kind is None:
        maps = any(folder.glob("*.png")) or any(folder.glob("*.tif*"))
        kind = "labels" if names else "instances" if maps else "files"
    if kind == "files":
        return FileMasks(folder, image_root)
    return MapMasks(folder, image_root, kind == "instances", names, ignore_label)


def find_beside(folder: Path, image_root: Path | None, image: Path, suffixes: Sequence[str]) -> Path:
    """Return the file or folder that belongs to an image: with its subfolders, or by its stem alone.

    Raises:
        OvsegError: there is none.
    """
    stems = [folder / image.stem]
    if image_root is not None and image.is_relative_to(image_root):
        stems.insert(0, folder / image.relative_to(image_root).with_suffix(""))
    for stem in stems:
        for suffix in suffixes:
            path = stem.with_name(stem.name + suffix)
            if path.is_dir() if suffix == "" else path.is_file():
                return path
    raise OvsegError(f"{stems[-1]}{suffixes[0] or '/'} is missing: there are no masks of {image}")


def fit_map(labels: np.ndarray, pixels: np.ndarray, path: Path) -> np.ndarray:
    """Resize (h, w) labels to the image's (H, W) by nearest neighbour; maps of another aspect ratio are refused."""
    height, width = pixels.shape[:2]
    if labels.shape == (height, width):
        return labels
    ratio = labels.shape[0] * width / (labels.shape[1] * height)
    if abs(ratio - 1) > 0.02 + 1 / min(height, width):
        raise OvsegError(f"{path} has {labels.shape[1]}x{labels.shape[0]} pixels, which do not fit its image")
    rows = np.arange(height) * labels.shape[0] // height
    columns = np.arange(width) * labels.shape[1] // width
    return labels[rows[:, None], columns]


def stack(masks: Sequence[np.ndarray], pixels: np.ndarray) -> Tensor:
    """Stack bool (H, W) masks to float32 (N, H, W)."""
    if not masks:
        return torch.zeros(0, *pixels.shape[:2])
    return torch.from_numpy(np.stack(masks)).float()


def shrink(pixels: np.ndarray, largest: int) -> np.ndarray:
    """Return an image whose longer side has at most ``largest`` pixels."""
    scale = largest / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
