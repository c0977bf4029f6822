"""Labels of somebody's own data set as files of class indices: used where they are, or converted once.

What is converted goes to ``<user cache>/datasets/<name>-<digest>``. The digest is of the description and of the names,
sizes and times of all files, so changed data are converted anew; folders of earlier states may be removed at any time.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from iopath.common.file_io import file_lock

from ovseg.cpus import usable_cpus
from ovseg.data.own.classes import Classes
from ovseg.data.own.description import Description
from ovseg.data.own.pairs import Pair, Pairing
from ovseg.data.own.source import Source, advice_unlisted, input_files, open_source
from ovseg.data.own.values import Labels, show_unlisted
from ovseg.data.prepare.engine import Conversion, Item, Output, convert
from ovseg.data.prepare.sources import BadFile
from ovseg.errors import OvsegError
from ovseg.files import atomic_path, cache_dir
from ovseg.vocabulary import Vocabulary

_READERS = ("cache", "classes", "coco", "description", "labelme", "pairs", "source", "values")
_WITHOUT_EFFECT = ("file", "vocabulary", "templates", "seen", "unseen")  # on label files


@dataclass(frozen=True)
class Prepared:
    """A data set whose labels are files of class indices.

    Attributes:
        classes: its classes.
        pairing: each pair's ``labels`` is a single-channel file of 8 or 16 bit with class indices and
            ``classes.ignore_label``.
    """

    classes: Classes
    pairing: Pairing


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
    output = Output(folder / "labels", lambda _, labels: _file_content(labels, classes), suffix, _version())
    items = {p.name: Item(p.name, (p.labels,), p) for p in pairing.pairs if not source.usable_as_is(p)}
    if items:
        title = f"labels of {source.own.file.name}"
        convert(
            Conversion(title, list(items.values()), lambda item: _read(source, item.extra), [output], len(items)),
            workers,
        )
    pairs = [Pair(p.name, p.image, output.path(items[p.name]) if p.name in items else p.labels) for p in pairing.pairs]
    return Prepared(classes, Pairing(tuple(pairs), pairing.images_alone, pairing.labels_alone, pairing.absent))


def _read(source: Source, pair: Pair) -> Labels:
    try:
        labels = source.read(pair)
    except OvsegError as error:
        raise BadFile(str(error)) from error  # the engine goes on with the others
    if labels.unlisted:
        raise BadFile(f"{pair.where} has {show_unlisted(labels.unlisted)}, {advice_unlisted(source.own)}")
    return labels


def _file_content(labels: Labels, classes: Classes) -> np.ndarray:
    """(H,W) uint8 or uint16."""
    dtype = np.uint8 if max(classes.ignore_label, len(classes) - 1) < 256 else np.uint16
    return np.where(labels.indices < 0, classes.ignore_label, labels.indices).astype(dtype)


def _digest(own: Description) -> str:
    """Of all that the label files depend on."""
    settings: dict[str, Any] = {f.name: getattr(own, f.name) for f in fields(own) if f.name not in _WITHOUT_EFFECT}
    if own.classes is not None:
        settings["classes"] = (own.classes.names, own.classes.synonyms)
    digest = hashlib.sha256(f"{_version()}\n{settings!r}\n".encode())
    for path in input_files(own):
        found = path.stat()
        digest.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


@cache
def _version() -> str:
    """Of the code that reads labels, so that what older code has made is made again."""
    digest = hashlib.sha256()
    for name in _READERS:
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:12]


def _write_index(prepared: Prepared, path: Path) -> None:
    pairing, vocabulary = prepared.pairing, prepared.classes.vocabulary
    content = {
        "names": vocabulary.names,
        "synonyms": vocabulary.synonyms,
        "pairs": [(p.name, str(p.image), str(p.labels)) for p in pairing.pairs],
        "images_alone": pairing.images_alone,
        "labels_alone": pairing.labels_alone,
        "absent": pairing.absent,
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def _read_index(own: Description, path: Path) -> Prepared | None:
    """None when there is none, or it is damaged, or labels that it names have been removed."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = own.classes or Vocabulary(
            tuple(content["names"]), tuple(map(tuple, content["synonyms"])), f"categories of {own.file}"
        )
        pairs = tuple(Pair(name, Path(image), Path(labels)) for name, image, labels in content["pairs"])
        alone = (tuple(content[key]) for key in ("images_alone", "labels_alone", "absent"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not all(pair.labels.is_file() for pair in pairs):
        return None
    return Prepared(Classes(own, vocabulary), Pairing(pairs, *alone))
