"""A YAML file's path as the name of a data set."""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from ovseg.config.per_dataset import is_path
from ovseg.data.custom.cache import Prepared, prepare
from ovseg.data.custom.description import read_description
from ovseg.errors import OvsegError
from ovseg.io.files import is_dir, is_file

logger = logging.getLogger(__name__)

_SHOWN = 5  # files that a warning names


def register_own(name: str) -> None:
    """Register the data set that a YAML file describes, under the file's path as it was given.

    Label files that are not class indices are converted first, see :func:`ovseg.data.custom.cache.prepare`. A name
    that is registered already stays as it is, unless its file has changed.

    Raises:
        OvsegError: see :func:`ovseg.data.custom.description.read_description` and
            :func:`ovseg.data.custom.cache.prepare`.
    """
    path = Path(name)
    if not is_file(path):
        files = [file.name for file in path.parent.iterdir() if is_path(file.name)] if is_dir(path.parent) else []
        near = difflib.get_close_matches(path.name, files, n=1)
        hint = f"did you mean {path.parent / near[0]}?" if near else "give the path of the YAML file that describes it"
        raise OvsegError(f"there is no data set {name!r}: {hint}")
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    if name in DatasetCatalog.list():
        if MetadataCatalog.get(name).get("description_digest") == content:
            return
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    prepared = prepare(read_description(path))
    _warn_of_missing(name, prepared)
    pairs, classes = prepared.pairing.pairs, prepared.classes
    records = [{"file_name": str(pair.image), "sem_seg_file_name": str(pair.labels)} for pair in pairs]
    DatasetCatalog.register(name, lambda: [dict(record) for record in records])
    MetadataCatalog.get(name).set(
        stuff_classes=list(classes.vocabulary.names),
        vocabulary=classes.vocabulary,
        ignore_label=classes.ignore_label,
        evaluator_type="sem_seg",
        image_root=_common_folder(pair.image for pair in pairs),
        sem_seg_root=_common_folder(pair.labels for pair in pairs),
        description_digest=content,
    )
    if classes.evaluation_set:
        MetadataCatalog.get(name).set(evaluation_set=classes.evaluation_set)


def _warn_of_missing(name: str, prepared: Prepared) -> None:
    pairing = prepared.pairing
    for what, missing in (
        ("images have no labels and are left out", pairing.images_alone),
        ("label files have no image and are left out", pairing.labels_alone),
        ("names of the list have neither image nor labels", pairing.absent),
        ("ids of annotations are no image's, and they are left out", pairing.homeless),
        ("images have labels that are left out", prepared.left_out),
    ):
        if missing:
            shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
            logger.warning("data set %s: %d %s (%s); %d pairs", name, len(missing), what, shown, len(pairing.pairs))
    if prepared.doubt:
        logger.warning("data set %s: %s", name, prepared.doubt)


def _common_folder(paths: Iterable[Path]) -> str:
    return os.path.commonpath([path.parent for path in paths])
