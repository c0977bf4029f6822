#!/usr/bin/env python3
"""Throughput and memory of work on data sets at full size, without the data.

python tools/benchmark_data.py prepare FOLDER --output prepare.json

prepare: writes 20,000 annotations in the size and manner of ADE20K into FOLDER, converts them by
datasets/prepare_ade20k_150.py with 1 and with 2 workers, and runs that again when everything is there. What is in
FOLDER from an earlier call is used again; remove it afterwards.

Each measurement runs in a process of its own, so that the peaks of memory are its own, too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from ovseg.data.prepare.engine import write_file
from ovseg.errors import OvsegError, user_errors
from ovseg.files import atomic_path
from ovseg.progress import progress_bar

HEIGHT, WIDTH = 512, 683  # pixels; ADE20K's most frequent size
DISTINCT = 300  # annotations that differ; the others are copies of their bytes
SCRIPT = Path(__file__).parents[1] / "datasets" / "prepare_ade20k_150.py"
BASE = Path("ADEChallengeData2016")

Figures = dict[str, Any]


def blobs(rng: np.random.Generator, classes: int) -> np.ndarray:
    """(HEIGHT, WIDTH) uint8 labels 0..classes: 6 to 24 smooth regions, as many as a picture of ADE20K has classes."""
    number = int(rng.integers(6, 25))
    noise = rng.normal(size=(12, 16, number)).astype(np.float32)
    scores = [cv2.resize(noise[:, :, i], (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) for i in range(number)]
    return rng.choice(classes + 1, number, replace=False).astype(np.uint8)[np.argmax(scores, axis=0)]


def generate(folder: Path, files: int) -> None:
    """Write annotations ADE_train_00000001.png and so on, those that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with progress_bar() as bar:
        task = bar.add_task("annotations", total=files)
        for number in range(1, files + 1):
            path = folder / f"ADE_train_{number:08d}.png"
            original = folder / f"ADE_train_{(number - 1) % DISTINCT + 1:08d}.png"
            if path == original:
                labels = blobs(rng, classes=150)  # drawn in any case, so that each number gets the same again
            if not path.exists():
                write_file(path, labels if path == original else original.read_bytes())
            bar.advance(task)


def in_a_process(measure: Callable[..., Figures], *arguments: Any) -> Figures:
    """What ``measure`` returns, from a fresh process, with its time to import and its peak of memory."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_send, args=(theirs, measure, arguments))
    process.start()
    theirs.close()
    try:
        figures = ours.recv()
    except EOFError:
        raise OvsegError(f"{measure.__name__}{arguments} was killed: it may have run out of memory") from None
    finally:
        process.join()
    if isinstance(figures, OvsegError):
        raise figures
    return figures


def _send(pipe: Any, measure: Callable[..., Figures], arguments: tuple) -> None:
    try:
        before = _peak_memory()
        figures = measure(*arguments)
        pipe.send(figures | {"peak memory, MB": _peak_memory(), "of which imports, MB": before})
    except OvsegError as error:
        pipe.send(error)


def _peak_memory() -> float:
    """MB of this process alone; what getrusage tells includes the memory of the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024  # from KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def time_preparation(root: Path, workers: int) -> Figures:
    """Seconds that datasets/prepare_ade20k_150.py takes, without its imports."""
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    begin, begin_cpu = time.perf_counter(), time.process_time()
    script.main(["--root", str(root), "--splits", "training", "--workers", str(workers)])
    return {"seconds": time.perf_counter() - begin, "CPU seconds": time.process_time() - begin_cpu}


def prepare(args: argparse.Namespace) -> list[Figures]:
    """Generate, convert with each number of workers, convert again when everything is there."""
    source = args.folder / BASE / "annotations/training"
    generate(source, args.files)
    results = []
    for workers in args.workers:
        shutil.rmtree(args.folder / BASE / "annotations_detectron2", ignore_errors=True)
        for run in ("first", "second"):
            figures = in_a_process(time_preparation, args.folder, workers)
            results.append({"run": run, "workers": workers, "files": args.files, **figures})
            results[-1]["files/s"] = args.files / figures["seconds"]
    written = len(list((args.folder / BASE / "annotations_detectron2/training").glob("*.png")))
    if written != args.files:
        raise OvsegError(
            f"{args.folder} holds {written} converted files instead of {args.files}: choose an empty folder"
        )
    return results


def add_prepare(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("prepare", help="convert annotations of ADE20K's size")
    parser.add_argument("folder", type=Path, help="for the annotations; about 1 GB is written")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.set_defaults(run=prepare)


def show(title: str, results: Sequence[Figures]) -> None:
    """Print a table with a row for each measurement."""
    table = Table(title=title)
    for key in results[0]:
        table.add_column(key, justify="right")
    for result in results:
        table.add_row(*(f"{value:,.1f}" if isinstance(value, float) else f"{value}" for value in result.values()))
    Console().print(table)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for add in (add_prepare,):
        add(commands)
    for command in commands.choices.values():
        command.add_argument("--output", type=Path, help="also write the figures as JSON")
    args = parser.parse_args(argv)
    results = args.run(args)
    show(f"{args.run.__name__}, labels of {WIDTH} x {HEIGHT} pixels", results)
    if args.output:
        with atomic_path(args.output) as temporary:
            temporary.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    with user_errors():
        main()
