"""What the scripts in ``datasets/`` share: raw labels -> label files of class indices."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from rich.console import Console

from ovseg.data.catalog import README, dataset_root
from ovseg.errors import OvsegError
from ovseg.files import atomic_path
from ovseg.progress import progress_bar
from ovseg.vocabulary import label_set

Task = TypeVar("Task")


def parse_arguments(description: str) -> argparse.Namespace:
    """Command line of a preparation script: ``root`` (Path) and ``workers`` (int)."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root", type=Path, default=dataset_root(), help="default: $DETECTRON2_DATASETS, else datasets"
    )
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="threads")
    return parser.parse_args()


def class_table(label_set_name: str, num_values: int, ignore_label: int, offset: int = 0) -> np.ndarray:
    """Class index of every raw value.

    Args:
        label_set_name: whose ``dataset_ids`` tell the raw value of each class.
        num_values: raw values are 0 .. num_values - 1.
        ignore_label: what all other raw values become.
        offset: added to a dataset id to get the raw value.

    Returns:
        (num_values,) uint8, or uint16 when ``ignore_label`` is above 255.
    """
    table = np.full(num_values, ignore_label, dtype=np.uint8 if ignore_label < 256 else np.uint16)
    for index, dataset_id in enumerate(label_set(label_set_name).dataset_ids):
        if dataset_id is None:
            raise OvsegError(f"label set {label_set_name!r} has no dataset_id for its class {index}")
        table[dataset_id + offset] = index
    return table


def raw_labels(path: Path) -> np.ndarray:
    """The pixel values of an image file, palette indices included: (H,W), or (H,W,C) for colours.

    Raises:
        OvsegError: the file is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            return np.array(image)
    except (OSError, SyntaxError) as error:
        raise OvsegError(f"cannot read {path} ({error}): unpack its archive again") from error


def look_up(table: np.ndarray, raw: np.ndarray, path: Path) -> np.ndarray:
    """(H,W) class indices of (H,W) raw labels from the file ``path``.

    Raises:
        OvsegError: not one channel of integers, or a value beyond the table.
    """
    if raw.ndim != 2 or raw.dtype.kind not in "ui":
        raise OvsegError(f"{path} has shape {raw.shape} and type {raw.dtype}: expected one channel of integers")
    if raw.size and (raw.min() < 0 or raw.max() >= len(table)):
        raise OvsegError(f"{path} holds the value {raw.max()}, expected are 0..{len(table) - 1}")
    return table[raw]


def write_labels(path: Path, labels: np.ndarray) -> None:
    """Write (H,W) uint8 or uint16 class indices as PNG or TIFF, by the suffix of ``path``, atomically."""
    with atomic_path(path) as temporary:
        Image.fromarray(labels).save(temporary)


def find_files(folder: Path, pattern: str) -> list[Path]:
    """Files below ``folder`` that match, sorted.

    Raises:
        OvsegError: the folder is missing or holds no such file.
    """
    if not folder.is_dir():
        raise OvsegError(f"folder {folder} is missing: unpack the data set's archives first, see {README}")
    if not (files := sorted(folder.glob(pattern))):
        raise OvsegError(f"no file in {folder} matches {pattern}: is the archive unpacked there? see {README}")
    return files


def read_names(path: Path) -> list[str]:
    """Names in a list file, one per line; blank lines do not count.

    Raises:
        OvsegError: the file is missing or empty.
    """
    if not path.is_file():
        raise OvsegError(f"list {path} is missing, see {README}")
    if not (names := path.read_text(encoding="utf-8").split()):
        raise OvsegError(f"list {path} is empty, see {README}")
    return names


def convert_all(
    title: str, convert: Callable[[Task], bool], tasks: Sequence[Task], workers: int, expected: int
) -> None:
    """Run ``convert`` on every task in threads, with a progress bar and one line of summary.

    Args:
        title: what is converted.
        convert: does one task and says whether it wrote a label file (False = every pixel is ignored).
        tasks: at least one.
        workers: number of threads.
        expected: how many tasks the complete data set has; another number is pointed out.

    Raises:
        OvsegError: from ``convert``; tasks that have not started are given up.
    """
    console = Console()
    written = 0
    with progress_bar(console=console) as progress, ThreadPoolExecutor(max(workers, 1)) as pool:
        bar = progress.add_task(title, total=len(tasks))
        try:
            for future in as_completed([pool.submit(convert, task) for task in tasks]):
                written += future.result()
                progress.advance(bar)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    summary = f"{title}: {written} label files written"
    if written < len(tasks):
        summary += f", {len(tasks) - written} left out (every pixel is ignored)"
    if len(tasks) != expected:
        summary += f"; ATTENTION: the complete data set has {expected} files, found were {len(tasks)}"
    console.print(summary, soft_wrap=True, highlight=False)
