"""The benchmark data sets as a table: names, folders, classes. Folders are those of spec section 11.

Where another project has a name of its own for the same labels, it is an alias: the same folders, the same classes,
whatever the alias's owner calls single classes (SAN says "tv", CAT-Seg shortens ADE20K's names) or expects its folders
to be. No aliases, because the files or what is done with them differ:

* SAN, CAT-Seg, FC-CLIP and ODISE number PASCAL Context 59 by the alphabet: their names belong to that row, and not to
  ov-seg's ``pascal_context_59_sem_seg_val``.
* FC-CLIP's and ODISE's PASCAL VOC with background has it as class 0, CAT-Seg's as class 20: two rows.
* Mask2Former's ``coco_2017_*_panoptic_with_sem_seg`` is a panoptic data set, with other records.
* ZegFormer's ``val_all`` of COCO-Stuff counts its 156 seen classes first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
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

    @property
    def ignore_label(self) -> int:
        """Value of pixels that do not count."""
        return label_set(self.label_set).ignore_label


def _coco() -> Iterator[SemSegDataset]:
    other_names = {
        "train": ("coco_2017_train_stuff_all_sem_seg", "openvocab_coco_2017_train_stuff_sem_seg"),
        "test": ("coco_2017_test_stuff_all_sem_seg", "openvocab_coco_2017_val_stuff_sem_seg"),
    }
    for split, folder in (("train", "train2017"), ("test", "val2017")):
        name, labels = f"coco_2017_{split}_stuff", f"coco/stuffthingmaps_detectron2/{folder}"
        for part, classes in (("", "171"), ("_base", "156_seen"), ("_novel", "15_unseen")):
            yield SemSegDataset(
                name=f"{name}{part}_sem_seg",
                section="COCO-Stuff",
                images=f"coco/{folder}",
                labels=f"{labels}{part}",
                label_set=f"coco_stuff_{classes}",
                aliases=() if part else other_names[split],
                scores_splits=split == "test",  # ov-seg trains on all 171 classes and knows no split
                script="datasets/prepare_coco_stuff.py",
            )
    yield SemSegDataset(
        name="coco_2017_train_stuff_10k_sem_seg",
        section="COCO-Stuff 10k",
        images="coco/coco_stuff_10k/images_detectron2/train",
        labels="coco/coco_stuff_10k/annotations_detectron2/train",
        label_set="coco_stuff_171",
    )
    for split in ("train", "val"):
        yield SemSegDataset(
            name=f"coco_2017_{split}_panoptic_sem_seg",
            section="COCO panoptic",
            images=f"coco/{split}2017",
            labels=f"coco/panoptic_semseg_{split}2017",
            label_set="coco_panoptic_133",
            script="datasets/prepare_coco_panoptic.py",
        )
        yield SemSegDataset(
            name=f"coco_2017_{split}_object_sem_seg",
            section="COCO-Object",
            images=f"coco/{split}2017",
            labels=f"coco/coco_object/{split}2017",
            label_set="coco_object_80",
            script="datasets/prepare_coco_object.py",
        )


def _ade20k() -> Iterator[SemSegDataset]:
    for split, folder in (("train", "training"), ("val", "validation")):
        is_val = split == "val"
        yield SemSegDataset(
            name=f"ade20k_sem_seg_{split}",  # Detectron2 registers it itself, with the same folders and names
            section="ADE20K-150",
            images=f"ADEChallengeData2016/images/{folder}",
            labels=f"ADEChallengeData2016/annotations_detectron2/{folder}",
            label_set="ade20k_150",
            aliases=("ade20k_150_test_sem_seg", "openvocab_ade20k_sem_seg_val") if is_val else (),
            script="datasets/prepare_ade20k_150.py",
        )
        yield SemSegDataset(
            name=f"ade20k_full_sem_seg_{split}",
            section="ADE20K-847",
            images=f"ADE20K_2021_17_01/images_detectron2/{folder}",
            labels=f"ADE20K_2021_17_01/annotations_detectron2/{folder}",
            label_set="ade20k_847",
            aliases=("ade20k_full_sem_seg_freq_val_all", "openvocab_ade20k_full_sem_seg_val") if is_val else (),
            label_suffix=".tif",
            script="datasets/prepare_ade20k_847.py",
        )


def _pascal_voc() -> Iterator[SemSegDataset]:
    other_names = {
        "20": ("voc_sem_seg_val", "voc_2012_test_sem_seg", "openvocab_pascal20_sem_seg_val"),
        "20b": ("voc_2012_test_background_sem_seg",),
        "21": ("openvocab_pascal21_sem_seg_val", "pascal21_sem_seg_val"),
    }
    for variant, folder in (("20", ""), ("20b", "_bg"), ("21", "_21")):
        for split in ("train", "train_aug", "val"):
            yield SemSegDataset(
                name=f"pascalvoc{variant}_sem_seg_{split}",
                section="PASCAL VOC",
                images="VOCdevkit/VOC2012/JPEGImages",
                labels=f"VOCdevkit/VOC2012/annotations_detectron2{folder}/{split}",
                label_set=f"pascal_voc_{variant}",
                aliases=other_names[variant] if split == "val" else (),
                script="datasets/prepare_voc.py",
            )


def _pascal_context() -> Iterator[SemSegDataset]:
    other_names = {
        "59_alphabetical": (
            "pcontext_sem_seg_val",
            "context_59_test_sem_seg",
            "openvocab_pascal_ctx59_sem_seg_val",
            "ctx59_sem_seg_val",
        ),
        "459": (
            "pcontext_full_sem_seg_val",
            "context_459_test_sem_seg",
            "openvocab_pascal_ctx459_sem_seg_val",
            "ctx459_sem_seg_val",
        ),
    }
    for variant in ("59", "59_alphabetical", "60", "459"):
        for split in ("train", "val"):
            yield SemSegDataset(
                name=f"pascal_context_{variant}_sem_seg_{split}",
                section="PASCAL Context",
                images="VOCdevkit/VOC2010/JPEGImages",
                labels=f"VOCdevkit/VOC2010/annotations_detectron2/pc{variant}_{split}",
                label_set=f"pascal_context_{variant}",
                aliases=other_names.get(variant, ()) if split == "val" else (),
                label_suffix=".tif" if variant == "459" else ".png",
                script="datasets/prepare_pascal_context.py",
            )


def _street_scenes() -> Iterator[SemSegDataset]:
    for split, folder in (("train", "training"), ("val", "validation")):
        yield SemSegDataset(
            name=f"cityscapes_fine_sem_seg_{split}",  # Detectron2's own, too
            section="Cityscapes",
            images=f"cityscapes/leftImg8bit/{split}",
            labels=f"cityscapes/gtFine/{split}",
            label_set="cityscapes_19",
            image_suffix="_leftImg8bit.png",
            label_suffix="_gtFine_labelTrainIds.png",
            recursive=True,
            script="datasets/prepare_cityscapes.py",
        )
        yield SemSegDataset(
            name=f"mapillary_vistas_sem_seg_{split}",  # v1.2 as released: nothing to prepare
            section="Mapillary Vistas",
            images=f"mapillary_vistas/{folder}/images",
            labels=f"mapillary_vistas/{folder}/labels",
            label_set="mapillary_vistas_65",
        )


DATASETS: tuple[SemSegDataset, ...] = (
    *_coco(),
    *_ade20k(),
    *_pascal_voc(),
    *_pascal_context(),
    *_street_scenes(),
)


def find_dataset(name: str) -> SemSegDataset | None:
    """Return the row of a name or alias; None if there is none."""
    return _BY_NAME.get(name)


_BY_NAME = {name: dataset for dataset in DATASETS for name in (dataset.name, *dataset.aliases)}
