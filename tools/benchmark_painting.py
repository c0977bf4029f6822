#!/usr/bin/env python3
"""Time the best class of each pixel, by chunks of classes and as the models do it, and the saving of a result.

python tools/benchmark_painting.py --threads 1 --classes 5 150 847 --megapixels 1 6
python tools/benchmark_painting.py --saving --json times.json

Masks are ellipses at the size of a model's input; scores are random. Chunks are timed for 128 classes, and their time
is multiplied for more: it is proportional to the number of classes. Times are seconds: of the processor with one
thread, which depend least on other programs, else of the clock.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ovseg.errors import user_errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", nargs="+", type=int, default=(5, 20, 150, 847, 5000), metavar="K")
    parser.add_argument("--megapixels", nargs="+", type=float, default=(0.3, 1, 6, 12), help="sizes of the result")
    parser.add_argument("--masks", type=int, default=100, metavar="N")
    parser.add_argument("--map-size", nargs=2, type=int, default=(640, 960), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3, help="number of runs; the fastest is reported")
    parser.add_argument("--saving", action="store_true", help="time the steps of saving instead, at 12 megapixels")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file, too")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # --help and mistakes are answered before what takes seconds is imported

import cv2
import numpy as np
import torch
from benchmark import ellipses
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ovseg.io.files import write_text
from ovseg.meta_arch.mask_sums import render_labels, scores_in_chunks
from ovseg.result.segmentation import Segmentation

CHUNK = 64  # MODEL.MASK_FORMER.TEST.CLASS_CHUNK_SIZE
MOST_TIMED = 128  # classes
Row = dict[str, float | int | str]


def by_chunks(weights: Tensor, maps: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return labels and scores by the running maximum of all pixels over chunks of classes, the way of a GPU."""
    best, labels = torch.full(size, -torch.inf), torch.zeros(size, dtype=torch.int64)
    for start, scores in scores_in_chunks(weights, maps, size, CHUNK, None, "bilinear"):
        chunk_best, chunk_labels = scores.max(0)
        better = chunk_best > best
        best, labels = torch.where(better, chunk_best, best), torch.where(better, chunk_labels + start, labels)
    return labels, best


def fastest(step: Callable[[], object], repeat: int, threads: int) -> float:
    """Return the seconds of the fastest of some runs."""
    clock = time.process_time if threads == 1 else time.perf_counter
    seconds = []
    for _ in range(repeat):
        begin = clock()
        step()
        seconds.append(clock() - begin)
    return min(seconds)


@torch.inference_mode()
def painting(args: argparse.Namespace) -> Iterator[Row]:
    """Yield the times of each number of classes and size of the result, and how many results are equal."""
    height, width = args.map_size
    maps = ellipses(args.masks, height, width).sigmoid()
    for megapixels in args.megapixels:
        scale = (megapixels * 1e6 / (height * width)) ** 0.5
        size = round(height * scale), round(width * scale)
        for classes in args.classes:
            torch.manual_seed(0)
            weights = (3 * torch.randn(args.masks, classes)).softmax(1)
            timed = weights[:, :MOST_TIMED]
            chunks = fastest(lambda: by_chunks(timed, maps, size), args.repeat, args.threads)  # noqa: B023
            chunks *= classes / timed.shape[1]
            now = fastest(lambda: render_labels(weights, maps, size, CHUNK), args.repeat, args.threads)  # noqa: B023
            labels, scores = by_chunks(timed, maps, size)
            same_labels, same_scores = render_labels(timed, maps, size, CHUNK)
            yield {
                "megapixels": megapixels,
                "classes": classes,
                "chunks": chunks,
                "now": now,
                "times as fast": chunks / now,
                "other labels": int((labels != same_labels).sum()),
                "largest difference": float(((scores - same_scores) / scores).abs().max()),
            }


def saving(args: argparse.Namespace) -> Iterator[Row]:
    """Yield the times of the steps of saving an image of 12 megapixels with few and many words."""
    for count in (5, 12, 60):
        random = np.random.default_rng(0)
        rough = random.standard_normal((count, 30, 40)).astype(np.float32)
        maps = np.stack([cv2.resize(one, (400, 300), interpolation=cv2.INTER_CUBIC) for one in rough])
        labels = cv2.resize(maps.argmax(0).astype(np.uint8), (4000, 3000), interpolation=cv2.INTER_NEAREST)
        image = cv2.resize(random.integers(0, 256, (150, 200, 3), dtype=np.uint8), (4000, 3000))
        names = [f"word {k}" for k in range(count)]

        def fresh() -> Segmentation:  # without what it has computed
            return Segmentation(labels.astype(np.int32), tuple(names), np.ones(count, np.float32), image)  # noqa: B023

        with tempfile.TemporaryDirectory() as folder:
            steps: dict[str, Callable[[], object]] = {
                "drawing": lambda: fresh().picture(),
                "JSON with run lengths": lambda: json.dumps(fresh().to_json()),
                "all files, PNG": lambda: fresh().save(Path(folder) / "result.png"),
                "all files, JPEG": lambda: fresh().save(Path(folder) / "result.jpg"),
                "overlay at full size": lambda: fresh().overlay(),
                "regions": lambda: fresh().regions(),
                "COCO's instances": lambda: fresh().to_coco(),
            }
            for name, step in steps.items():
                yield {"words": count, "step": name, "seconds": fastest(step, args.repeat, args.threads)}


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    rows = list((saving if args.saving else painting)(args))
    table = Table(title=f"{args.threads} threads, seconds")
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "step" else "right")
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    if args.json:
        write_text(args.json, json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    with user_errors():
        raise SystemExit(main())
