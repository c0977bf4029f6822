"""What a labelling run is asked to do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovseg.errors import OvsegError, argument
from ovseg.io.inputs import find_inputs, is_video
from ovseg.io.ray_options import RayOptions
from ovseg.result.formats import FORMATS
from ovseg.result.regions import checked_number, checked_tolerance, pixels_of
from ovseg.vocabulary import Vocabulary


@dataclass(frozen=True)
class Model:
    """The model of a run, and how it is called.

    Attributes:
        config_file, opts, device: see :meth:`ovseg.segmenter.Segmenter.from_config`.
        vocabulary: the words.
        batch: images that the model segments at a time.
        processes: each with a model of its own, and with a GPU of its own where there are several.
        savers: threads of each process that write results.
        name: as the user gave it, for manifest and formats.
        ray: label by workers of Ray.
    """

    config_file: str
    opts: tuple[Any, ...]
    device: str | None
    vocabulary: Vocabulary
    batch: int = 1
    processes: int = 1
    savers: int = 2
    name: str = ""
    ray: RayOptions | None = None


@dataclass(frozen=True)
class Target:
    """What is written from the records of a run; it may change from run to run.

    Attributes:
        folder: of all outputs.
        formats: some of :data:`ovseg.result.formats.FORMATS`.
        min_area: smallest region in pixels; below 1, a share of the image.
        min_score: lowest mean score of a region; None for no limit.
        tolerance: of polygons, pixels.
        copy_images: see :class:`ovseg.result.formats.labelled_set.LabelledSet`.
        sheet_images: images of the contact sheet; 0 for no sheet.
    """

    folder: Path
    formats: tuple[str, ...]
    min_area: float = 0.001
    min_score: float | None = None
    tolerance: float = 1.0
    copy_images: bool = False
    sheet_images: int = 24

    def __post_init__(self) -> None:
        pixels_of(self.min_area, (1, 1))
        checked_tolerance(self.tolerance)
        if self.min_score is not None:
            checked_number(self.min_score, "min_score")


def read_formats(names: Sequence[str]) -> tuple[str, ...]:
    """Return formats given one by one or separated by commas, each once.

    Raises:
        OvsegError: one does not exist, or none is given.
    """
    given = [name.strip() for text in names for name in text.split(",") if name.strip()]
    for name in given:
        if name not in FORMATS:
            raise OvsegError(
                f"{argument('--format')} {name!r} is not a label format: choose among {', '.join(FORMATS)}"
            )
    if not given:
        raise OvsegError(f"{argument('--format')} is empty: choose among {', '.join(FORMATS)}")
    return tuple(dict.fromkeys(given))


@dataclass(frozen=True)
class Inputs:
    """The images of a run.

    Attributes:
        root: folder that the names of images are relative to.
        images: by name, with ``/``, in order.
        failures: (image or argument, reason) of those that cannot be labelled.
        left_out: number of images in the output folder, as those that a pattern such as ``**/*.jpg`` finds there.
    """

    root: Path
    images: dict[str, Path]
    failures: list[tuple[str, str]]
    left_out: int = 0


def find_images(arguments: Sequence[str], output: Path) -> Inputs:
    """Return the images of files, folders and patterns, without those in the output folder.

    Images need names that differ without their suffixes, since label files have the same names. Videos are failures.

    Raises:
        OvsegError: there is no image, or an argument is the output folder.
    """
    inside = os.path.join(os.path.realpath(output), "")
    for given in arguments:
        if os.path.isdir(given) and os.path.join(os.path.realpath(given), "") == inside:
            raise OvsegError(f"the input folder {given} is the output folder, too: choose another --output")
    left_out: list[Path] = []

    def is_left_out(file: Path) -> bool:  # the file itself, not what it links to
        if below := os.path.join(os.path.realpath(file.parent), "").startswith(inside):
            left_out.append(file)
        return below

    files, failures = find_inputs(arguments, is_left_out)
    failures += [(str(file), "is a video: save its frames as images first") for file in files if is_video(file)]
    files = [file for file in files if not is_video(file)]
    if not files:
        if left_out and not failures:
            raise OvsegError(f"the image {left_out[0]} is in the output folder {output}: choose another --output")
        reason = f"{failures[0][0]}: {failures[0][1]}" if failures else "give images, folders or patterns"
        raise OvsegError(f"there is no image to label ({reason})")
    try:
        root = Path(os.path.commonpath([os.path.abspath(file.parent) for file in files]))
    except ValueError as error:  # several drives of Windows
        raise OvsegError("the images are on several drives: label those of each drive in a run of its own") from error
    images: dict[str, Path] = {}
    stems: dict[str, str] = {}
    for file in files:
        name = os.path.relpath(os.path.abspath(file), root).replace(os.sep, "/")
        stem = os.path.splitext(name)[0].casefold()
        if stem in stems:
            failures.append((str(file), f"has the name of {stems[stem]} without its suffix: rename one of them"))
            continue
        stems[stem] = name
        images[name] = file
    return Inputs(root, images, failures, len(left_out))
