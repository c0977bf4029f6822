"""The benchmark data sets, registered by their published names, and the check that they are on disk.

Folders are those of spec section 11, below ``$DETECTRON2_DATASETS`` (default ``./datasets``). Registering touches no
folder; ``datasets/README.md`` says how each one is filled.
"""

from __future__ import annotations

import difflib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from ovseg.errors import OvsegError
from ovseg.vocabulary import label_set

logger = logging.getLogger(__name__)

README = "datasets/README.md"


@dataclass(frozen=True)
class SemSegDataset:
    """Where one data set lies and what its labels mean.

    Attributes:
        name: its name in Detectron2's catalog.
        section: its heading in ``datasets/README.md``.
        images: folder of the images, below the root.
        labels: folder of the label files, below the root.
        label_set: its classes, in ``ovseg.vocabulary``.
        label_ext: extension of the label files; tif means 16 bit.
        ignore_label: value of pixels that do not count.
        image_ext: extension of the images.
        script: what makes the label files, if there is one.
    """

    name: str
    section: str
    images: str
    labels: str
    label_set: str
    label_ext: str = "png"
    ignore_label: int = 255
    image_ext: str = "jpg"
    script: str | None = None


DATASETS: tuple[SemSegDataset, ...] = (
    SemSegDataset(
        "coco_2017_train_stuff_sem_seg",
        "COCO-Stuff",
        "coco/train2017",
        "coco/stuffthingmaps_detectron2/train2017",
        "coco_stuff_171",
        script="datasets/prepare_coco_stuff.py",
    ),
    SemSegDataset(
        "coco_2017_train_stuff_10k_sem_seg",
        "COCO-Stuff 10k",
        "coco/coco_stuff_10k/images_detectron2/train",
        "coco/coco_stuff_10k/annotations_detectron2/train",
        "coco_stuff_171",
    ),
    SemSegDataset(
        "ade20k_sem_seg_val",  # Detectron2 registers it itself, with the same folders and names
        "ADE20K-150",
        "ADEChallengeData2016/images/validation",
        "ADEChallengeData2016/annotations_detectron2/validation",
        "ade20k_150",
        script="datasets/prepare_ade20k_150.py",
    ),
    SemSegDataset(
        "ade20k_full_sem_seg_val",
        "ADE20K-847",
        "ADE20K_2021_17_01/images_detectron2/validation",
        "ADE20K_2021_17_01/annotations_detectron2/validation",
        "ade20k_847",
        label_ext="tif",
        ignore_label=65535,
        script="datasets/prepare_ade20k_847.py",
    ),
    SemSegDataset(
        "pascalvoc20_sem_seg_val",
        "PASCAL VOC 20",
        "VOCdevkit/VOC2012/JPEGImages",
        "VOCdevkit/VOC2012/annotations_detectron2/val",
        "pascal_voc_20",
        script="datasets/prepare_voc20.py",
    ),
    SemSegDataset(
        "pascal_context_59_sem_seg_val",
        "PASCAL Context 59",
        "VOCdevkit/VOC2010/JPEGImages",
        "VOCdevkit/VOC2010/annotations_detectron2/pc59_val",
        "pascal_context_59",
        script="datasets/prepare_pascal_context.py",
    ),
    SemSegDataset(
        "pascal_context_459_sem_seg_val",
        "PASCAL Context 459",
        "VOCdevkit/VOC2010/JPEGImages",
        "VOCdevkit/VOC2010/annotations_detectron2/pc459_val",
        "pascal_context_459",
        label_ext="tif",
        ignore_label=65535,
        script="datasets/prepare_pascal_context.py",
    ),
)


def dataset_root() -> Path:
    """``$DETECTRON2_DATASETS``, else ``datasets`` in the working folder."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()


def register_all(root: str | Path | None = None) -> None:
    """Register every data set of :data:`DATASETS` that has no owner yet; no folder is looked at.

    A name that another library has registered with other folders is left to it, with a warning.

    Args:
        root: folder that holds the data sets; default :func:`dataset_root`.
    """
    root = dataset_root() if root is None else Path(root)
    for dataset in DATASETS:
        images, labels = str(root / dataset.images), str(root / dataset.labels)
        metadata = MetadataCatalog.get(dataset.name)
        if dataset.name in DatasetCatalog.list():
            theirs = (metadata.get("image_root"), metadata.get("sem_seg_root"))
            if None in theirs or [os.path.normpath(path) for path in theirs] != [
                os.path.normpath(images),
                os.path.normpath(labels),
            ]:
                logger.warning(
                    "data set %r is already registered, with images in %s and labels in %s: ovseg uses that",
                    dataset.name,
                    *theirs,
                )
            continue
        classes = label_set(dataset.label_set)
        DatasetCatalog.register(dataset.name, lambda name=dataset.name: _load(name))
        metadata.set(
            stuff_classes=list(classes.registry_names),
            image_root=images,
            sem_seg_root=labels,
            evaluator_type="sem_seg",
            ignore_label=dataset.ignore_label,
        )
        if dataset.label_set == "coco_stuff_171":
            # COCO's result format wants COCO's category ids
            metadata.set(stuff_dataset_id_to_contiguous_id={id_: i for i, id_ in enumerate(classes.dataset_ids)})


def check_prepared(dataset_name: str) -> None:
    """Make sure that a data set is registered and its folders hold images and labels.

    Data sets registered without folders in their metadata (``image_root``, ``sem_seg_root``), as the toy ones, pass.

    Raises:
        OvsegError: unknown name (the nearest ones are given), a missing folder, or a folder without such files; says
            which folder and which section of ``datasets/README.md`` tells how to fill it.
    """
    if dataset_name not in DatasetCatalog.list():
        near = difflib.get_close_matches(dataset_name, DatasetCatalog.list(), n=3)
        known = ", ".join(near or [dataset.name for dataset in DATASETS])
        raise OvsegError(
            f"data set {dataset_name!r} is not registered: {'did you mean ' if near else 'there are '}{known}?"
        )
    metadata = MetadataCatalog.get(dataset_name)
    ours = next((dataset for dataset in DATASETS if dataset.name == dataset_name), None)
    folders = {
        "images": (metadata.get("image_root"), ours and ours.image_ext),
        "labels": (metadata.get("sem_seg_root"), ours and ours.label_ext),
    }
    local = {what: (path, ext) for what, (path, ext) in folders.items() if path and "://" not in path}
    if missing := [f"{path} ({what})" for what, (path, _) in local.items() if not os.path.isdir(path)]:
        raise OvsegError(f"data set {dataset_name!r} is not prepared: missing {' and '.join(missing)}{_advice(ours)}")
    for what, (path, extension) in local.items():
        if extension and not _holds(path, extension):
            raise OvsegError(
                f"data set {dataset_name!r} is not prepared: {path} holds no .{extension} file; expected are {what} "
                f"{path}/<image name>.{extension}{_advice(ours)}"
            )


def _load(name: str) -> list[dict]:
    """Detectron2 records (``file_name``, ``sem_seg_file_name``) of one of our data sets, ordered by name.

    Not by Detectron2's ``load_sem_seg``: with equally many images and labels it pairs them whatever their names are.
    """
    check_prepared(name)
    dataset = next(dataset for dataset in DATASETS if dataset.name == name)
    metadata = MetadataCatalog.get(name)
    images = _files(metadata.image_root, dataset.image_ext)
    labels = _files(metadata.sem_seg_root, dataset.label_ext)
    both = sorted(images.keys() & labels.keys())
    if not both:
        raise OvsegError(
            f"data set {name!r}: no image in {metadata.image_root} has the name of a label file in "
            f"{metadata.sem_seg_root}{_advice(dataset)}"
        )
    if len(both) < len(labels):
        logger.warning(
            "data set %r: %d of %d label files in %s have no image in %s and are left out",
            *(name, len(labels) - len(both), len(labels), metadata.sem_seg_root, metadata.image_root),
        )
    return [{"file_name": images[stem], "sem_seg_file_name": labels[stem]} for stem in both]


def _files(folder: str, extension: str) -> dict[str, str]:
    """Paths of the files with an extension by the rest of their names."""
    suffix = f".{extension}"
    with os.scandir(folder) as entries:
        return {entry.name.removesuffix(suffix): entry.path for entry in entries if entry.name.endswith(suffix)}


def _holds(folder: str, extension: str) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.endswith(f".{extension}") for entry in entries)


def _advice(dataset: SemSegDataset | None) -> str:
    elsewhere = f"set DETECTRON2_DATASETS (now {str(dataset_root())!r}) if the data sets lie elsewhere"
    if dataset is None:
        return f"; check the folders it was registered with, and {elsewhere}"
    remedy = f"see section {dataset.section!r} of {README}"
    if dataset.script:
        remedy = f"run `python {dataset.script}` after the downloads in section {dataset.section!r} of {README}"
    return f"; {remedy}; or {elsewhere}"
