"""A labelling run: images to records, records to label formats, a manifest and a contact sheet.

The records are written while images are segmented. Formats are written from the records, so that another format, area
or tolerance needs no model: the same command with other such options takes seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import ovseg
from ovseg.io.files import locked_folder
from ovseg.io.progress import progress_bar
from ovseg.labelling.options import Inputs, Model, Target
from ovseg.labelling.records import Entry, key_of, read_index, read_records
from ovseg.labelling.settings import WORDS, check_settings, settings_of
from ovseg.labelling.written import PATTERN, WrittenFiles

MANIFEST, SHEET = "manifest.json", "contact_sheet.jpg"
_CHANGED = Entry(Path(), 0, (0, 0), "was changed or removed while it was labelled: run the same command again")


def run_labelling(inputs: Inputs, model: Model, target: Target) -> int:
    """Label images, or resume this, and write all outputs.

    Args:
        inputs: of :func:`ovseg.labelling.options.find_images`.
        model: the model.
        target: what is written.

    Returns:
        0, or 1 when an image failed.

    Raises:
        OvsegError: nothing can run, the folder has labels of another model or other words, or nothing more can be
            written. Finished images are kept for the next run.
    """
    console, errors = Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True, highlight=False)
    if inputs.left_out:
        console.print(f"{inputs.left_out} images in {target.folder}, the output folder, are left out", markup=False)
    ovseg.register()
    with locked_folder(target.folder):
        settings = settings_of(model)
        check_settings(target.folder, settings)
        index = _read_index(inputs, model, target)
        waiting = [path for path in inputs.images.values() if not _is_done(path, index)]
        if done := len(inputs.images) - len(waiting):
            console.print(f"{done} of {len(inputs.images)} images are labelled already", markup=False)
        if waiting:
            _label(model, waiting, target.folder, errors)
            index = _read_index(inputs, model, target)
        entries = {name: index.get(key_of(path), _CHANGED) for name, path in inputs.images.items()}
        return _Outputs(inputs, entries, model, settings, target, console, errors).write()


def _read_index(inputs: Inputs, model: Model, target: Target) -> dict[str, Entry]:
    return read_index(target.folder, inputs.images.values(), len(model.vocabulary.foreground))


def _is_done(path: Path, index: dict[str, Entry]) -> bool:
    entry = index.get(key_of(path))
    return entry is not None and entry.reason is None


def _label(model: Model, images: Sequence[Path], folder: Path, errors: Console) -> None:
    from ovseg.labelling.work import label_images  # imports Detectron2

    with progress_bar(console=errors, transient=True) as progress:
        task = progress.add_task("images", total=len(images))
        label_images(model, images, folder, lambda count: progress.advance(task, count))


@dataclass
class _Outputs:
    """Writes what users see."""

    inputs: Inputs
    entries: dict[str, Entry]
    model: Model
    settings: dict[str, Any]
    target: Target
    console: Console
    errors: Console

    def write(self) -> int:
        """Write formats, contact sheet and manifest, and print a summary; see :func:`run_labelling`."""
        names = self.model.vocabulary.foreground
        for name in self.target.formats:
            self._write_format(name, names)
        labelled = [name for name, entry in self.entries.items() if entry.reason is None]
        if self.target.sheet_images and labelled:
            from ovseg.labelling.review import draw_review

            draw_review(self.inputs, self.entries, names, self.target, self.target.folder / SHEET)
        failures = [*self.inputs.failures]
        failures += [(str(self.inputs.images[name]), e.reason) for name, e in self.entries.items() if e.reason]
        self._write_manifest(names, failures)
        self._print(labelled, failures)
        return 1 if failures else 0

    def _write_format(self, name: str, names: tuple[str, ...]) -> None:
        from ovseg.result.formats import writer_of
        from ovseg.result.formats.labelled_set import LabelledSet

        images = KeptImages(self.entries, names, self.target)
        folder = self.target.folder / name
        places = self.inputs.root, folder, self.target.tolerance, self.model.name, self.target.copy_images
        with WrittenFiles(self.target.folder / PATTERN.format(name), folder).replaced() as files:
            writer_of(name)(LabelledSet(images, names, *places, files.announce))

    def _write_manifest(self, names: tuple[str, ...], failures: list[tuple[str, str]]) -> None:
        from ovseg.result.formats.labelled_set import json_list, rounded

        head = {
            "made_by": f"ovseg {ovseg.__version__}",
            "model": self.model.name,
            "settings": {key: value for key, value in self.settings.items() if key not in WORDS},
            "words": list(names),
            "background": list(self.model.vocabulary.background),
            "root": str(self.inputs.root),
            "formats": list(self.target.formats),
            "min_area": self.target.min_area,
            "min_region_score": self.target.min_score,
            "tolerance": self.target.tolerance,
            "note": "regions are connected parts of the pixels of a word, before min_area and min_region_score; "
            "touching objects of one word are one region",
            "labelled": sum(entry.reason is None for entry in self.entries.values()),
            "failed": len(failures),
        }
        with json_list(self.target.folder / MANIFEST, head, "images") as (images, tail):
            for name, entry in self.entries.items():
                if entry.reason is None:
                    pixels = entry.size[0] * entry.size[1]
                    found = {names[k]: rounded(area / pixels) for k, area in (entry.areas or {}).items()}
                    size = {"height": entry.size[0], "width": entry.size[1]}
                    shares = dict(sorted(found.items(), key=lambda pair: -pair[1]))
                    more = {"regions": entry.regions, "score": rounded(entry.score), "shares": shares}
                    images.append({"image": name, "status": "labelled", **size, **more})
                else:
                    images.append({"image": name, "status": "failed", "reason": entry.reason})
            tail["left_out"] = [{"input": name, "reason": reason} for name, reason in self.inputs.failures]

    def _print(self, labelled: list[str], failures: list[tuple[str, str]]) -> None:
        total = len(labelled) + len(failures)
        formats = ", ".join(self.target.formats)
        self.console.print(f"{len(labelled)} of {total} labelled; {formats} in {self.target.folder}", markup=False)
        self.console.print("regions are connected parts of a word: touching objects of one word are one region")
        if self.target.sheet_images and labelled:
            self.console.print(f"look at {self.target.folder / SHEET}", markup=False)
        if failures:
            self.errors.print(f"{len(failures)} could not be labelled:", markup=False)
            for name, reason in failures:
                self.errors.print(f"  {name}: {reason}", markup=False)
        sys.stdout.flush()


class KeptImages:
    """The images of records with the regions that a target keeps, read anew for each format."""

    def __init__(self, entries: dict[str, Entry], names: tuple[str, ...], target: Target):
        self._entries, self._names, self._target = entries, names, target

    def __len__(self) -> int:
        return sum(entry.reason is None for entry in self._entries.values())

    def __iter__(self) -> Iterator[Any]:
        for image in read_records(self._entries, self._names):
            yield image.kept(self._target.min_area, self._target.min_score)
