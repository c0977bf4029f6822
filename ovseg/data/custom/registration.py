"""Registration of data sets that YAML files describe; their labels are used where they are, or converted once.

What is converted goes to ``<user cache>/datasets/<name>-<digest>``. The digest is of the description and of the names,
sizes and times of all files (of content and of change, so that a file with an older date is noticed, too), so changed
data are converted anew; folders of earlier states may be removed at any time.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from iopath.common.file_io import file_lock

from ovseg.config.per_dataset import is_path
from ovseg.data.custom.captions import captioned_images, with_captions
from ovseg.data.custom.classes import Classes
from ovseg.data.custom.description import Description, read_description
from ovseg.data.custom.geometry import different_sizes, image_size
from ovseg.data.custom.pairing import Pair, Pairing
from ovseg.data.custom.source import Source, advice_unlisted, first_doubt, input_files, open_source
from ovseg.data.custom.values import Labels, show_unlisted
from ovseg.data.prepare.conversion import Conversion, Item, Output, convert
from ovseg.data.prepare.sources import BadFile
from ovseg.errors import OvsegError
from ovseg.io.cpus import usable_cpus
from ovseg.io.files import atomic_path, cache_dir, is_dir, is_file
from ovseg.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_SHOWN = 5  # files that a warning names
# Part of the digest in the cache's paths: raise it when the same files and description give other labels, so that they
# are converted again (tests/data/test_cache_formats.py notices).
FORMAT = 2
_ALONE = tuple(entry.name for entry in fields(Pairing) if entry.name != "pairs")
_WITHOUT_EFFECT = ("file", "captions", "vocabulary", "templates", "seen", "unseen")  # on label files


@dataclass(frozen=True)
class Prepared:
    """A data set whose labels are files of class indices.

    Attributes:
        classes: its classes.
        pairing: each pair's ``labels`` is a single-channel file of 8 or 16 bit with class indices and
            ``classes.ignore_label``.
        left_out: a sentence for each pair some of whose labels do not count, such as shapes without an area.
        doubt: what is strange about the values of the whole data set; empty for nothing.
    """

    classes: Classes
    pairing: Pairing
    left_out: tuple[str, ...] = ()
    doubt: str = ""


def prepare(own: Description, workers: int = min(8, usable_cpus())) -> Prepared:
    """Convert what has to be converted; the second time, only names and times of files are looked at.

    Several processes may ask at once: one converts, the others wait. A run that was killed is taken up.

    Args:
        workers: threads.

    Raises:
        OvsegError: no pairs, unusable label files, values without a class, or a cache that cannot be written.
    """
    folder = cache_dir() / "datasets" / f"{own.file.stem}-{_digest(own)}"
    index = folder / "index.json"
    if (prepared := _read_index(own, index)) is None:
        try:
            index.parent.parent.mkdir(parents=True, exist_ok=True)
            with file_lock(str(folder)):
                if (prepared := _read_index(own, index)) is None:
                    prepared = _convert(open_source(own), folder, workers)
                    _write_index(prepared, index)
        except OSError as error:
            reason = f"cannot keep the labels of {own.file} in {folder} ({error.strerror})"
            raise OvsegError(f"{reason}: set OVSEG_CACHE to a folder that you can write") from error
    return prepared


def _convert(source: Source, folder: Path, workers: int) -> Prepared:
    classes, pairing = source.classes, source.pairing
    suffix = ".png" if max(classes.ignore_label, len(classes) - 1) < 256 else ".tif"
    dtype = np.uint8 if suffix == ".png" else np.uint16
    items = {p.name: Item(p.name, (p.labels,), p) for p in pairing.pairs if not source.usable_as_is(p)}
    left_out: dict[str, str] = {}

    def make(_: Item, labels: Labels) -> np.ndarray:
        return np.where(labels.indices < 0, classes.ignore_label, labels.indices).astype(dtype)

    def read(pair: Pair) -> Labels:
        labels = _read(source, pair)
        left_out[pair.name] = f"{pair.where} leaves out {show_unlisted(labels.left_out)}" if labels.left_out else ""
        return labels

    output = Output(folder / "labels", make, suffix, f"own data {FORMAT}")
    if items:
        title = f"labels of {source.own.file.name}"
        jobs = Conversion(title, list(items.values()), lambda item: read(item.extra), [output], len(items))
        convert(jobs, workers)
    for item in items.values():
        if item.name not in left_out:  # made by a run that was killed
            read(item.extra)
    pairs = [Pair(p.name, p.image, output.path(items[p.name]) if p.name in items else p.labels) for p in pairing.pairs]
    sentences = tuple(text for _, text in sorted(left_out.items()) if text)
    return Prepared(classes, replace(pairing, pairs=tuple(pairs)), sentences, first_doubt(source))


def _read(source: Source, pair: Pair) -> Labels:
    try:
        labels, size = source.read(pair), image_size(pair.image)
    except OvsegError as error:
        raise BadFile(str(error)) from error  # the engine goes on with the others
    if labels.unlisted:
        raise BadFile(f"{pair.where} has {show_unlisted(labels.unlisted)}, {advice_unlisted(source.own)}")
    if size != labels.indices.shape:
        raise BadFile(different_sizes(pair, labels.indices.shape, size))
    return labels


def _digest(own: Description) -> str:
    """Return a digest of all that the label files depend on."""
    settings: dict[str, Any] = {f.name: getattr(own, f.name) for f in fields(own) if f.name not in _WITHOUT_EFFECT}
    if own.classes is not None:
        settings["classes"] = (own.classes.names, own.classes.synonyms)
    digest = hashlib.sha256(f"{FORMAT}\n{settings!r}\n".encode("utf-8", "surrogateescape"))
    for path in input_files(own):
        found = path.stat()
        digest.update(
            f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ctime_ns}\n".encode("utf-8", "surrogateescape")
        )
    return digest.hexdigest()[:16]


def _write_index(prepared: Prepared, path: Path) -> None:
    pairing, vocabulary = prepared.pairing, prepared.classes.vocabulary
    content = {"names": vocabulary.names, "synonyms": vocabulary.synonyms}
    content |= {"pairs": [(p.name, str(p.image), str(p.labels)) for p in pairing.pairs]}
    content |= {name: getattr(pairing, name) for name in _ALONE}
    content |= {"left_out": prepared.left_out, "doubt": prepared.doubt}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def _read_index(own: Description, path: Path) -> Prepared | None:
    """Return what the index lists; None if it is missing or damaged, or labels that it names were removed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = own.classes or Vocabulary(
            tuple(content["names"]), tuple(map(tuple, content["synonyms"])), f"categories of {own.file}"
        )
        pairs = tuple(Pair(name, Path(image), Path(labels)) for name, image, labels in content["pairs"])
        alone = {name: tuple(content[name]) for name in _ALONE}
        left_out, doubt = tuple(content["left_out"]), str(content["doubt"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not all(pair.labels.is_file() for pair in pairs):
        return None
    return Prepared(Classes(own, vocabulary), Pairing(pairs, **alone), left_out, doubt)


def register_own(name: str) -> None:
    """Register the data set that a YAML file describes, under the file's path as it was given.

    Label files that are not class indices are converted first, see :func:`prepare`. Captions are read when the dataset
    dicts are. A name that is registered already stays as it is, unless its file has changed.

    Raises:
        OvsegError: see :func:`ovseg.data.custom.description.read_description` and
            :func:`prepare`.
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
    own = read_description(path)
    if own.kind == "captions":
        DatasetCatalog.register(name, partial(captioned_images, own, name))
        MetadataCatalog.get(name).set(description_digest=content)
        return
    prepared = prepare(own)
    _warn_of_missing(name, prepared)
    pairs, classes = prepared.pairing.pairs, prepared.classes
    records = [{"file_name": str(pair.image), "sem_seg_file_name": str(pair.labels)} for pair in pairs]
    if own.captions is None:
        DatasetCatalog.register(name, lambda: [dict(record) for record in records])
    else:
        DatasetCatalog.register(name, partial(with_captions, own, name, records))
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
        base = classes.evaluation_set["base"]
        flags = [int(index in base) for index in range(len(classes))]
        MetadataCatalog.get(name).set(evaluation_set=classes.evaluation_set, trainable_flag=flags)


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
