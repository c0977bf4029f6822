"""A labelling run: images to records, records to label formats, a manifest and a contact sheet.

The records are written while images are segmented. Formats are written from the records, so that another format, area
or tolerance needs no model: the same command with other such options takes seconds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import ovseg
from ovseg.errors import OvsegError
from ovseg.io.files import locked_folder, write_text
from ovseg.io.progress import progress_bar
from ovseg.labelling.options import Inputs, Model, Target, find_images
from ovseg.labelling.records import Entry, read_index, read_records, record_file, stamp_of

SETTINGS, MANIFEST, SHEET = "settings.json", "manifest.json", "contact_sheet.jpg"


def run_labelling(arguments: Sequence[str], model: Model, target: Target) -> int:
    """Label images, or resume this, and write all outputs.

    Args:
        arguments: images, folders and patterns.

    Returns:
        0, or 1 when an image failed.

    Raises:
        OvsegError: nothing can run, the folder has labels of another model or other words, or nothing more can be
            written. Finished images are kept for the next run.
    """
    console, errors = Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True, highlight=False)
    inputs = find_images(arguments, target.folder)
    ovseg.register()
    with locked_folder(target.folder):
        _check_settings(target.folder, _settings(model))
        index = read_index(target.folder)
        waiting = [path for path in inputs.images.values() if not _is_done(path, index)]
        if done := len(inputs.images) - len(waiting):
            console.print(f"{done} of {len(inputs.images)} images are labelled already", markup=False)
        if waiting:
            _label(model, waiting, target.folder, errors)
            index = read_index(target.folder)
        entries = {name: index[str(path.absolute())] for name, path in inputs.images.items()}
        return _Outputs(inputs, entries, model, target, console, errors).write()


def _is_done(path: Path, index: dict[str, Entry]) -> bool:
    entry = index.get(str(path.absolute()))
    return entry is not None and entry.reason is None and entry.stamp == stamp_of(path)


def _label(model: Model, images: Sequence[Path], folder: Path, errors: Console) -> None:
    from ovseg.labelling.work import label_images  # imports Detectron2

    with progress_bar(console=errors, transient=True) as progress:
        task = progress.add_task("images", total=len(images))
        label_images(model, images, folder, lambda count: progress.advance(task, count))


def _settings(model: Model) -> dict[str, Any]:
    """Return what the records depend on."""
    from ovseg.adaptation.shard_work import teacher_settings

    words = model.vocabulary
    return {
        "words": list(words.foreground),
        "background": list(words.background),
        "texts": list(words.texts),
        **teacher_settings(model.config_file, None, model.opts),
    }


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a folder, or check that they are those of its records.

    Raises:
        OvsegError: they differ.
    """
    path = folder / SETTINGS
    settings = json.loads(json.dumps(settings))
    if any(folder.glob(record_file(folder, 0).name.replace("0", "*"))):
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            changed = [name for name in sorted({*before, *settings}) if before.get(name) != settings.get(name)]
        except (OSError, ValueError, TypeError) as error:
            raise OvsegError(f"{path} is missing or damaged: choose another --output, or delete {folder}") from error
        if changed:
            raise OvsegError(
                f"{folder} has labels that were made with other settings ({', '.join(changed)}): choose another "
                "--output, or delete it"
            )
        return
    write_text(path, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


@dataclass
class _Outputs:
    """Writes what users see."""

    inputs: Inputs
    entries: dict[str, Entry]
    model: Model
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
        model = Path(self.model.config_file).stem
        places = self.inputs.root, folder, self.target.tolerance, model, self.target.copy_images
        writer_of(name)(LabelledSet(images, names, *places))

    def _write_manifest(self, names: tuple[str, ...], failures: list[tuple[str, str]]) -> None:
        from ovseg.result.formats.labelled_set import json_list, rounded

        head = {
            "made_by": f"ovseg {ovseg.__version__}",
            "model": self.model.config_file,
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
