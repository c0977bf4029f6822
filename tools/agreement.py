#!/usr/bin/env python3
"""Compare settings of a model that trade accuracy for speed: equal pixels, mIoU and time of each.

python tools/agreement.py --config configs/toy/ovseg_toy.yaml --data toy_sem_seg_val --images 40 \\
    --change "MODEL.NAMER.MAX_CROPS 10" --change "MODEL.CLIP_ADAPTER.PRECISION bf16"
python tools/agreement.py --config photo --input photos/*.jpg --words "cat, sofa" --change "MODEL.NAMER.MAP_SIZE 320"

Each --change is a list of keys and values, or several for one model. Images go to all models in turn, so that times
are those of one state of the machine; words are embedded before. The table is Markdown: share of pixels with the word
of the first row, mIoU of these images (with --data), seconds per image, how many times as fast as the first row.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ovseg
from ovseg.cli.options import parse_with_options
from ovseg.cli.words import read_words
from ovseg.config.files import check_file
from ovseg.errors import OvsegError, user_errors


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", "--config-file", required=True, help="configuration of the model")
    parser.add_argument("--change", action="append", required=True, metavar="KEY VALUE", help="settings to compare")
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--data", metavar="NAME", help="data set, which also gives the words")
    images.add_argument("--input", nargs="+", metavar="FILE", help="images, folders or patterns")
    parser.add_argument("--images", type=int, metavar="N", help="use N images, evenly spread")
    parser.add_argument("--words", help="words to look for in --input, separated by commas; or a file")
    parser.add_argument("--label-set", metavar="NAME", help="words to look for in --input: those of a data set")
    parser.add_argument("--device", help="default: a GPU if any")
    parser.add_argument("--opts", nargs="*", metavar="KEY VALUE", help="configuration keys and values of all models")
    args = parse_with_options(parser, argv)
    check_file(args.config)
    if args.images is not None and args.images < 1:
        parser.error(f"--images is {args.images}: give at least 1")
    if args.data and (args.words or args.label_set):
        parser.error("--words and --label-set are of --input: the data set has words of its own")
    return args


if __name__ == "__main__":
    with user_errors():
        parse()  # before slow imports, for --help and errors
ovseg.register()

import numpy as np
from detectron2.data import DatasetCatalog
from rich import box
from rich.console import Console
from rich.table import Table

from ovseg.data.protocol import Protocol, protocol_of
from ovseg.evaluation.confusion import confusion_matrix, scores_from_confusion
from ovseg.evaluation.ground_truth import GroundTruth
from ovseg.io.images import read_image
from ovseg.io.inputs import find_inputs, is_video
from ovseg.io.progress import progress_bar
from ovseg.segmenter import Segmenter
from ovseg.vocabulary import Vocabulary

DEFAULTS = "as configured"


@dataclass
class Row:
    """A model and its sums over the images."""

    name: str
    segmenter: Segmenter
    confusion: np.ndarray | int = 0
    equal: int = 0
    pixels: int = 0
    images: int = 0
    seconds: float = 0.0


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    protocol = protocol_of(args.data) if args.data else None
    vocabulary = protocol.vocabulary if protocol else read_words(args.words, args.label_set, "", args.config)
    samples = list(_samples(args))
    if args.images:
        samples = [samples[k] for k in np.unique(np.linspace(0, len(samples) - 1, args.images).round().astype(int))]
    if not samples:
        raise OvsegError("there is no image to compare: give images, folders or patterns")
    rows = []
    for change in (None, *args.change):
        opts = [*(args.opts or ()), *(change.split() if change else ())]
        row = Row(change or DEFAULTS, Segmenter.from_config(args.config, opts=opts, device=args.device))
        row.segmenter.prepare(vocabulary)
        row.segmenter(np.zeros((64, 64, 3), np.uint8), vocabulary)  # what only the first call does
        rows.append(row)
    truth = GroundTruth(args.data) if args.data else None
    with progress_bar() as progress:
        for sample in progress.track(samples, description="images"):
            _segment(rows, sample, vocabulary, protocol, truth)
    Console(width=300, highlight=False).print(_table(rows, truth))


def _samples(args: argparse.Namespace) -> Iterator[dict]:
    if args.data:
        yield from DatasetCatalog.get(args.data)
        return
    files, missing = find_inputs(args.input)
    if missing:
        raise OvsegError("; ".join(f"{name}: {reason}" for name, reason in missing))
    yield from ({"file_name": str(file)} for file in files if not is_video(file))


def _segment(
    rows: Sequence[Row], sample: dict, vocabulary: Vocabulary, protocol: Protocol | None, truth: GroundTruth | None
) -> None:
    """Add an image to the sums of all rows."""
    pixels, first = read_image(Path(sample["file_name"])), None
    for row in rows:
        start = time.perf_counter()
        result = row.segmenter(pixels, vocabulary)
        labels = result.label_map
        row.seconds += time.perf_counter() - start
        first = labels if first is None else first
        row.equal += int((labels == first).sum())
        row.pixels += labels.size
        row.images += 1
        if truth is not None:
            if (labels < 0).any():
                raise OvsegError(
                    f"{row.name}: {sample['file_name']} has unlabelled pixels, which have no class: use --input, or "
                    "evaluate with train_net.py --eval-only"
                )
            true, source = truth.labels(sample)
            classes = protocol.classes_of(labels, result.score_map)
            counts = confusion_matrix(classes, true, len(truth.class_names), truth.ignore_label, gt_source=source)
            row.confusion += counts


def _table(rows: Sequence[Row], truth: GroundTruth | None) -> Table:
    columns = ("settings", "equal pixels, %", *(("mIoU, %",) if truth else ()), "s per image", "times as fast")
    table = Table(*columns, box=box.MARKDOWN)
    for row in rows:
        scores = [f"{scores_from_confusion(row.confusion, truth.class_names)['mIoU']:.2f}"] if truth else []
        table.add_row(
            row.name,
            f"{100 * row.equal / row.pixels:.2f}",
            *scores,
            f"{row.seconds / row.images:.3f}",
            f"{rows[0].seconds / row.seconds:.2f}",
        )
    return table


if __name__ == "__main__":
    with user_errors():
        main()
