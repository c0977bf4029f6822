#!/usr/bin/env python3
"""Measure how the time of a model grows with words, masks, pixels and the batch: seconds and exponents.

python tools/benchmark_growth.py --config configs/toy/ovseg_toy.yaml
python tools/benchmark_growth.py --config photo --axis words --values 5 150 5000
python tools/benchmark_growth.py --config configs/toy/ovseg_toy.yaml --axis side --opts INPUT.MIN_SIZE_TEST 0

Seconds are processor time, the minimum of the runs, on one thread. In brackets is the exponent from the column on the
left: log(t2 / t1) / log(n2 / n1), where t is the time of a call, and n the value; of sides, the number of pixels. 1 is
linear growth, 0 none. New words are checked and encoded once (axis "words"); all other rows are seconds per image, and
"segmentation" is the sum of the stages above it.

With the axis "masks", weights are random, MODEL.MASK_FORMER.NUM_OBJECT_QUERIES is the value, and ellipses replace the
masks (tools/benchmark.py).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import ovseg
from ovseg.cli.options import parse_with_options
from ovseg.errors import OvsegError, user_errors

AXES = {
    "words": (5, 20, 150, 847, 5000),
    "masks": (10, 20, 50, 100, 200, 300),
    "side": (320, 640, 1280, 2560, 4000),  # the longer one of the image, pixels
    "batch": (1, 2, 4, 8),
}
BASE = {"words": 20, "masks": 0, "side": 640, "batch": 1}  # of the other axes; 0 for the masks of the model
KINDS = ("red", "green", "blue", "white", "black", "grey", "brown", "yellow", "orange", "pink", "large", "small", "old")
SHOWN = 5e-4  # seconds, from which a row is shown
Figures = dict[str, float]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", "--config-file", required=True, help="configuration, or name of a model")
    parser.add_argument("--axis", nargs="+", choices=AXES, default=list(AXES), help="what grows; default: each in turn")
    parser.add_argument("--values", nargs="+", type=int, metavar="N", help="ascending values of a single axis")
    parser.add_argument("--input", metavar="FILE", help="an image; default: a photograph of scikit-learn")
    parser.add_argument("--repeat", type=int, default=3, help="number of measured runs")
    parser.add_argument("--opts", nargs="*", metavar="KEY VALUE", help="configuration keys and values")
    args = parse_with_options(parser, argv)
    if args.repeat < 1:
        parser.error(f"--repeat is {args.repeat}: give at least 1")
    if args.values and (len(args.axis) > 1 or args.values != sorted({*args.values}) or args.values[0] < 1):
        parser.error("--values takes ascending positive numbers, for one --axis")
    return args


if __name__ == "__main__":
    parse()  # before slow imports, for --help and errors
ovseg.register()

import copy
import random
import time

import benchmark
import cv2
import numpy as np
import torch
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from ovseg.config import joined_options
from ovseg.engine.timing import REST, STAGES, Stages, time_stages
from ovseg.io.images import read_image
from ovseg.io.photographs import photographs
from ovseg.proposals.network import MaskNetwork
from ovseg.segmenter import Segmenter
from ovseg.vocabulary import Vocabulary
from ovseg.vocabulary.label_set import label_set, label_set_names

ONCE = ("words checked", "words encoded")
TOTAL = "segmentation"
AFTER = ("explained segmentation", "drawing", "COCO annotations")
ROWS = (*ONCE, *STAGES, REST, TOTAL, *AFTER)


def words_of(count: int, draw: int) -> list[str]:
    """Return ``count`` words: names of the label sets, with and without an adjective; draws have no word in common.

    Raises:
        OvsegError: there are not enough words for so many draws.
    """
    names = {name.partition(",")[0].casefold() for labels in label_set_names() for name in label_set(labels).names}
    words = [*sorted(names), *(f"{kind} {name}" for kind in KINDS for name in sorted(names))]
    random.Random(0).shuffle(words)
    if len(words) < (draw + 1) * count:
        raise OvsegError(f"{count} new words for each run are more than {len(words)}: lower --repeat or --values")
    return words[draw * count : (draw + 1) * count]


def segmenter_of(args: argparse.Namespace, masks: int) -> Segmenter:
    """Return the segmenter of a configuration; with ``masks``, with random weights and so many ellipses for masks.

    Raises:
        OvsegError: the model has no network that proposes masks.
    """
    segmenter = Segmenter.from_name(args.config, ["MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR", "none", *args.opts], "cpu")
    if masks:
        if not isinstance(getattr(segmenter.model, "proposer", None), MaskNetwork):
            raise OvsegError(f"{args.config} has no network that proposes masks: leave the axis masks out")
        pairs = joined_options(args.opts, ["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", masks])
        kept = [pair for pair in zip(pairs[::2], pairs[1::2], strict=True) if pair[0] != "MODEL.WEIGHTS"]
        of_random = benchmark.parse(["--config", args.config, "--opts", *(str(part) for pair in kept for part in pair)])
        segmenter = copy.copy(segmenter)
        segmenter.model, _ = benchmark.build(of_random, args.config, "cpu", "fp32", 1)
    return segmenter


def enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """Return an image (H, W, 3) whose longer side has ``side`` pixels."""
    scale = side / max(image.shape[:2])
    return np.array(Image.fromarray(image).resize([max(1, round(length * scale)) for length in image.shape[1::-1]]))


def measure(segmenter: Segmenter, image: np.ndarray, count: int, batch: int, repeat: int) -> Figures:
    """Return the seconds of each of :data:`ROWS`, the minimum over the runs.

    Args:
        segmenter: with a model on the CPU.
        image: (H, W, 3) uint8 RGB.
        count: number of words, which are new in each run.
        batch: number of images at a time.
    """
    runs = []
    for draw in range(repeat):
        words, outside = words_of(count, draw), Stages(time.process_time)
        with outside.stage("words checked"):
            vocabulary = Vocabulary.of(words)
        with outside.stage("words encoded"):
            segmenter.prepare(vocabulary)
        with time_stages(segmenter.model, time.process_time) as stages:
            found = segmenter.batch([image] * batch, vocabulary)
        with outside.stage("explained segmentation"):
            for explained in segmenter.batch([image] * batch, vocabulary, explain=True):
                explained.explain()
        with outside.stage("drawing"):
            for result in found:
                result.picture()
        with outside.stage("COCO annotations"):
            for result in found:
                result.to_coco()
        whole = stages.seconds | {TOTAL: sum(stages.seconds.values())} | outside.seconds
        runs.append({name: seconds / (1 if name in ONCE else batch) for name, seconds in whole.items()})
    return {name: min(run.get(name, 0.0) for run in runs) for name in ROWS}


def exponents(seconds: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Return the exponents between neighbouring points, NaN where a time is 0."""
    pairs = zip(zip(seconds, sizes, strict=True), zip(seconds[1:], sizes[1:], strict=True), strict=False)
    return [math.log(t2 / t1) / math.log(n2 / n1) if t1 and t2 else math.nan for (t1, n1), (t2, n2) in pairs]


def table_of(axis: str, values: Sequence[int], points: Sequence[Figures]) -> Table:
    """Return a Markdown table with a column per value and a row per part of the work that takes time."""
    table = Table(axis, *map(str, values), box=box.MARKDOWN)
    sizes = [value**2 if axis == "side" else value for value in values]
    for name in ROWS:
        seconds = [point[name] for point in points]
        if max(seconds) < SHOWN or (name in ONCE and axis != "words"):  # later points have words of the first
            continue
        images = values if axis == "batch" else [1] * len(values)
        calls = [of_image * n for of_image, n in zip(seconds, images, strict=True)]
        slopes = ["", *(f" ({slope:.2f})" if math.isfinite(slope) else "" for slope in exponents(calls, sizes))]
        table.add_row(name, *(f"{s:.4f}{slope}" for s, slope in zip(seconds, slopes, strict=True)))
    return table


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    image = read_image(args.input) if args.input else photographs()("china")
    segmenter = segmenter_of(args, 0)
    words_of(max(args.values or AXES["words"]) if "words" in args.axis else 1, args.repeat - 1)  # or an error now
    for axis in args.axis:
        values, points = args.values or AXES[axis], []
        for value in values:
            at = BASE | {axis: value}
            model = segmenter_of(args, at["masks"]) if at["masks"] else segmenter
            points.append(measure(model, enlarged(image, at["side"]), at["words"], at["batch"], args.repeat))
        Console(width=300, highlight=False).print(table_of(axis, values, points))


if __name__ == "__main__":
    with user_errors():
        main()
