"""Ground-truth labels of a registered data set."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovseg.data.protocol import class_names_of
from ovseg.errors import OvsegError
from ovseg.io.images import read_labels


class GroundTruth:
    """Class names, subsets and label maps of a data set.

    Attributes:
        class_names: K names without leading and trailing blanks.
        ignore_label: value of ignored pixels, or None.
        evaluation_set: class indices by name of a subset; empty if the metadata defines none.

    Raises:
        OvsegError: the data set is unknown or has no class names.
    """

    def __init__(self, dataset_name: str) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name = dataset_name
        self.class_names: list[str] = list(class_names_of(dataset_name))
        self.ignore_label: int | None = metadata.get("ignore_label")
        self.evaluation_set: dict[str, list[int]] = dict(metadata.get("evaluation_set") or {})
        to_contiguous = metadata.get("stuff_dataset_id_to_contiguous_id") or {}
        self.dataset_ids: dict[int, int] = {contiguous: original for original, contiguous in to_contiguous.items()}

    @cached_property
    def _label_files(self) -> dict[str, str]:
        return {record["file_name"]: record["sem_seg_file_name"] for record in DatasetCatalog.get(self.dataset_name)}

    def labels(self, sample: dict) -> tuple[np.ndarray, str]:
        """Read the labels of a model input: (H,W) integers as stored (8 or 16 bit), and the name of the file.

        The file is the input's ``sem_seg_file_name``, else the catalog's for its ``file_name``.

        Raises:
            OvsegError: the label file is missing, damaged, or not a single-channel image.
        """
        file_name = sample.get("sem_seg_file_name") or self._label_files.get(sample.get("file_name"))
        if file_name is None:
            raise OvsegError(
                f"image {sample.get('file_name')} is not part of data set {self.dataset_name!r}, so it has no labels"
            )
        return read_labels(file_name), file_name
