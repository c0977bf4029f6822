"""Zero-shot naming of masked crops, the check after each epoch of fine-tuning (specification 12.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ovseg.adaptation.crops import filled, squash
from ovseg.adaptation.image_root import find_image_root
from ovseg.adaptation.pair_list import PairList
from ovseg.clip.preprocessing import OPENAI, Preprocessing
from ovseg.errors import OvsegError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_CROPS_AT_A_TIME = 64
_TOP = 5


@dataclass(frozen=True)
class ValidationSet:
    """Masked crops with their names.

    Attributes:
        class_names: K names.
        pictures: items are one picture's crops float32 (m, 3, S, S), normalised, their masks uint8 (m, 1, S, S) and
            classes int64 (m,); or an OvsegError. ``find_images(root)`` gives each picture's whole image.
        groups: name of a group -> its class numbers, for results of their own.
    """

    class_names: Sequence[str]
    pictures: Dataset
    groups: dict[str, Sequence[int]]


def validation_set(name: str, size: int, preprocessing: Preprocessing = OPENAI) -> ValidationSet:
    """The toy world's val split for ``toy``, else a folder with one folder of filled crops for each class.

    Args:
        name: "toy", or the path of the folder; names of classes are its folders' names, with spaces for underscores.
        size: side of CLIP's input, pixels.
        preprocessing: of the CLIP.

    Raises:
        OvsegError: no such folder, or no crops in it.
    """
    return _toy(size, preprocessing) if name == "toy" else _folder(Path(name), size, preprocessing)


def _toy(size: int, preprocessing: Preprocessing) -> ValidationSet:
    from ovseg.toy import BASE_CLASSES, CLASS_NAMES, render_split

    base = len(BASE_CLASSES)
    groups = {"base": range(base), "novel": range(base, len(CLASS_NAMES))}
    return ValidationSet(CLASS_NAMES, _ToyRegions(render_split("val"), size, preprocessing), groups)


def _folder(folder: Path, size: int, preprocessing: Preprocessing) -> ValidationSet:
    classes = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    rows = [
        (file, str(number))
        for number, path in enumerate(classes)
        for file in sorted(path.iterdir())
        if file.suffix.lower() in _SUFFIXES
    ]
    if not rows:
        raise OvsegError(f"--val {folder} holds no crops: give 'toy', or a folder with one folder of crops per class")
    names = [path.name.replace("_", " ") for path in classes]
    pairs = PairList(tuple(rows), ("",) * len(rows), None)
    return ValidationSet(names, _FilledCrops(pairs, size, preprocessing), {})


@dataclass(frozen=True)
class _FilledCrops(Dataset):
    pairs: PairList
    size: int
    preprocessing: Preprocessing = OPENAI

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor] | OvsegError:
        try:
            pair = self.pairs[index]
        except OvsegError as error:
            return error
        return _cut(pair.image, [(pair.mask, int(pair.text))], self.size, self.preprocessing)

    def find_images(self, root: str | None) -> list[Path]:
        """The whole images that the crops' names tell."""
        return self.pairs.find_images(find_image_root(root, "--val-image-root"))


@dataclass(frozen=True)
class _ToyRegions(Dataset):
    records: Sequence[dict]
    size: int
    preprocessing: Preprocessing = OPENAI

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        record = self.records[index]
        image = cv2.imread(record["file_name"])[:, :, ::-1]
        labels, instances = (
            cv2.imread(record[key], cv2.IMREAD_UNCHANGED) for key in ("sem_seg_file_name", "instance_file_name")
        )
        regions = [(instances == thing["id"], thing["category_id"]) for thing in record["things"]]
        ground = labels[(instances == 0) & (labels != 255)]
        regions += [((labels == label) & (instances == 0), int(label)) for label in np.unique(ground)]
        regions = [(mask, label) for mask, label in regions if mask.any()]
        return _cut(image, regions, self.size, self.preprocessing)

    def find_images(self, root: str | None) -> list[Path]:
        """The scenes themselves."""
        return [Path(record["file_name"]) for record in self.records]


def _cut(
    image: np.ndarray, regions: Sequence[tuple[np.ndarray, int]], size: int, preprocessing: Preprocessing
) -> tuple[Tensor, Tensor, Tensor]:
    """The crops of an image's masks as at inference."""
    crops, masks = [], []
    for mask, _ in regions:
        # a picture that is all background is shown as it is
        mask = mask if mask.any() else np.ones_like(mask)
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        crop, inside = filled(image[box], mask[box], preprocessing.fill, preprocessing)
        crop, inside = squash(crop, inside, (0, 0, *inside.shape[1:]), size, preprocessing.interpolation)
        crops.append(crop)
        masks.append(inside)
    return torch.stack(crops), torch.stack(masks), torch.tensor([label for _, label in regions])


@torch.no_grad()
def zero_shot(encode: Callable[..., Tensor], words: Tensor, data: ValidationSet, *, workers: int) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent, over all crops and over those of each group, and the mean over classes.

    The names of all classes compete always. Each process takes its share of the pictures; all get the result.

    Args:
        encode: all of the items but the classes, such as crops (b, 3, S, S) and masks (b, 1, S, S), on the device of
            ``words`` -> features (b, D).
        words: float32 (K, D) unit vectors of the class names.
        workers: data-loader processes.

    Raises:
        OvsegError: a picture cannot be read.
    """
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    share = Subset(data.pictures, range(rank, len(data.pictures), processes))
    counts = words.new_zeros(len(words), 3, dtype=torch.float64)  # crops, right at first, right among the first five
    for *inputs, labels in _batches(DataLoader(share, batch_size=None, num_workers=workers)):
        labels = labels.to(words.device)
        features = encode(*(tensor.to(words.device) for tensor in inputs)).float()
        ranked = (features @ words.T).topk(min(_TOP, len(words))).indices == labels[:, None]
        hits = torch.stack([torch.ones_like(labels), ranked[:, 0].long(), ranked.any(1).long()], dim=1)
        counts.index_add_(0, labels, hits.double())
    if processes > 1:
        dist.all_reduce(counts)
    result = {"crops": float(counts[:, 0].sum())}
    for name, members in {"all": range(len(words)), **data.groups}.items():
        crops, first, five = counts[list(members)].sum(0).tolist()
        prefix = "" if name == "all" else f"{name}_"
        result |= {f"{prefix}top1": 100 * first / max(crops, 1), f"{prefix}top5": 100 * five / max(crops, 1)}
    shown = counts[counts[:, 0] > 0]
    result["mean_class_top1"] = float((100 * shown[:, 1] / shown[:, 0]).mean())
    return result


def _batches(loader: DataLoader):
    """Gather pictures' crops into batches of about one size."""
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
