"""Check of prepared data sets against :mod:`ovseg.data.prepare.facts`: what is wrong, and where."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape

from ovseg.data.file_list import file_list_checksum, scan
from ovseg.data.prepare.conversion import spread
from ovseg.data.prepare.facts import Folder, Labels
from ovseg.data.prepare.sources import BadFile, NothingFound, raw_labels, read_names
from ovseg.data.prepare.stamps import Stamp
from ovseg.io.files import find_leftovers
from ovseg.io.images import open_image
from ovseg.io.progress import progress_bar


@dataclass
class Report:
    """Result of the check of one folder.

    Attributes:
        folder: what it should be.
        files: how many there are.
        left_out: how many are not there since every pixel is ignored.
        unknown: how many of a folder with a note are not in it, so that their sources are not known.
        incomplete: in which way files are lacking; empty if none are.
        faults: "path: what is wrong", one each.
    """

    folder: Folder
    files: int
    left_out: int = 0
    unknown: int = 0
    incomplete: str = ""
    faults: list[str] = field(default_factory=list)


def check_folder(root: Path, folder: Folder, workers: int, advance: Callable[[], None]) -> Report:
    """Check the files of a folder; label files are decoded, of images only the header is read.

    A file whose source has changed since it was made is a fault. Sources that look untouched are not read.

    Args:
        root: folder of all data sets.
        folder: what it should be.
        workers: threads.
        advance: called after each file.
    """
    place, labels = root / folder.path, folder.labels
    files = scan(place, folder.suffix, folder.recursive)
    images = scan(root / labels.images, labels.image_suffix, folder.recursive) if labels and labels.images else {}
    report = Report(folder, len(files))
    if folder.made:
        report.faults += [
            f"{path}: was left by a run that was killed; run the script again" for path in find_leftovers(place)
        ]
    if labels and labels.images and not images:
        report.faults.append(f"{root / labels.images}: holds no image *{labels.image_suffix} for the labels in {place}")
    stamp = Stamp.read(place) if folder.made else None
    if stamp:
        report.unknown = sum(name not in stamp.made for name in files)
        report.faults += [
            f"{place / (name + folder.suffix)}: was made before {source} was replaced; run the script again"
            for name in sorted({*files, *stamp.left_out})
            if (source := stamp.changed_source(place, name))
        ]
    _check_names(root, folder, files, images, report, stamp)

    occurs = np.zeros(2**16, dtype=bool)

    def check(name: str) -> list[str]:
        path = Path(files[name].path)
        if files[name].stat().st_size == 0:
            return [f"{path}: is empty (0 bytes)"]
        if labels is None:
            size, fault = _image_size(path) if folder.short_side else ((0, 0), "")
            if folder.short_side and min(size) > folder.short_side:
                fault = f"{path}: its shorter side has {min(size)} pixels, more than {folder.short_side}"
            return [fault] if fault else []
        return _check_labels(path, labels, images.get(name) if images else None, bool(images), occurs)

    for faults in spread(check, files, workers):
        report.faults += faults
        advance()
    if labels and labels.all_occur and not report.faults and not report.incomplete:
        absent = np.flatnonzero(~occurs[: labels.classes]).tolist()
        report.faults += [f"{place}: no pixel has the class {', '.join(map(str, absent[:10]))}"] if absent else []
    return report


def _check_names(
    root: Path, folder: Folder, files: Collection[str], images: Collection[str], report: Report, stamp: Stamp | None
) -> None:
    """Compare names with the list of the data set, else with those of the images."""
    place = root / folder.path
    known = set(files)
    if folder.labels and folder.labels.may_lack and stamp:
        known |= set(stamp.left_out)
        report.left_out = len(known) - len(files)
    listed = _listed(root, folder)
    if listed is None and folder.counts and not folder.names:
        listed = set(images) or None
    elif listed is not None:
        strange = sorted(known - listed)
        report.faults += [f"{place / (name + folder.suffix)}: is not in the list of the data set" for name in strange]
    missing = sorted(listed - known) if listed is not None else []
    few = bool(folder.counts) and len(known) < min(folder.counts)
    if missing or few:
        total = folder.counts[0] if few else len(listed or ())
        report.incomplete = f"{len(known):,} of {total:,} files"
        if missing and len(known) > len(missing):  # worth naming only where most are there
            report.incomplete += f"; missing are {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
    elif folder.counts and len(known) > max(folder.counts):
        report.faults.append(f"{place}: holds {len(known):,} files, {max(folder.counts):,} is the complete data set")
    elif folder.checksum and len(known) == folder.counts[0] and file_list_checksum(known) != folder.checksum:
        report.faults.append(
            f"{place}: the number of files is right, but their names are not those of the data set (checksum "
            f"{file_list_checksum(known)[:8]}..., should be {folder.checksum[:8]}...)"
        )


def _listed(root: Path, folder: Folder) -> set[str] | None:
    """Return the names that the folder should have by its pattern or list file; None without either."""
    for name in folder.names:
        if "{" in name:
            return {name.format(number) for number in range(1, folder.counts[0] + 1)}
        if (root / name).is_file():
            return set(read_names(root / name))
    return None


def _check_labels(
    path: Path, labels: Labels, image: os.DirEntry | None, has_images: bool, occurs: np.ndarray
) -> list[str]:
    """Return faults of a label file; mark its values in (65536,) ``occurs``."""
    try:
        values = raw_labels(path)
    except BadFile as error:
        return [f"{path}: {error}"]
    dtype = np.uint16 if labels.void is not None and labels.void > 255 else np.uint8
    if values.ndim != 2 or values.dtype != dtype:
        return [f"{path}: has shape {values.shape} and type {values.dtype}, should be (H, W) and {np.dtype(dtype)}"]
    faults = []
    present = np.zeros(2**16, dtype=bool)
    present[values] = True
    occurs |= present
    present[: labels.classes] = False
    if labels.void is not None:
        present[labels.void] = False
    if (strange := np.flatnonzero(present)).size:
        void = "" if labels.void is None else f" and {labels.void}"
        shown = ", ".join(map(str, strange[:5].tolist()))
        faults.append(f"{path}: holds {shown}, allowed are 0..{labels.classes - 1}{void}")
    if image is not None:
        size, fault = _image_size(Path(image.path))
        if fault:
            faults.append(fault)
        elif size != values.shape[::-1]:
            faults.append(f"{path}: has {values.shape[1]} x {values.shape[0]} pixels, its image {size[0]} x {size[1]}")
    elif has_images:
        faults.append(f"{path}: has no image in {labels.images}")
    return faults


def _image_size(path: Path) -> tuple[tuple[int, int], str]:
    """Return width and height by the header, and a fault if it cannot be read."""
    try:
        with open_image(path) as image:
            return image.size, ""
    except Exception as error:  # Pillow raises many kinds on damaged files
        return (0, 0), f"{path}: cannot be read ({error})"


MOST_SHOWN = 20  # faults of one folder that are printed


def verify(
    root: Path,
    folders: Sequence[Folder],
    workers: int,
    partial: bool = False,
    checks: Sequence[Callable[[Path], Iterable[str]]] = (),
) -> int:
    """Check those of ``folders`` that are there; print a line for each folder, then one for each fault.

    Args:
        root: folder of all data sets.
        folders: those of one script.
        workers: threads that read label files.
        partial: accept folders that lack files, as in a part of a data set.
        checks: the script's own; each yields faults.

    Returns:
        Exit status: 0 if everything is as it should be, else 1.

    Raises:
        NothingFound: none of the prepared folders is there.
    """
    console = Console()
    sizes = {folder: len(scan(root / folder.path, folder.suffix, folder.recursive)) for folder in folders}
    if not any(sizes[folder] for folder in folders if folder.made):
        made = " or ".join(str(root / folder.path) for folder in folders if folder.made)
        raise NothingFound(f"nothing is prepared yet: there are no files in {made}")
    reports = []
    with progress_bar(console=console, transient=True) as bar:
        for folder in folders:
            if sizes[folder]:
                task = bar.add_task(folder.path, total=sizes[folder])
                reports.append(check_folder(root, folder, workers, lambda task=task: bar.advance(task)))
    own = [fault for check in checks for fault in check(root)]
    _print(console, reports, [folder.path for folder in folders if not sizes[folder]], own)
    wrong = bool(own) or any(report.faults for report in reports)
    incomplete = any(report.incomplete for report in reports)
    if wrong:
        verdict = "WRONG: see the lines above"
    elif incomplete:
        verdict = "right as far as it goes, but incomplete" + ("" if partial else "; --partial accepts that")
    else:
        verdict = "complete and right"
    console.print(f"verdict: {verdict}", soft_wrap=True, highlight=False)
    return int(wrong or (incomplete and not partial))


def _print(console: Console, reports: Sequence[Report], absent: Sequence[str], own: Sequence[str]) -> None:
    def line(state: str, text: str, color: str) -> None:
        console.print(f"[{color}]{state:<10}[/]", escape(text), soft_wrap=True, highlight=False)

    for report in reports:
        text = f"{report.folder.path}/*{report.folder.suffix}: {report.files:,} files"
        if report.left_out:
            text += f", {report.left_out:,} left out (every pixel is ignored)"
        if report.unknown and not report.faults:
            text += f", {report.unknown:,} not yet compared with their sources (run the script without --verify)"
        if report.incomplete:
            line("incomplete", f"{text}; {report.incomplete}", "yellow")
        if report.faults:
            line("WRONG", f"{text}; {len(report.faults):,} faults, see below", "red")
        if not (report.incomplete or report.faults):
            line("right", text, "green")
    for path in absent:
        line("not there", path, "dim")
    for faults in (*(report.faults for report in reports), own):
        for fault in faults[:MOST_SHOWN]:
            console.print(fault, soft_wrap=True, highlight=False, markup=False)
        if len(faults) > MOST_SHOWN:
            console.print(f"... and {len(faults) - MOST_SHOWN:,} more like these", highlight=False)
