"""Mask-text pairs in the original's format: a list of filled crops and their titles (specification 12.1)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch.utils.data

from ovseg.adaptation.image_root import ImageRoot
from ovseg.adaptation.pair_shards import Pair, PairDataset, encode_png
from ovseg.errors import OvsegError
from ovseg.io.files import atomic_path
from ovseg.io.images import read_image

FILL = (124, 116, 103)  # RGB; ImageNet's mean, by which the original's training code knows the background
COLUMNS = ("filepath", "title")
IMAGE = "image"  # a column that our lists have and the original's lack: the whole image
LIST = "pairs.tsv"
JPEG_NOISE = 12  # how far from FILL a background pixel of a JPEG may be, in each channel


@dataclass(frozen=True)
class PairList(torch.utils.data.Dataset):
    """The pairs of a list; see :func:`read_pair_list`.

    Attributes:
        rows: image file and title of each pair.
        images: the whole image of each, relative to a folder given elsewhere; "" where the crop's name gives it.
        tolerance: how far from the fill's colour the background may be.
    """

    rows: tuple[tuple[Path, str], ...]
    images: tuple[str, ...]
    tolerance: int | None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Pair:
        path, title = self.rows[index]
        image = read_image(path)
        tolerance = self.tolerance
        if tolerance is None:
            tolerance = JPEG_NOISE if path.suffix.lower() in (".jpg", ".jpeg") else 0
        mask = (np.abs(image.astype(np.int16) - FILL) > tolerance).any(axis=2)
        return Pair(image, mask, title, path.stem)

    def texts(self) -> list[str]:
        """Return the texts of all pairs."""
        return [title for _, title in self.rows]

    def find_images(self, root: ImageRoot) -> list[Path]:
        """Return the whole image of each pair: that of the column ``image``, or the one that the crop's name gives.

        Raises:
            OvsegError: one is not there.
        """
        return [
            root.recorded(name, str(path)) if name else root.of_crop(path)
            for (path, _), name in zip(self.rows, self.images, strict=True)
        ]


def read_pair_list(tsv: str | Path, tolerance: int | None = None) -> PairList:
    """Read the pairs of a list in the original's format.

    It is tab separated, without quoting, and its header holds ``filepath`` and ``title`` in any order. A column
    ``image`` may give each pair's whole image.

    Args:
        tsv: the list; relative paths in it start at its folder.
        tolerance: a pixel is background if no channel is farther than this from ``FILL``; None for 0, and
            ``JPEG_NOISE`` where the image is a JPEG.

    Returns:
        data set of :class:`Pair`; the masks are guessed from the colour when a pair is read.

    Raises:
        OvsegError: missing file, no such columns, or a line without both; images are checked when they are read.
    """
    tsv = Path(tsv)
    try:
        with tsv.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise OvsegError(f"cannot read the list of pairs {tsv} ({error}): give a UTF-8 text file") from error
    if not lines or not set(COLUMNS) <= set(lines[0]):
        raise OvsegError(f"{tsv} does not begin with a line that holds the columns filepath and title, tab separated")
    path_column, title_column = (lines[0].index(name) for name in COLUMNS)
    image_column = lines[0].index(IMAGE) if IMAGE in lines[0] else None
    rows, images = [], []
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        if len(line) <= max(path_column, title_column) or not line[path_column] or not line[title_column].strip():
            raise OvsegError(f"line {number} of {tsv} lacks a path or a title: correct or remove it")
        rows.append((tsv.parent / line[path_column], line[title_column]))
        images.append(line[image_column] if image_column is not None and image_column < len(line) else "")
    return PairList(tuple(rows), tuple(images), tolerance)


def write_crops(shard: Path, folder: Path) -> None:
    """Write the filled crops of one shard, lossless, as ``folder/<name of the shard>/KEY.png``; whole ones stay.

    A pixel of a mask that has just the fill's colour is changed by one level, so that the mask can be found again.
    """
    dataset = PairDataset([shard])
    for index, key in enumerate(dataset.keys):
        target = crop_path(folder, shard, key)
        if target.is_file():
            continue
        pair = dataset[index]
        pixels = pair.image.copy()
        pixels[pair.mask & (pixels == FILL).all(axis=2), 2] += 1
        pixels[~pair.mask] = FILL
        with atomic_path(target) as temporary:
            temporary.write_bytes(encode_png(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)))


def write_list(shards: Sequence[Path], tsv: Path, folder: Path) -> None:
    """Write the list of the crops of :func:`write_crops`, with paths relative to its own folder."""
    with atomic_path(tsv) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join((*COLUMNS, IMAGE)) + "\n")
        for shard in shards:
            dataset = PairDataset([shard])
            for index, key in enumerate(dataset.keys):
                path, info = crop_path(folder, shard, key).relative_to(tsv.parent), dataset.info(index)
                text, image = (" ".join(words.split()) for words in (info["text"], info.get(IMAGE, "")))
                file.write(f"{path.as_posix()}\t{text}\t{image}\n")


def crop_path(folder: Path, shard: Path, key: str) -> Path:
    """Return the path of the filled crop of a pair."""
    return folder / shard.stem / f"{key}.png"
