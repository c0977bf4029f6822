"""What is looked at: a registered data set or somebody's YAML file, both as pairs and a way to read their labels."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from ovseg.config.per_dataset import is_path
from ovseg.data.benchmarks import find_dataset
from ovseg.data.catalog import check_prepared
from ovseg.data.custom.classes import Classes
from ovseg.data.custom.description import read_description
from ovseg.data.custom.image_label_pairs import Pair, Pairing
from ovseg.data.custom.source import open_source
from ovseg.data.custom.values import IGNORED, Labels, look_up
from ovseg.data.prepare.sources import scan
from ovseg.data.protocol import class_names_of
from ovseg.errors import OvsegError
from ovseg.io.label_maps import read_labels


@dataclass(frozen=True)
class Subject:
    """A data set to look at.

    Attributes:
        name: as it was given.
        class_names: its K classes.
        pairing: its images and labels, and what has no partner.
        read: labels of a pair; raises OvsegError where they cannot be read.
        classes: of a YAML file; None for a registered name.
    """

    name: str
    class_names: tuple[str, ...]
    pairing: Pairing
    read: Callable[[Pair], Labels]
    classes: Classes | None = None


def open_subject(name: str) -> Subject:
    """The data set of a registered name, or of a YAML file, whose raw files are then read: nothing is converted.

    Raises:
        OvsegError: it is not there, has no pair of image and labels, or is not for semantic segmentation.
    """
    if is_path(name):
        source = open_source(read_description(name))
        return Subject(name, source.classes.vocabulary.names, source.pairing, source.read, source.classes)
    check_prepared(name)
    class_names = class_names_of(name)
    ignore_label = MetadataCatalog.get(name).get("ignore_label")
    table = {index: index for index in range(len(class_names))}
    table |= {} if ignore_label is None else {ignore_label: IGNORED}

    def read(pair: Pair) -> Labels:
        return look_up(read_labels(str(pair.labels)), table, show=lambda value: f"value {value}")

    return Subject(name, class_names, _registered_pairs(name), read)


def _registered_pairs(name: str) -> Pairing:
    """Images without labels do not count: benchmarks keep all images in one folder, whatever the split."""
    pairs = []
    for record in DatasetCatalog.get(name):
        if not record.get("sem_seg_file_name"):
            raise OvsegError(f"data set {name!r} has no semantic labels, for example of {record.get('file_name')}")
        image, labels = Path(record["file_name"]), Path(record["sem_seg_file_name"])
        pairs.append(Pair(image.name, image, labels))
    if not pairs:
        raise OvsegError(f"data set {name!r} is empty: check the folders it was registered with")
    return Pairing(tuple(pairs), labels_alone=tuple(_unused_labels(name, pairs)))


def _unused_labels(name: str, pairs: list[Pair]) -> list[str]:
    """Label files of a benchmark that no pair uses."""
    dataset, folder = find_dataset(name), MetadataCatalog.get(name).get("sem_seg_root")
    if dataset is None or not folder:
        return []
    used = {os.path.abspath(pair.labels) for pair in pairs}
    found = scan(Path(folder), dataset.label_suffix, dataset.recursive).values()
    return [entry.path for entry in found if os.path.abspath(entry.path) not in used]
