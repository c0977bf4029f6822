"""The original's form of mask-text pairs: a list of filled crops and their titles (spec section 12.1)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch.utils.data

from ovseg.adaptation.pairs import Pair, PairDataset, encode_png
from ovseg.errors import OvsegError
from ovseg.files import atomic_path
from ovseg.images import read_image

FILL = (124, 116, 103)  # RGB; ImageNet's mean, by which the original's training code knows the background
COLUMNS = ("filepath", "title")
LIST = "pairs.tsv"
JPEG_NOISE = 12  # how far from FILL a background pixel of a JPEG may be, in each channel


@dataclass(frozen=True)
class PairList(torch.utils.data.Dataset):
    """Pairs of a list; see :func:`read_pair_list`."""

    rows: tuple[tuple[Path, str], ...]
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
        """The texts of all pairs."""
        return [title for _, title in self.rows]


def read_pair_list(tsv: str | Path, tolerance: int | None = None) -> PairList:
    """Pairs of the original's list: tab separated, header with ``filepath`` and ``title`` in any order, no quoting.

    Args:
        tsv: the list; relative paths in it start at its folder.
        tolerance: a pixel is background if no channel is farther than this from ``FILL``; None for 0, and
            ``JPEG_NOISE`` where the picture is a JPEG.

    Returns:
        data set of :class:`Pair`; the masks are guessed from the colour when a pair is read.

    Raises:
        OvsegError: missing file, no such columns, or a line without both; pictures are checked when they are read.
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
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        if len(line) <= max(path_column, title_column) or not line[path_column] or not line[title_column].strip():
            raise OvsegError(f"line {number} of {tsv} lacks a path or a title: mend or remove it")
        rows.append((tsv.parent / line[path_column], line[title_column]))
    return PairList(tuple(rows), tolerance)


def write_crops(shard: Path, folder: Path) -> None:
    """Write the filled crops of one shard, lossless, as ``folder/<name of the shard>/KEY.png``; whole ones stay.

    A pixel of a mask that has just the fill's colour is changed by one level, so that the mask can be told again.
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
        file.write("\t".join(COLUMNS) + "\n")
        for shard in shards:
            dataset = PairDataset([shard])
            for key, text in zip(dataset.keys, dataset.texts(), strict=True):
                path = crop_path(folder, shard, key).relative_to(tsv.parent)
                file.write(f"{path.as_posix()}\t{' '.join(text.split())}\n")


def crop_path(folder: Path, shard: Path, key: str) -> Path:
    """Where the filled crop of a pair lies."""
    return folder / shard.stem / f"{key}.png"
