"""Every file of a data set opened, every pixel counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ovseg.data.inspection.subject import Subject
from ovseg.data.own.pairs import Pair
from ovseg.data.own.values import UNLISTED, show_unlisted
from ovseg.data.prepare.threads import spread
from ovseg.errors import OvsegError
from ovseg.images import open_image, read_image

# kinds of findings, in the order of their telling; those of NOTES are worth a look, but nothing is wrong
KINDS = {
    "image_without_labels": "images without labels",
    "labels_without_image": "labels without an image",
    "not_there": "names of the split's list with neither image nor labels",
    "bad_image": "images that cannot be read",
    "bad_labels": "labels that cannot be read",
    "size": "labels of another size than their image",
    "unlisted": "labels with values outside the list of classes",
    "nothing_labelled": "the whole data set",
    "all_ignored": "labels that are ignored as a whole",
}
NOTES = ("all_ignored",)


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
    """What was found.

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
    present: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def wrong(self) -> list[Finding]:
        """Findings that are no mere notes."""
        return [finding for finding in self.findings if finding.kind not in NOTES]

    @property
    def never(self) -> list[str]:
        """Classes without a pixel."""
        return [name for name, pixels in zip(self.class_names, self.pixels, strict=True) if not pixels]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = zip(self.class_names, self.pixels.tolist(), self.images.tolist(), strict=True)
        return {
            "dataset": self.name,
            "ok": not self.wrong,
            "pairs": self.num_pairs,
            "checked": len(self.checked),
            "findings": [vars(finding) for finding in self.findings],
            "unlisted": self.unlisted,
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
        limit: look at so many pairs, evenly spread; None for all. Files without a partner are always told.
        workers: threads.
        on_pair: told (pairs done, pairs in all).

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
    files: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    values: Counter[str] = Counter()
    for done, one in enumerate(spread(lambda index: _look(subject, index), checked, workers), start=1):
        found[one.index] = one.findings
        if one.counts is not None:
            report.pixels += one.counts[2:]
            report.images += one.counts[2:] > 0
            report.ignored += int(one.counts[1])
            if not any(finding.kind in ("size", "bad_image") for finding in one.findings):
                report.present[one.index] = np.flatnonzero(np.append(one.counts[2:], one.counts[0]))
        for value, pixels in one.unlisted.items():
            values[value] += pixels
            files[value].append((one.index, pairs[one.index].where))
        on_pair(done, len(checked))
    report.unlisted = {
        value: {"pixels": pixels, "files": [file for _, file in sorted(files[value])]}
        for value, pixels in values.most_common()
    }
    findings = _without_partner(subject) + [finding for index in checked for finding in found[index]]
    if report.ignored + sum(values.values()) and not report.pixels.any():
        message = f"no pixel of {subject.name} has a class: does its description fit the values of its labels?"
        findings.append(Finding("nothing_labelled", subject.name, message))
    order = list(KINDS)
    report.findings = sorted(findings, key=lambda finding: order.index(finding.kind))
    return report


def evenly(total: int, limit: int | None) -> list[int]:
    """At most ``limit`` of the numbers 0 .. total - 1, evenly spread, ascending."""
    count = total if limit is None else min(limit, total)
    return [position * total // count for position in range(count)]


@dataclass(frozen=True)
class _Look:
    """One pair; ``counts`` are the pixels that are unlisted, ignored, of class 0, ..., or None if not countable."""

    index: int
    findings: list[Finding]
    counts: np.ndarray | None = None
    unlisted: dict[str, int] = field(default_factory=dict)


def _look(subject: Subject, index: int) -> _Look:
    pair, findings = subject.pairing.pairs[index], []
    image_size = labels = None
    try:
        image_size = read_image(pair.image).shape[:2]
    except OvsegError as error:
        findings.append(Finding("bad_image", str(pair.image), str(error)))
    try:
        labels = subject.read(pair)
    except OvsegError as error:
        findings.append(Finding("bad_labels", pair.where, str(error)))
    if labels is None:
        return _Look(index, findings)
    where = pair.where
    if image_size is not None and labels.indices.shape != image_size:
        findings.append(Finding("size", where, _sizes(pair, labels.indices.shape, image_size)))
    if labels.unlisted:
        findings.append(Finding("unlisted", where, f"{where} has {show_unlisted(labels.unlisted)}"))
    counts = np.bincount(labels.indices.ravel() - UNLISTED, minlength=len(subject.class_names) - UNLISTED)
    if labels.indices.size == counts[1]:
        findings.append(Finding("all_ignored", where, f"{where} has no pixel that counts"))
    return _Look(index, findings, counts, labels.unlisted)


def _sizes(pair: Pair, labels: Sequence[int], image: Sequence[int]) -> str:
    text = f"{pair.where} has {labels[1]}x{labels[0]} pixels, but its image {pair.image} {image[1]}x{image[0]}"
    if tuple(labels) == tuple(image[::-1]) and _is_turned(pair):
        text += " once turned as its EXIF data say: turn the labels, too, or take the orientation out of the image"
    return text


def _is_turned(pair: Pair) -> bool:
    with open_image(pair.image) as image:
        return image.getexif().get(0x0112, 1) >= 5  # the orientations with width and height exchanged


def _without_partner(subject: Subject) -> list[Finding]:
    pairing = subject.pairing
    return [
        *(Finding("image_without_labels", file, f"{file} has no labels") for file in pairing.images_alone),
        *(Finding("labels_without_image", file, f"{file} has no image") for file in pairing.labels_alone),
        *(Finding("not_there", name, f"{name} has neither image nor labels") for name in pairing.absent),
    ]
