"""The benchmark data sets, registered by their published names, and the check that they are on disk.

They lie below ``$DETECTRON2_DATASETS`` (default ``./datasets``). Registering touches no folder; ``datasets/README.md``
says how each one is filled.
"""

from __future__ import annotations

import difflib
import logging
import os
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovseg.config.per_dataset import KEY as PER_DATASET
from ovseg.config.per_dataset import check_values, is_path
from ovseg.data.benchmarks import DATASETS, README, SemSegDataset, dataset_root, find_dataset
from ovseg.data.caption_sets import check_portion, register_caption_sets
from ovseg.data.file_list import scan
from ovseg.data.worlds import register_worlds
from ovseg.errors import OvsegError
from ovseg.vocabulary import label_set

logger = logging.getLogger(__name__)


def register_all(root: str | Path | None = None) -> None:
    """Register the data sets of :data:`ovseg.data.benchmarks.DATASETS`, under all their names, and of captions.

    No folder is looked at. A name that another library has registered with other folders is left to it, with a warning.

    Args:
        root: folder that holds the data sets; default :func:`dataset_root`.
    """
    root = dataset_root() if root is None else Path(root)
    for dataset in DATASETS:
        for name in (dataset.name, *dataset.aliases):
            if name in DatasetCatalog.list():
                ours = [os.path.normpath(root / folder) for folder in (dataset.images, dataset.labels)]
                theirs = _folders(name)
                if None in theirs or ours != list(map(os.path.normpath, theirs)):
                    message = "data set %r is already registered, with images in %s and labels in %s: ovseg uses that"
                    logger.warning(message, name, *theirs)
            else:
                _register(name, dataset, root)
            MetadataCatalog.get(name).set(benchmark=dataset.name)  # what an alias stands for
    register_caption_sets(root)


def _register(name: str, dataset: SemSegDataset, root: Path) -> None:
    classes = label_set(dataset.label_set)
    DatasetCatalog.register(name, lambda: _load(name))
    metadata = MetadataCatalog.get(name)
    metadata.set(
        stuff_classes=list(classes.registry_names),
        image_root=str(root / dataset.images),
        sem_seg_root=str(root / dataset.labels),
        evaluator_type="sem_seg",
        ignore_label=classes.ignore_label,
    )
    if dataset.panoptic:
        metadata.set(panoptic_root=str(root / dataset.panoptic), panoptic_json=str(root / dataset.panoptic_json))
    if dataset.label_set.startswith("coco_stuff") and None not in classes.dataset_ids:
        # COCO's result format has COCO's category ids
        metadata.set(stuff_dataset_id_to_contiguous_id={id_: i for i, id_ in enumerate(classes.dataset_ids)})
    if dataset.label_set == "ade20k_847":
        metadata.set(thing_classes=list(classes.registry_names))  # as published
    if dataset.scores_splits and classes.splits:
        metadata.set(
            evaluation_set={split: list(members) for split, members in classes.splits.items()},
            trainable_flag=[int(index in classes.splits["base"]) for index in range(len(classes))],
        )


def _folders(name: str) -> tuple[str | None, str | None]:
    """Return folders of images and labels from the metadata, in which Cityscapes has other keys in Detectron2."""
    metadata = MetadataCatalog.get(name)
    return (
        metadata.get("image_root") or metadata.get("image_dir"),
        metadata.get("sem_seg_root") or metadata.get("gt_dir"),
    )


def register_on_demand(dataset_name: str) -> None:
    """Register what is registered only when it is asked for: the path of a YAML file, the data sets of a world.

    Raises:
        OvsegError: see :func:`ovseg.data.custom.registration.register_own`.
    """
    if is_path(dataset_name):
        from ovseg.data.custom.registration import register_own  # late: preparing data imports this file

        register_own(dataset_name)
    else:
        register_worlds([dataset_name])


def check_per_dataset(cfg: CfgNode) -> None:
    """Check all entries of ``TEST.PER_DATASET``, those of data sets that are not evaluated, too.

    Raises:
        OvsegError: an unknown data set or setting, or a value that cannot be; names it.
    """
    for name in map(str, cfg.TEST.PER_DATASET):
        register_worlds([name])
        if name not in DatasetCatalog.list() and not is_path(name):
            near = difflib.get_close_matches(name, DatasetCatalog.list(), n=1)
            hint = f"did you mean {near[0]}?" if near else "register it first, or remove the entry"
            raise OvsegError(f"{PER_DATASET} has settings for {name!r}, but there is no such data set; {hint}")
    check_values(cfg)


def check_prepared(dataset_name: str) -> None:
    """Make sure that a data set is registered and its folders hold images and labels.

    The path of a YAML file (:mod:`ovseg.data.custom`; the process that comes first prepares it) and the data sets of
    worlds (:mod:`ovseg.data.worlds`) are registered here. Data sets without folders in their metadata (``image_root``,
    ``sem_seg_root``), as those of worlds, pass.

    Raises:
        OvsegError: unknown name (the nearest ones are given), a missing folder, or a folder without such files; says
            the folder and the section of ``datasets/README.md`` that explains how to fill it.
    """
    register_on_demand(dataset_name)
    if is_path(dataset_name):
        return
    if dataset_name not in DatasetCatalog.list():
        check_portion(dataset_name)
        near = difflib.get_close_matches(dataset_name, DatasetCatalog.list(), n=3)
        known = ", ".join(near or [dataset.name for dataset in DATASETS])
        raise OvsegError(
            f"data set {dataset_name!r} is not registered: {'did you mean ' if near else 'there are '}{known}?"
        )
    ours = find_dataset(dataset_name)
    images, labels = _folders(dataset_name)
    folders = {"images": (images, ours and ours.image_suffix), "labels": (labels, ours and ours.label_suffix)}
    local = {what: (path, suffix) for what, (path, suffix) in folders.items() if path and "://" not in path}
    if missing := [f"{path} ({what})" for what, (path, _) in local.items() if not os.path.isdir(path)]:
        raise OvsegError(f"data set {dataset_name!r} is not prepared: missing {' and '.join(missing)}{_advice(ours)}")
    for what, (path, suffix) in local.items():
        if suffix and not scan(Path(path), suffix, ours.recursive):
            raise OvsegError(
                f"data set {dataset_name!r} is not prepared: {path} holds no file that ends in {suffix}; expected are "
                f"{what} {os.path.join(path, '<image name>')}{suffix}{_advice(ours)}"
            )


def _load(name: str) -> list[dict]:
    """Return the records (``file_name``, ``sem_seg_file_name``) of one of our data sets, ordered by name.

    Not by Detectron2's ``load_sem_seg``: with equally many images and labels it pairs them whatever their names are.
    """
    check_prepared(name)
    dataset = find_dataset(name)
    image_root, label_root = _folders(name)
    images = scan(Path(image_root), dataset.image_suffix, dataset.recursive)
    labels = scan(Path(label_root), dataset.label_suffix, dataset.recursive)
    both = sorted(images.keys() & labels.keys())
    if not both:
        raise OvsegError(
            f"data set {name!r}: no image in {image_root} has the name of a label file in "
            f"{label_root}{_advice(dataset)}"
        )
    if len(both) < len(labels):
        logger.warning(
            "data set %r: %d of %d label files in %s have no image in %s and are left out",
            *(name, len(labels) - len(both), len(labels), label_root, image_root),
        )
    return [{"file_name": images[stem].path, "sem_seg_file_name": labels[stem].path} for stem in both]


def _advice(dataset: SemSegDataset | None) -> str:
    elsewhere = f"set DETECTRON2_DATASETS (now {str(dataset_root())!r}) if the data sets lie elsewhere"
    if dataset is None:
        return f"; check the folders it was registered with, and {elsewhere}"
    remedy = f"see section {dataset.section!r} of {README}"
    if dataset.script:
        remedy = f"run `python {dataset.script}` after the downloads in section {dataset.section!r} of {README}"
    return f"; {remedy}; or {elsewhere}"
