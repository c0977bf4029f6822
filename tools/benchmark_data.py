#!/usr/bin/env python3
"""Measure throughput and memory of the processing of full-size data sets, on generated data.

python tools/benchmark_data.py prepare FOLDER --output prepare.json
python tools/benchmark_data.py evaluate FOLDER --output evaluate.json
python tools/benchmark_data.py render

prepare: writes 20,000 annotations of the size and kind of ADE20K into FOLDER, converts them by
datasets/prepare_ade20k_150.py with 1 and with 2 workers, and runs the script again on the finished output. Annotations
of an earlier call are reused; remove FOLDER afterwards.

evaluate: counts label maps of 150 classes (PNG) and 847 classes (TIFF, and PNG) against label files, without a model:
reading the file, counting, and both by the evaluator; runs with twice as many images show that memory does not grow.

render: renders a label map of 847 classes from 100 masks, as a model does, in chunks of classes and all at once.

Each measurement runs in a process of its own, so that peaks of memory are measured separately.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ovseg
from ovseg.errors import OvsegError, user_errors


def add_prepare(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("prepare", help="convert annotations of ADE20K's size")
    parser.add_argument("folder", type=Path, help="for the annotations; about 1 GB is written")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("evaluate", help="count label maps of 150 and 847 classes against label files")
    parser.add_argument("folder", type=Path, help="for the label files, about 20 MB")
    parser.add_argument("--images", type=int, default=2_000)


def add_render(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("render", help="memory and time of label maps of 847 classes from masks")
    parser.add_argument("--chunks", type=int, nargs="+", default=[64, 847], help="classes at a time")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (add_prepare, add_evaluate, add_render):
        add(commands)
    for command in commands.choices.values():
        command.add_argument("--output", type=Path, help="also write the figures as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # --help and mistakes are answered before what takes seconds is imported
ovseg.register()

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from rich.console import Console
from rich.table import Table

from ovseg.data.prepare.conversion import write_file
from ovseg.evaluation.confusion import label_runs
from ovseg.evaluation.sem_seg import SemSegEvaluator
from ovseg.io.files import atomic_path
from ovseg.io.images import read_labels
from ovseg.io.progress import progress_bar
from ovseg.meta_arch.pixel_scores import render_labels

HEIGHT, WIDTH = 512, 683  # pixels; ADE20K's most frequent size
DISTINCT = 300  # number of different annotations; the others are copies
DISTINCT_MAPS = 40  # pairs of prediction and truth
SCRIPT = Path(__file__).parents[1] / "datasets" / "prepare_ade20k_150.py"
BASE = Path("ADEChallengeData2016")

Figures = dict[str, Any]


def blobs(rng: np.random.Generator, classes: int, dtype: type = np.uint8) -> np.ndarray:
    """Draw (HEIGHT, WIDTH) labels 0..classes: 6 to 24 smooth regions, like the classes of an image of ADE20K."""
    number = int(rng.integers(6, 25))
    noise = rng.normal(size=(12, 16, number)).astype(np.float32)
    scores = [cv2.resize(noise[:, :, i], (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) for i in range(number)]
    return rng.choice(classes + 1, number, replace=False).astype(dtype)[np.argmax(scores, axis=0)]


def generate(folder: Path, files: int) -> None:
    """Write the missing annotations ADE_train_00000001.png and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with progress_bar() as bar:
        task = bar.add_task("annotations", total=files)
        for number in range(1, files + 1):
            path = folder / f"ADE_train_{number:08d}.png"
            original = folder / f"ADE_train_{(number - 1) % DISTINCT + 1:08d}.png"
            if path == original:
                labels = blobs(rng, classes=150)  # drawn even if it exists: the random numbers must not depend on that
            if not path.exists():
                write_file(path, labels if path == original else original.read_bytes())
            bar.advance(task)


def in_a_process(measure: Callable[..., Figures], *arguments: Any) -> Figures:
    """Run ``measure`` in a new process and return its figures with the peak of memory and that of the imports."""
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
    """Return the peak memory of this process in MB; that of getrusage includes its parent process."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024  # from KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def time_preparation(root: Path, workers: int) -> Figures:
    """Measure the seconds of datasets/prepare_ade20k_150.py, without its imports."""
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    begin, begin_cpu = time.perf_counter(), time.process_time()
    script.main(["--root", str(root), "--splits", "training", "--workers", str(workers)])
    return {"seconds": time.perf_counter() - begin, "CPU seconds": time.process_time() - begin_cpu}


def prepare(args: argparse.Namespace) -> list[Figures]:
    """Generate annotations and convert them with each number of workers, twice."""
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


def time_evaluation(folder: Path, classes: int, suffix: str, images: int) -> Figures:
    """Measure CPU milliseconds per image of reading label files, of counting, and of both by the evaluator."""
    ignore_label = 255 if classes < 255 else 65535
    files = [folder / f"labels_{classes}_{number}.{suffix}" for number in range(DISTINCT_MAPS)]
    rng, predictions = np.random.default_rng(1), []
    for file in files:
        labels = blobs(rng, classes, np.uint16 if ignore_label > 255 else np.uint8)
        labels[labels == classes] = ignore_label
        if not file.exists():
            write_file(file, labels)
        predictions.append(blobs(rng, classes - 1, np.int64))  # the type of models' label maps
    name = f"benchmark_{classes}_{suffix}"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(stuff_classes=[f"class {i}" for i in range(classes)], ignore_label=ignore_label)
    evaluator, conf = SemSegEvaluator(name), np.zeros((classes + 1, classes + 1), dtype=np.int64)
    DatasetCatalog.remove(name)  # the evaluator has read it
    MetadataCatalog.remove(name)
    seconds: Counter[str] = Counter()
    for number in range(images):
        which = number % DISTINCT_MAPS
        begin = time.process_time()
        labels = read_labels(str(files[which]))
        read = time.process_time()
        label_runs(predictions[which], labels, classes, ignore_label).add_to(conf)
        counted = time.process_time()
        plain_confusion(predictions[which], labels, classes, ignore_label)
        plain = time.process_time()
        sample = {"file_name": name, "sem_seg_file_name": str(files[which])}
        evaluator.process([sample], [{"label_map": torch.from_numpy(predictions[which])}])
        both = time.process_time()
        seconds.update({"read": read - begin, "count": counted - read, "plain": plain - counted, "both": both - plain})
    if not np.array_equal(conf, evaluator.confusion):
        raise RuntimeError("the counts of the evaluator and of label_runs differ")
    per_image = {part: 1000 * value / images for part, value in seconds.items()}
    return {
        "read, CPU ms": per_image["read"],
        "count, CPU ms": per_image["count"],
        "bincount, CPU ms": per_image["plain"],
        "images per CPU second": images / seconds["both"],
    }


def plain_confusion(pred: np.ndarray, gt: np.ndarray, classes: int, ignore_label: int) -> np.ndarray:
    """Compute a confusion matrix by one ``bincount`` over all pixels, for comparison."""
    side = classes + 1
    codes = side * pred + np.where(gt == ignore_label, classes, gt.astype(np.int64))
    return np.bincount(codes.ravel(), minlength=side * side).reshape(side, side)


def time_rendering(classes: int, chunk: int) -> Figures:
    """Measure the rendering of a label map from 100 masks of a quarter of its side, ``chunk`` classes at a time."""
    torch.manual_seed(0)
    weights, maps = torch.rand(100, classes), torch.rand(100, HEIGHT // 4, WIDTH // 4)
    begin = time.process_time()
    render_labels(weights, maps, (HEIGHT, WIDTH), chunk)
    return {"CPU seconds": time.process_time() - begin}


def evaluate(args: argparse.Namespace) -> list[Figures]:
    """Measure each kind of label file with ``args.images`` images and twice as many."""
    args.folder.mkdir(parents=True, exist_ok=True)
    return [
        {"classes": classes, "file": suffix, "images": images}
        | in_a_process(time_evaluation, args.folder, classes, suffix, images)
        for classes, suffix in ((150, "png"), (847, "tif"), (847, "png"))
        for images in (args.images, 2 * args.images)
    ]


def render(args: argparse.Namespace) -> list[Figures]:
    """Measure a label map of 847 classes, in chunks of the default size and all at once."""
    return [
        {"classes": 847, "classes at a time": chunk} | in_a_process(time_rendering, 847, chunk) for chunk in args.chunks
    ]


def show(title: str, results: Sequence[Figures]) -> None:
    """Print a table with one row per measurement."""
    table = Table(title=title)
    for key in results[0]:
        table.add_column(key, justify="right")
    for result in results:
        table.add_row(*(f"{value:,.1f}" if isinstance(value, float) else f"{value}" for value in result.values()))
    Console().print(table)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    results = {"prepare": prepare, "evaluate": evaluate, "render": render}[args.command](args)
    show(f"{args.command}, labels of {WIDTH} x {HEIGHT} pixels", results)
    if args.output:
        with atomic_path(args.output) as temporary:
            temporary.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    with user_errors():
        main()
