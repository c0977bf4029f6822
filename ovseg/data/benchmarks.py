"""Benchmark data sets: names, folders and classes (``benchmarks.json``). Folders are those of spec section 11.

Where another project has a name of its own for the same labels, it is an alias: the same folders, the same classes,
whatever the alias's owner calls single classes (SAN says "tv", CAT-Seg shortens ADE20K's names) or expects its folders
to be. No aliases, because the files or what is done with them differ:

* SAN, CAT-Seg, FC-CLIP and ODISE number PASCAL Context 59 by the alphabet: their names belong to that row, and not to
  ov-seg's ``pascal_context_59_sem_seg_val``.
* FC-CLIP's and ODISE's PASCAL VOC with background has it as class 0, CAT-Seg's as class 20: two rows.
* Mask2Former's ``coco_2017_*_panoptic_with_sem_seg`` is a panoptic data set, with other records.
* ZegFormer's ``val_all`` of COCO-Stuff counts its 156 seen classes first.

Detectron2 itself registers ``ade20k_sem_seg_*`` and ``cityscapes_fine_sem_seg_*``, with the same folders and names.
COCO-Stuff's training sets score no splits, since ov-seg trains on all 171 classes. Mapillary Vistas (v1.2) is used as
released.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ovseg.vocabulary import label_set

README = "datasets/README.md"


def dataset_root() -> Path:
    """Return ``$DETECTRON2_DATASETS``, else ``datasets`` in the working folder."""
    return Path(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS") or "datasets"))  # ~ stays without a home


@dataclass(frozen=True)
class SemSegDataset:
    """Where one data set lies and what its labels mean.

    Attributes:
        name: its name in Detectron2's catalog.
        section: its heading in ``datasets/README.md``.
        images: folder of the images, below the root.
        labels: folder of the label files, below the root.
        label_set: its classes, in ``ovseg.vocabulary``.
        aliases: other names for it.
        image_suffix, label_suffix: what follows the part of the file names that an image and its labels share; tif
            means 16 bit.
        recursive: files lie in folders below, too.
        scores_splits: the label set's splits are also scored separately.
        script: what makes the label files, if there is one.
        panoptic: folder of COCO's panoptic PNG files, below the root, if there are any.
    """

    name: str
    section: str
    images: str
    labels: str
    label_set: str
    aliases: tuple[str, ...] = ()
    image_suffix: str = ".jpg"
    label_suffix: str = ".png"
    recursive: bool = False
    scores_splits: bool = False
    script: str | None = None
    panoptic: str | None = None

    @property
    def panoptic_json(self) -> str:
        """File of the segments of :attr:`panoptic`, below the root."""
        parent, _, name = (self.panoptic or "").rpartition("/")
        return f"{parent}/annotations/{name}.json"

    @property
    def ignore_label(self) -> int:
        """Value of pixels that do not count."""
        return label_set(self.label_set).ignore_label


def _read_table() -> tuple[SemSegDataset, ...]:
    """Read ``benchmarks.json``: by section, the fields of its data sets, and one line for each with its own."""
    sections = json.loads(resources.files(__package__).joinpath("benchmarks.json").read_text(encoding="utf-8"))
    return tuple(
        SemSegDataset(section=section, aliases=tuple(row.pop("aliases", ())), **{**content["common"], **row})
        for section, content in sections.items()
        for row in content["datasets"]
    )


DATASETS: tuple[SemSegDataset, ...] = _read_table()


def find_dataset(name: str) -> SemSegDataset | None:
    """Return the row of a name or alias; None if there is none."""
    return _BY_NAME.get(name)


_BY_NAME = {name: dataset for dataset in DATASETS for name in (dataset.name, *dataset.aliases)}
