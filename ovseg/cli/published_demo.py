"""The work of ``main_demo.py``: segment a folder of images, and write what the ``--vis`` modes show of each."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

import ovseg
from ovseg.errors import CannotWrite, OvsegError, argument_names, explain_system_error
from ovseg.io.files import check_writable
from ovseg.io.inputs import choose_outputs, find_inputs, is_video
from ovseg.io.progress import progress_bar
from ovseg.result.modes import ModeWriter, check_modes
from ovseg.result.palettes import class_palette, word_palette
from ovseg.vocabulary import Vocabulary, label_set

if TYPE_CHECKING:
    from ovseg.config import CfgNode
    from ovseg.segmenter import Segmenter

logger = logging.getLogger("ovseg.demo")

BACKGROUND = "background"
WORDS_IN_A_LINE = 5
FLAGS = {"--config-file": "--cfg"}  # of the published commands, by those that messages name
DEFAULT_MODE = "input_pred_label"
# --vocab: a word for the classes of a data set, by its name in evaluate.seg.cfg
LABEL_SETS = {
    "voc": "pascal_voc12",
    "context": "pascal_context",
    "coco": "coco",
    "coco_stuff": "coco_stuff",
    "ade": "ade20k",
}


@argument_names({**FLAGS, "--output": "--output_folder"})
def segment_folder(args: argparse.Namespace) -> int:
    """Segment every image of a folder, and print what is found.

    Args:
        args: the options of ``main_demo.py``.

    Returns:
        0, or 1 when an image failed.

    Raises:
        OvsegError: nothing can run, or no more results can be written.
    """
    ovseg.register()
    from ovseg.config import load_cfg

    opts = options_of(args)
    cfg = load_cfg(args.cfg, opts)
    has_threshold = cfg.MODEL.META_ARCHITECTURE == "OVSegmentor"
    if has_threshold and args.no_background and args.bg_thresh is not None:
        raise OvsegError("--bg_thresh is the threshold of the background, and --no_background leaves it out: give one")
    has_background = has_threshold and not args.no_background
    if args.bg_thresh is not None:
        opts += ["MODEL.OVSEGMENTOR.BG_THRESH" if has_background else "TEST.BACKGROUND_THRESHOLD", args.bg_thresh]
    given = cfg.published() | {key: value for key, value in vars(args).items() if value}
    check_checkpoint(cfg, args.cfg)
    words = given.get("vocab") or ["ade"]
    names, label_set_name = read_words([words] if isinstance(words, str) else words)
    modes = read_modes(given.get("vis"), len(names))
    files = _find_images(given.get("image_folder"))
    folder = given.get("output_folder")
    if not folder:
        raise OvsegError("--output_folder is missing: give the folder to write the results to")
    jobs = list(zip(files, _choose_stems(files, str(folder), modes, str(given["image_folder"])), strict=True))
    if label_set_name:
        palette = class_palette(label_set_name, len(names), background=True)
    else:
        palette = word_palette(len(names), background=True)
    writer = ModeWriter(Path(folder), modes, names, palette, background=True)
    check_writable(Path(folder) / modes[0] / "a.png")
    from ovseg.segmenter import Segmenter  # takes seconds: only once everything else is known to be good

    segmenter = Segmenter.from_config(args.cfg, opts=opts, device=args.device)
    words = segmenter.prepare(Vocabulary.from_class_names(names if has_background else names[1:], "--vocab"))
    failures = write_modes(segmenter, jobs, words, writer, first=0 if has_background else 1)
    return 1 if failures else 0


def write_modes(
    segmenter: Segmenter, jobs: Sequence[tuple[Path, str]], words: Vocabulary, writer: ModeWriter, first: int = 0
) -> list[tuple[str, str]]:
    """Segment images, write what the modes show of each, and print what is found.

    Args:
        segmenter: the model.
        jobs: images, each with the stem of its results.
        words: to look for.
        writer: of the results.
        first: class of the first word; pixels without a word have the class 0.

    Returns:
        (image, reason) for each image that failed.

    Raises:
        CannotWrite: the folder cannot be written any more.
    """
    console, errors = Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True, highlight=False)
    failures: list[tuple[str, str]] = []
    with progress_bar(console=errors, show=len(jobs) > 1, transient=True) as progress:
        task = progress.add_task("images", total=len(jobs))
        for source, stem in jobs:
            try:
                result = segmenter(source, words)
                groups = [segmenter.groups(source)] if writer.needs_groups else []
                labels = np.where(result.label_map < 0, 0, result.label_map + first)
                writer.write(stem, result.image, labels, groups)
                found = ", ".join(
                    f"{result.names[k]} {result.fractions[k]:.0%}" for k in result.found[:WORDS_IN_A_LINE]
                )
                console.print(f"{source} -> {stem}: {found or 'nothing found'}", markup=False)
            except CannotWrite:
                raise
            except OvsegError as error:
                failures.append((str(source), str(error)))
            except Exception as error:  # a defect of ours, but hours of other images must not be lost by it
                if (reason := explain_system_error(error)) is None:
                    logger.exception("unexpected error with %s", source)
                    reason = f"unexpected {type(error).__name__} (see above): please report it"
                failures.append((str(source), reason))
            progress.advance(task)
    console.print(f"{len(jobs) - len(failures)} of {len(jobs)} done; results in {writer.folder}", markup=False)
    for name, reason in failures:
        errors.print(f"could not be segmented: {name}: {reason}", markup=False)
    return failures


def options_of(args: argparse.Namespace) -> list[Any]:
    """Return ``--opts`` as alternating keys and values, with that of ``--resume`` last.

    Raises:
        OvsegError: a key lacks a value.
    """
    from ovseg.config.values import option_pairs

    return [*option_pairs(args.opts, set(), ""), *(["MODEL.WEIGHTS", args.resume] if args.resume else [])]


def check_checkpoint(cfg: CfgNode, source: str) -> None:
    """Raise OvsegError unless there is a checkpoint: the original segments by random weights without a word."""
    from ovseg.config.limits import needs_checkpoint

    weights = cfg.MODEL.WEIGHTS
    if not weights and needs_checkpoint(cfg):
        raise OvsegError(
            f"--resume is missing, and {source} names no checkpoint (checkpoint.resume), so that every result would be "
            "random: give one, such as best_miou.pth"
        )
    if weights and "://" not in weights and not os.path.exists(weights):
        raise OvsegError(f"the checkpoint {weights} does not exist: give the path of one (--resume)")


def read_words(words: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return the names of ``--vocab`` behind "background", and the label set that they are the classes of, or "".

    A "background" at the beginning of the words is the one that is there in any case.

    Raises:
        OvsegError: no word, one that is blank or comes twice, or a "background" elsewhere.
    """
    if len(words) == 1 and words[0] in LABEL_SETS:
        found = label_set(_label_set_name(LABEL_SETS[words[0]]))
        return (BACKGROUND, *(name for name in found.registry_names if name != BACKGROUND)), found.name
    own = words[1:] if words[0] == BACKGROUND else words
    names = Vocabulary.from_words(own, "--vocab").names
    if BACKGROUND in names:
        raise OvsegError(f"--vocab has {BACKGROUND} behind other words: leave it out, there is one in any case")
    return (BACKGROUND, *names), ""


def _label_set_name(name: str) -> str:
    """Return the label set of a data set, by its name in ``evaluate.seg.cfg``."""
    from ovseg.config.published import TEST_SETS
    from ovseg.data.benchmarks import find_dataset

    return find_dataset(TEST_SETS[name][0]).label_set


def read_modes(modes: str | Sequence[str] | None, num_classes: int) -> tuple[str, ...]:
    """Return the modes of ``--vis``, each once."""
    modes = tuple(dict.fromkeys([modes] if isinstance(modes, str) else modes or [DEFAULT_MODE]))
    check_modes(modes, num_classes)
    return modes


def _find_images(folder: Any) -> list[Path]:
    if not folder:
        raise OvsegError("--image_folder is missing: give a folder of images")
    if not os.path.isdir(str(folder)):
        raise OvsegError(f"--image_folder {folder} is not a folder: give a folder of images")
    found, _ = find_inputs([str(folder)])
    if images := [file for file in found if not is_video(file)]:
        return images
    raise OvsegError(f"--image_folder {folder} holds no images: give a folder of JPEG or PNG files, or others")


def _choose_stems(files: Sequence[Path], output: str, modes: Sequence[str], folder: str) -> list[str]:
    """Return the name of the results of each image, that of its file; a.jpg and a.png become a and a-2."""
    for mode in modes:
        outputs = choose_outputs(files, os.path.join(output, mode), [folder])
    return [path.stem for path in outputs]
