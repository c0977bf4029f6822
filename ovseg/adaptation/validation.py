"""Zero-shot naming of masked crops, the check after each epoch of fine-tuning (specification 12.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from detectron2.utils import comm
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ovseg.adaptation.crops import filled, squash
from ovseg.adaptation.image_root import find_image_root
from ovseg.adaptation.pair_list import PairList
from ovseg.clip.preprocessing import OPENAI, Preprocessing
from ovseg.data.worlds import World, find_world
from ovseg.errors import OvsegError
from ovseg.evaluation.top_hits import TopHits
from ovseg.io.images import read_image

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_CROPS_AT_A_TIME = 64
Region = tuple[np.ndarray, int]  # mask, bool (H, W), and class number


class Regions(Protocol):
    """Images with the masks of their named regions."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, Sequence[Region]]:
        """Return an image, uint8 (H, W, 3) RGB, and its regions; OvsegError if it cannot be read."""

    def find_images(self, root: str | None) -> list[Path]:
        """Return the whole image of each, in the folder ``root`` where that has to be known."""


@dataclass(frozen=True)
class Crops(Dataset):
    """The crops of regions as at inference.

    Items are the crops of an image float32 (m, 3, S, S), normalised, their masks uint8 (m, 1, S, S) and classes int64
    (m,); or an OvsegError.

    Attributes:
        regions: of each image.
        size: side S of CLIP's input, pixels.
        preprocessing: of the CLIP.
    """

    regions: Regions
    size: int
    preprocessing: Preprocessing = OPENAI

    def __len__(self) -> int:
        return len(self.regions)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor] | OvsegError:
        try:
            image, regions = self.regions[index]
        except OvsegError as error:
            return error
        crops, masks = [], []
        for mask, _ in regions:
            # an image that is all background is shown as it is
            mask = mask if mask.any() else np.ones_like(mask)
            rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
            box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
            crop, inside = filled(image[box], mask[box], self.preprocessing.fill, self.preprocessing)
            crop, inside = squash(crop, inside, (0, 0, *inside.shape[1:]), self.size, self.preprocessing.interpolation)
            crops.append(crop)
            masks.append(inside)
        return torch.stack(crops), torch.stack(masks), torch.tensor([label for _, label in regions])


@dataclass(frozen=True)
class ValidationSet:
    """Masked crops with their names.

    Attributes:
        class_names: K names.
        crops: items as of :class:`Crops`, or with other inputs before the classes.
        groups: name of a group -> its class numbers, for results of their own.
    """

    class_names: Sequence[str]
    crops: Dataset
    groups: dict[str, Sequence[int]] = field(default_factory=dict)


def validation_set(name: str, size: int, preprocessing: Preprocessing = OPENAI) -> ValidationSet:
    """Return the val split of a world, such as ``toy``, or a folder with one folder of filled crops for each class.

    Args:
        name: of a world, or the path of the folder; class names are its folders' names, with spaces for underscores.
        size: side of CLIP's input, pixels.
        preprocessing: of the CLIP.

    Raises:
        OvsegError: no such folder, or no crops in it.
    """
    world = find_world(name)
    if world is not None and name == world.name:
        base = len(world.base_classes)
        groups = {"base": range(base), "novel": range(base, len(world.class_names))}
        return ValidationSet(world.class_names, Crops(_WorldRegions(world), size, preprocessing), groups)
    folder = Path(name)
    classes = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    rows = [
        (file, str(number))
        for number, path in enumerate(classes)
        for file in sorted(path.iterdir())
        if file.suffix.lower() in _SUFFIXES
    ]
    if not rows:
        raise OvsegError(f"--val {folder} holds no crops: give 'toy', or a folder with one folder of crops per class")
    regions = _FilledCrops(PairList(tuple(rows), ("",) * len(rows), None))
    names = [path.name.replace("_", " ") for path in classes]
    return ValidationSet(names, Crops(regions, size, preprocessing))


@dataclass(frozen=True)
class _FilledCrops:
    pairs: PairList

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, list[Region]]:
        pair = self.pairs[index]
        return pair.image, [(pair.mask, int(pair.text))]

    def find_images(self, root: str | None) -> list[Path]:
        return self.pairs.find_images(find_image_root(root, "--val-image-root"))


class _WorldRegions:
    def __init__(self, world: World, split: str = "val", limit: int | None = None):
        self.name, self.records = world.name, world.records(split, limit)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, list[Region]]:
        record = self.records[index]
        regions = find_world(self.name).regions(record)  # a world's functions need not be picklable
        return read_image(record["file_name"]), [region for region in regions if region[0].any()]

    def find_images(self, root: str | None) -> list[Path]:
        return [Path(record["file_name"]) for record in self.records]


@torch.no_grad()
def zero_shot(encode: Callable[..., Tensor], words: Tensor, data: ValidationSet, *, workers: int) -> dict[str, float]:
    """Return top-1 and top-5 accuracy in percent, of all crops and of each group, and the mean over classes.

    The names of all classes compete always. Each process takes its share of the images; all get the result.

    Args:
        encode: all of the items but the classes, such as crops (b, 3, S, S) and masks (b, 1, S, S), on the device of
            ``words`` -> features (b, D).
        words: float32 (K, D) unit vectors of the class names.
        workers: data-loader processes.

    Raises:
        OvsegError: an image cannot be read.
    """
    share = Subset(data.crops, range(comm.get_rank(), len(data.crops), comm.get_world_size()))
    hits = TopHits(words)
    for *inputs, labels in _batches(DataLoader(share, batch_size=None, num_workers=workers)):
        hits.add(encode(*(tensor.to(words.device) for tensor in inputs)), labels)
    hits.add_other_processes()
    result = {"crops": float(hits.counts[:, 0].sum())}
    for name, members in {"all": range(len(words)), **data.groups}.items():
        prefix = "" if name == "all" else f"{name}_"
        result[f"{prefix}top1"], result[f"{prefix}top5"] = hits.accuracies(members)
    return result | {"mean_class_top1": hits.mean_class_top1()}


def _batches(loader: DataLoader) -> Iterator[tuple[Tensor, ...]]:
    """Yield batches of about one size of the crops of several images."""
    waiting: list[tuple[Tensor, ...]] = []
    for item in loader:
        if isinstance(item, OvsegError):
            raise item
        waiting.append(item)
        if sum(len(part[0]) for part in waiting) >= _CROPS_AT_A_TIME:
            yield tuple(map(torch.cat, zip(*waiting, strict=True)))
            waiting.clear()
    if waiting:
        yield tuple(map(torch.cat, zip(*waiting, strict=True)))
