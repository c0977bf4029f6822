"""Conversion of raw label values to class indices."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovseg.data.prepare.conversion import Item, Output
from ovseg.data.prepare.sources import BadFile, raw_labels
from ovseg.errors import OvsegError
from ovseg.vocabulary import label_set


@dataclass(frozen=True, eq=False)
class IdMap:
    """Map of raw values to class indices.

    Attributes:
        table: (V,) uint8 or uint16: the class index, or the ignore label, of raw value 0..V-1.
        known: (V,) bool: the raw values that may occur.
        ignore_label: of the class indices.
    """

    table: np.ndarray
    known: np.ndarray
    ignore_label: int

    @property
    def recipe(self) -> str:
        """Changes when the map does."""
        return hashlib.sha256(self.table.tobytes() + self.known.tobytes()).hexdigest()[:16]


def class_table(label_set_name: str, num_values: int, *, offset: int = 0, void: int | None = None) -> IdMap:
    """Return the map from raw values to the classes of a label set.

    Args:
        label_set_name: whose ``dataset_ids`` are the raw values of the classes. What is none of these becomes the class
            that has no such number (a background), or else the ``ignore_label``.
        num_values: raw values are 0 .. num_values - 1.
        offset: added to a dataset id to get the raw value.
        void: one more raw value that may occur; it is no class.

    Raises:
        OvsegError: several classes have no number.
    """
    labels = label_set(label_set_name)
    numberless = [index for index, dataset_id in enumerate(labels.dataset_ids) if dataset_id is None]
    if len(numberless) > 1:
        raise OvsegError(f"label set {label_set_name!r} has no dataset_id for its classes {numberless}")
    size = num_values if void is None else max(num_values, void + 1)
    others = numberless[0] if numberless else labels.ignore_label
    table = np.full(size, others, np.uint8 if labels.ignore_label < 256 else np.uint16)
    for index, dataset_id in enumerate(labels.dataset_ids):
        if dataset_id is not None:
            table[dataset_id + offset] = index
    known = np.arange(size) < num_values
    if void is not None:
        known[void] = True
    return IdMap(table, known, labels.ignore_label)


def look_up(id_map: IdMap, raw: np.ndarray, path: Path) -> np.ndarray:
    """Return (H,W) class indices, of the table's type, of (H,W) raw labels from the file ``path``.

    Raises:
        BadFile: not one channel of integers, or a value that must not occur.
    """
    if raw.ndim != 2 or raw.dtype.kind not in "ui":
        raise BadFile(f"{path} has shape {raw.shape} and type {raw.dtype}: expected one channel of integers")
    inside = raw.size == 0 or (raw.min() >= 0 and raw.max() < len(id_map.table))
    if not inside or not (id_map.known.all() or id_map.known[raw].all()):
        possible = np.flatnonzero(id_map.known)
        strange = np.setdiff1d(raw, possible)
        listed = f"0..{possible[-1]}"
        if possible[-1] != len(possible) - 1:
            listed = f"0..{len(possible) - 2} and {possible[-1]}"
        raise BadFile(
            f"{path} holds the value {', '.join(map(str, strange[:3]))}, expected are {listed}: is it a file of this "
            "data set as it was released?"
        )
    return id_map.table[raw]


def read_labels_of(item: Item) -> np.ndarray:
    """Return :func:`raw_labels` of an item's first source; the usual ``read`` of a conversion."""
    return raw_labels(item.sources[0])


def label_output(
    folder: Path, id_map: IdMap, suffix: str = ".png", *, keep_empty: bool = True, made_by: str = ""
) -> Output:
    """Return the output of label files made from raw labels by one map.

    Args:
        folder: where they go.
        id_map: of the raw labels, which the conversion's ``read`` gives as (H,W).
        suffix: of their names; ``.tif`` for 16 bit.
        keep_empty: also write those in which every pixel is ignored; not so in the published files of some data sets.
        made_by: distinguishes files made by the same map from another source.
    """

    def make(item: Item, raw: Any) -> np.ndarray | None:
        labels = look_up(id_map, raw, item.sources[0])
        return None if not keep_empty and (labels == id_map.ignore_label).all() else labels

    return Output(folder, make, suffix, f"{id_map.recipe}{made_by}")
