"""Check of a data set: every file is opened, every pixel counted."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovseg.config.per_dataset import is_path
from ovseg.data.benchmarks import find_dataset
from ovseg.data.catalog import check_prepared
from ovseg.data.custom.classes import Classes
from ovseg.data.custom.description import read_description
from ovseg.data.custom.geometry import different_sizes, orientation
from ovseg.data.custom.pairing import Pair, Pairing
from ovseg.data.custom.source import count_pixels, ignored_class, open_source
from ovseg.data.custom.values import IGNORED, Labels, look_up, show_unlisted
from ovseg.data.file_list import scan
from ovseg.data.prepare.conversion import spread
from ovseg.data.protocol import class_names_of
from ovseg.errors import OvsegError
from ovseg.io.images import read_image, read_labels
from ovseg.result.sheet import evenly


@dataclass(frozen=True)
class Subject:
    """A data set to check.

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
    """Return the data set of a registered name, or of a YAML file, without converting anything.

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
    """Return the pairs; images without labels are left out, since benchmarks have all splits in one folder."""
    pairs = []
    for record in DatasetCatalog.get(name):
        if not record.get("sem_seg_file_name"):
            raise OvsegError(f"data set {name!r} has no semantic labels, for example of {record.get('file_name')}")
        image, labels = Path(record["file_name"]), Path(record["sem_seg_file_name"])
        pairs.append(Pair(image.name, image, labels))
    if not pairs:
        raise OvsegError(f"data set {name!r} is empty: check the folders it was registered with")
    dataset, folder = find_dataset(name), MetadataCatalog.get(name).get("sem_seg_root")
    if dataset is None or not folder:
        return Pairing(tuple(pairs))
    used = {os.path.abspath(pair.labels) for pair in pairs}
    found = scan(Path(folder), dataset.label_suffix, dataset.recursive).values()
    unused = tuple(entry.path for entry in found if os.path.abspath(entry.path) not in used)
    return Pairing(tuple(pairs), labels_alone=unused)


# kinds of findings, in the order of reports; those of NOTES are no faults
KINDS = {
    "image_without_labels": "images without labels",
    "labels_without_image": "labels without an image",
    "not_there": "names of the split's list with neither image nor labels",
    "no_such_image": "annotations that belong to no image",
    "bad_image": "images that cannot be read",
    "bad_labels": "labels that cannot be read",
    "size": "labels of another size than their image",
    "unlisted": "labels with values outside the list of classes",
    "nothing_labelled": "the whole data set",
    "one_class": "classes that are ignored, it seems",
    "ignored_class": "classes that may be ignored",
    "rare": "rare values outside the list of classes",
    "left_out": "labels of which a part is left out",
    "all_ignored": "labels that are ignored as a whole",
    "orientation": "images that are turned as their EXIF data say",
}
NOTES = ("ignored_class", "rare", "left_out", "all_ignored", "orientation")
_RARE = 1e-3  # of all pixels


@dataclass(frozen=True)
class Finding:
    """One thing about one file.

    Attributes:
        kind: one of :data:`KINDS`.
        file: which file.
        message: one sentence that names the file.
    """

    kind: str
    file: str
    message: str


@dataclass
class Report:
    """Result of a check.

    Attributes:
        name: of the data set.
        class_names: K classes.
        num_pairs: images with labels that the data set has.
        checked: indices of the pairs that were looked at.
        findings: in the order of :data:`KINDS`, then of the files.
        pixels: (K,) int64, of each class.
        images: (K,) int64, in how many images each class occurs.
        ignored: pixels that do not count.
        unlisted: value -> pixels and files, of values outside the list of classes.
        left_out: likewise, of what does not count and is not listed: shapes without an area, values outside the list
            with ``unlisted: ignore``.
        present: by index, the classes of each pair that can be drawn: readable, labels and image of one size; K
            stands for values outside the list.
    """

    name: str
    class_names: tuple[str, ...]
    num_pairs: int
    checked: tuple[int, ...] = ()
    findings: list[Finding] = field(default_factory=list)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    images: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    ignored: int = 0
    unlisted: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, dict[str, Any]] = field(default_factory=dict)
    present: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def wrong(self) -> list[Finding]:
        """Findings that are faults, not notes."""
        return [finding for finding in self.findings if finding.kind not in NOTES]

    @property
    def never(self) -> list[str]:
        """Classes without a pixel."""
        return [name for name, pixels in zip(self.class_names, self.pixels, strict=True) if not pixels]

    def as_dict(self) -> dict[str, Any]:
        rows = zip(self.class_names, self.pixels.tolist(), self.images.tolist(), strict=True)
        return {
            "dataset": self.name,
            "ok": not self.wrong,
            "pairs": self.num_pairs,
            "checked": len(self.checked),
            "findings": [vars(finding) for finding in self.findings],
            "unlisted": self.unlisted,
            "left_out": self.left_out,
            "ignored_pixels": self.ignored,
            "classes": [{"name": name, "pixels": pixels, "images": images} for name, pixels, images in rows],
            "classes_that_never_occur": self.never,
        }


def check_dataset(
    subject: Subject,
    limit: int | None = None,
    workers: int = 1,
    on_pair: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Open every image and label file, compare their sizes, and count the pixels of every value.

    Args:
        limit: look at so many pairs, evenly spread; None for all. Files without a partner are always reported.
        workers: threads.
        on_pair: called with (pairs done, pairs in all).

    Raises:
        OvsegError: ``limit`` is below 1. What is wrong with files is in the report.
    """
    if limit is not None and limit < 1:
        raise OvsegError(f"--limit is {limit}: it must be at least 1")
    pairs, count = subject.pairing.pairs, len(subject.class_names)
    checked = evenly(len(pairs), limit)
    report = Report(subject.name, subject.class_names, len(pairs), tuple(checked))
    report.pixels, report.images = np.zeros(count, np.int64), np.zeros(count, np.int64)
    found: dict[int, list[Finding]] = {}
    tallies = _Tally(), _Tally()
    looks = spread(lambda index: _look(subject, index), checked, workers)
    for done, (index, found[index], counts, outside) in enumerate(looks, start=1):
        if counts is not None:
            report.pixels += counts[2:]
            report.images += counts[2:] > 0
            report.ignored += int(counts[1])
            if not any(finding.kind in ("size", "bad_image") for finding in found[index]):
                report.present[index] = np.flatnonzero(np.append(counts[2:], counts[0]))
        for tally, things in zip(tallies, outside, strict=True):
            tally.add(things, index, pairs[index].where)
        on_pair(done, len(checked))
    report.unlisted, report.left_out = (tally.as_dict() for tally in tallies)
    pairing, first_labels = subject.pairing, str(pairs[0].labels)
    findings = [
        *(Finding("image_without_labels", file, f"{file} has no labels") for file in pairing.images_alone),
        *(Finding("labels_without_image", file, f"{file} has no image") for file in pairing.labels_alone),
        *(Finding("not_there", name, f"{name} has neither image nor labels") for name in pairing.absent),
        *(Finding("no_such_image", first_labels, sentence) for sentence in pairing.homeless),
        *(finding for index in checked for finding in found[index]),
        *_of_all(subject, report),
    ]
    order = list(KINDS)
    report.findings = sorted(findings, key=lambda finding: order.index(finding.kind))
    return report


class _Tally:
    """Counter of pixels and files by name."""

    def __init__(self) -> None:
        self.pixels: Counter[str] = Counter()
        self.files: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)

    def add(self, things: dict[str, int], index: int, where: str) -> None:
        for name, pixels in things.items():
            self.pixels[name] += pixels
            self.files[name].append((index, where))

    def as_dict(self) -> dict[str, dict[str, Any]]:
        ordered = sorted(self.pixels, key=lambda name: (-self.pixels[name], min(self.files[name]), len(name), name))
        return {
            name: {"pixels": self.pixels[name], "files": [file for _, file in sorted(self.files[name])]}
            for name in ordered
        }


def _of_all(subject: Subject, report: Report) -> list[Finding]:
    """Return findings that only all labels together show."""
    outside = {**report.unlisted, **report.left_out}
    pixels = {name: entry["pixels"] for name, entry in outside.items() if entry["pixels"]}
    all_pixels = int(report.pixels.sum()) + report.ignored + sum(e["pixels"] for e in report.unlisted.values())
    findings = []
    if all_pixels and not report.pixels.any():
        message = f"no pixel of {subject.name} has a class: does its description fit the values of its labels?"
        findings.append(Finding("nothing_labelled", subject.name, message))
    ignored = report.ignored - sum(entry["pixels"] for entry in report.left_out.values())
    if subject.classes and (message := ignored_class(subject.classes, report.pixels, ignored)):
        chosen = subject.classes.own.ignore_label is not None
        lost = len(report.class_names) > 1 and np.count_nonzero(report.pixels) == 1 and not chosen
        kind = "one_class" if lost else "ignored_class"
        findings.append(Finding(kind, subject.name, f"{subject.name}: {message}"))
    rare = {name: count for name, count in pixels.items() if count < _RARE * all_pixels}
    if rare and (subject.classes is None or subject.classes.own.kind == "masks"):
        message = (
            f"{subject.name}: {len(rare):,} values outside the list fill less than {_RARE:.1%} of the pixels each, "
            f"{show_unlisted(rare)}: masks that were resized, smoothed or compressed have such values at edges"
        )
        findings.append(Finding("rare", subject.name, message))
    return findings


def _look(subject: Subject, index: int) -> tuple[int, list[Finding], np.ndarray | None, tuple[dict[str, int], ...]]:
    """Return ``index``, findings, :func:`count_pixels` (None if unreadable), and what is unlisted and left out."""
    pair, findings = subject.pairing.pairs[index], []
    image_size = None
    try:
        image_size = read_image(pair.image).shape[:2]
    except OvsegError as error:
        findings.append(Finding("bad_image", str(pair.image), str(error)))
    where = pair.where
    try:
        labels = subject.read(pair)
    except OvsegError as error:
        return index, [*findings, Finding("bad_labels", where, str(error))], None, ({}, {})
    if image_size is not None and labels.indices.shape != image_size:
        findings.append(Finding("size", where, different_sizes(pair, labels.indices.shape, image_size)))
    elif (turned := orientation(pair.image)) > 1:
        message = (
            f"{pair.image} is turned or mirrored (EXIF orientation {turned}): was {where} drawn on the turned image?"
        )
        findings.append(Finding("orientation", str(pair.image), message))
    if labels.unlisted:
        findings.append(Finding("unlisted", where, f"{where} has {show_unlisted(labels.unlisted)}"))
    if labels.left_out:
        findings.append(Finding("left_out", where, f"{where} leaves out {show_unlisted(labels.left_out)}"))
    counts = count_pixels(labels.indices, len(subject.class_names))
    if labels.indices.size == counts[1]:
        findings.append(Finding("all_ignored", where, f"{where} has no pixel that counts"))
    return index, findings, counts, (labels.unlisted, labels.left_out)
