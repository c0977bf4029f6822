#!/usr/bin/env python3
"""Time the stages of full-size models on an image: seconds per stage, images per second, peak memory.

python tools/benchmark.py --config configs/ovseg_swinB_vitL_bs32_120k.yaml --input photo.jpg --json before.json
python tools/benchmark.py --config configs/scan_vitL.yaml --compare configs/ovseg_swinB_vitL_bs32_120k.yaml before.json
python tools/benchmark.py --config configs/toy/ovseg_toy.yaml --compare HEAD~10 --precision fp32
python tools/benchmark.py --config configs/scan_vitL.yaml --batch 1 4 --precision bf16 --compile --device cuda

Weights are random unless --opts sets MODEL.WEIGHTS; with random weights, ellipses replace the masks.
Each line of the table is the median over the runs after warm-up. Each combination of configuration, device, precision
and batch runs in a process of its own, so that peaks of memory are measured separately. A commit of --compare is
checked out in a temporary folder; its tools/benchmark.py measures --config there, between the runs of this version.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import math
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import ovseg
from ovseg.cli.options import parse_with_options
from ovseg.config.files import check_file
from ovseg.errors import OvsegError, user_errors


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", "--config-file", required=True, help="configuration of the model")
    parser.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="FILE|COMMIT",
        help="other configurations, --json files, or commits of this repository",
    )
    parser.add_argument("--input", help="an image; default: random pixels, 640 x 427")
    parser.add_argument("--class-names", nargs="+", default=["person", "sky", "building", "tree", "water"])
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], help="of CLIP: fp32, bf16, fp16")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="images at a time")
    parser.add_argument("--device", nargs="+", help="cpu, cuda; default: cpu, and cuda if there is a GPU")
    parser.add_argument("--compile", action="store_true", help="compile the networks (torch.compile)")
    parser.add_argument("--cuda-graphs", action="store_true", help="record the networks as CUDA graphs, on a GPU")
    parser.add_argument("--warm-up", type=int, default=1, help="number of runs that are not measured")
    parser.add_argument("--repeat", type=int, default=3, help="number of measured runs")
    parser.add_argument("--threads", type=int, help="number of CPU threads")
    parser.add_argument("--processor-time", action="store_true", help="measure CPU time of all threads, not wall time")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file, too")
    parser.add_argument("--opts", nargs="*", metavar="KEY VALUE", help="configuration keys and values")
    args = parse_with_options(parser, argv)
    check_file(args.config)
    if min(*args.batch, args.repeat) < 1 or args.warm_up < 0:
        parser.error("--batch and --repeat must be at least 1, --warm-up at least 0")
    return args


if __name__ == "__main__":
    with user_errors():
        parse()  # before slow imports, for --help and errors
ovseg.register()

import numpy as np
import torch
from detectron2.modeling import build_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ovseg.checkpoint import load_weights
from ovseg.config import load_cfg
from ovseg.data.mapper import ResizeShortestEdge
from ovseg.engine.timing import REST, STAGES, Stages, clock_of, time_stages
from ovseg.io.devices import find_device
from ovseg.io.files import atomic_path
from ovseg.io.images import read_image
from ovseg.proposals.network import MaskNetwork
from ovseg.proposals.views import Views
from ovseg.vocabulary import Vocabulary

ELLIPSE_AREAS = (0.005, 0.3)  # parts of the image
ELLIPSE_ASPECTS = (1.0, 4.0)
Figures = dict[str, Any]


def build(args: argparse.Namespace, config: str, device: str, precision: str, batch: int) -> tuple[nn.Module, list]:
    """Build a model in evaluation mode and the requests of a batch."""
    trained = any(str(word).partition("=")[0] == "MODEL.WEIGHTS" for word in args.opts)
    opts = [] if trained else ["MODEL.WEIGHTS", "", "MODEL.CLIP_ADAPTER.CLIP_WEIGHTS", "none"]
    opts += ["MODEL.DEVICE", device, "MODEL.CLIP_ADAPTER.PRECISION", precision]
    cfg = load_cfg(config, [*opts, "MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR", "none", *args.opts])
    torch.manual_seed(0)
    image = (
        read_image(args.input)
        if args.input
        else np.random.default_rng(0).integers(256, size=(427, 640, 3), dtype=np.uint8)
    )
    transform = ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST).get_transform(image)
    model = build_model(cfg).eval()
    if trained:
        load_weights(model, cfg.MODEL.WEIGHTS)
    elif isinstance(getattr(model, "proposer", None), MaskNetwork):
        model.proposer.predict = functools.partial(_with_ellipses, model.proposer.predict)
    if args.compile or args.cuda_graphs:
        if not hasattr(model, "accelerate"):
            raise OvsegError(
                f"{type(model).__name__} has no networks to compile or record: leave out --compile and --cuda-graphs"
            )
        model.accelerate(args.compile, args.cuda_graphs)
    pixels = torch.from_numpy(transform.apply_image(image).copy()).permute(2, 0, 1)
    words = Vocabulary.from_words(args.class_names).class_names
    request = {"image": pixels, "height": image.shape[0], "width": image.shape[1], "outputs": ("label_map",)}
    return model, [request | {"class_names": words}] * batch


def _with_ellipses(predict: Callable, views: Views) -> tuple[list[tuple[Tensor, Tensor]], torch.Size]:
    """Return the result of :meth:`MaskNetwork.predict` with ellipses in place of the masks."""
    predictions, size = predict(views)
    embeddings, masks = predictions[-1]
    return [*predictions[:-1], (embeddings, _cached_ellipses(*masks.shape[1:], masks.device).expand_as(masks))], size


@functools.cache
def _cached_ellipses(count: int, height: int, width: int, device: torch.device) -> Tensor:
    return ellipses(count, height, width).to(device)


def ellipses(count: int, height: int, width: int) -> Tensor:
    """Return mask logits (count, height, width) of ellipses of many sizes, shapes and directions, from a fixed seed."""
    draw = np.random.default_rng(0).uniform
    area = np.exp(draw(*np.log(ELLIPSE_AREAS), count)) * height * width
    aspect, angle = draw(*ELLIPSE_ASPECTS, count), draw(0, math.pi, count)
    long, short = np.sqrt(area / math.pi * aspect), np.sqrt(area / math.pi / aspect)
    x = np.arange(width) - draw(0.2, 0.8, count)[:, None, None] * width
    y = np.arange(height)[:, None] - draw(0.2, 0.8, count)[:, None, None] * height
    cosine, sine, long, short = (row[:, None, None] for row in (np.cos(angle), np.sin(angle), long, short))
    radius = np.hypot((x * cosine + y * sine) / long, (y * cosine - x * sine) / short)
    return torch.from_numpy(np.clip(20 * (1 - radius), -8, 8)).float()


@torch.no_grad()
def measure(args: argparse.Namespace, config: str, device: str, precision: str, batch: int) -> Figures:
    """Build the model of a configuration and measure its time and memory."""
    if args.threads:
        torch.set_num_threads(args.threads)
    model, requests = build(args, config, device, precision, batch)
    clock = clock_of(model.device, args.processor_time)
    text = Stages(clock)
    with text.stage("text"):
        words = model.words_of(requests[0])
        if (clip_adapter := getattr(model, "clip_adapter", None)) is not None:
            clip_adapter.text_matrix(words.texts, words.templates)
    runs = []
    for _ in range(args.warm_up + args.repeat):
        with time_stages(model, clock) as stages:
            model(requests)
        runs.append(stages.seconds)
    runs = runs[args.warm_up :]
    figures = {
        "config": Path(config).stem,
        "device": device,
        "machine": torch.cuda.get_device_name() if model.device.type == "cuda" else platform.machine(),
        "precision": precision,
        "compiled": args.compile,
        "CUDA graphs": args.cuda_graphs,
        "batch": batch,
        "input": list(requests[0]["image"].shape[1:]),
        "threads": torch.get_num_threads(),
        "clock": "processor time" if args.processor_time else "wall clock",
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "text": text.seconds["text"],
        "seconds": {
            stage: statistics.median(run[stage] for run in runs) for stage in (*STAGES, REST) if stage in runs[0]
        },
        "images/s": batch / statistics.median(sum(run.values()) for run in runs),
        "peak memory, GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,  # from KiB
    }
    if model.device.type == "cuda":
        figures["peak GPU memory, GB"] = torch.cuda.max_memory_allocated() / 2**30
    return figures


def in_child(*arguments: Any) -> Figures:
    """Run :func:`measure` in a new process.

    Raises:
        OvsegError: see :func:`measure`; or the process was killed.
    """
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_report, args=(theirs, *arguments))
    process.start()
    theirs.close()
    try:
        result = ours.recv()
    except EOFError:
        raise OvsegError("a run ended without a result: it may have run out of memory") from None
    finally:
        process.join()
    if isinstance(result, OvsegError):
        raise result
    return result


def _report(pipe: Any, *arguments: Any) -> None:
    try:
        pipe.send(measure(*arguments))
    except OvsegError as error:
        pipe.send(error)


def read_figures(path: str) -> list[Figures]:
    """Read the figures that an earlier run wrote with ``--json``; the file's name is added to each configuration.

    Raises:
        OvsegError: the file cannot be read or holds anything else.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        return [result | {"config": f"{result['config']} ({Path(path).stem})"} for result in results]
    except OSError as error:
        raise OvsegError(f"cannot read {path} ({error.strerror}): give a file that --json wrote") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise OvsegError(f"{path} is not a file of --json: give a configuration (.yaml) or such a file") from error


def is_commit(name: str) -> bool:
    """Return whether an argument of ``--compare`` is a commit of this repository, not a file or a configuration."""
    return not name.endswith((".json", ".yaml")) and _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")


@contextlib.contextmanager
def checked_out(commits: Sequence[str]) -> Iterator[dict[str, Path]]:
    """Give a temporary folder with the files of each commit."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = {commit: Path(temporary) / str(number) for number, commit in enumerate(commits)}
        try:
            for commit, folder in folders.items():
                if not _git("worktree", "add", "--quiet", "--detach", str(folder), commit):
                    raise OvsegError(f"cannot check out {commit} in {folder}: is there enough space?")
            yield folders
        finally:
            for folder in folders.values():
                _git("worktree", "remove", "--force", str(folder))


def of_commit(args: argparse.Namespace, folder: Path, commit: str, device: str, precision: str, batch: int) -> Figures:
    """Run the benchmark of a commit that is checked out in a folder.

    Raises:
        OvsegError: it failed, for example because it lacks an option.
    """
    options = ["--config", args.config, "--device", device, "--precision", precision, "--batch", str(batch)]
    options += ["--class-names", *args.class_names, "--warm-up", str(args.warm_up), "--repeat", str(args.repeat)]
    options += ["--input", args.input] if args.input else []
    options += ["--threads", str(args.threads)] if args.threads else []
    for flag in ("compile", "cuda_graphs", "processor_time"):
        options += [f"--{flag.replace('_', '-')}"] * getattr(args, flag)
    file = folder / "benchmark.json"
    options += ["--json", str(file)] + (["--opts", *map(str, args.opts)] if args.opts else [])
    command = [sys.executable, str(folder / "tools" / "benchmark.py"), *options]
    found = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, text=True, check=False
    )
    if found.returncode:
        reason = (found.stderr.strip().splitlines() or ["no message"])[-1]
        raise OvsegError(f"the benchmark of {commit} failed ({reason}): leave out options that it lacks")
    (figures,) = json.loads(file.read_text(encoding="utf-8"))
    return figures | {"config": f"{figures['config']} ({commit})"}


def _git(*arguments: str) -> bool:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    with contextlib.suppress(FileNotFoundError):  # git is not installed
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


def main(argv: Sequence[str] | None = None, run: Callable[..., Figures] = in_child) -> None:
    """Run the benchmark; ``run`` has the signature of :func:`measure`."""
    args = parse(argv)
    args.device = args.device or ["cpu", "cuda"][: 1 + torch.cuda.is_available()]
    for device in args.device:
        find_device(device, "--device")
    earlier = [figures for path in args.compare if path.endswith(".json") for figures in read_figures(path)]
    commits = [name for name in args.compare if is_commit(name)]
    configs = [args.config, *(name for name in args.compare if not name.endswith(".json") and name not in commits)]
    results = []
    with checked_out(commits) as folders:
        for device, precision, batch in itertools.product(args.device, args.precision, args.batch):
            group = [run(args, config, device, precision, batch) for config in configs]
            group += [of_commit(args, folders[commit], commit, device, precision, batch) for commit in commits]
            results += group
            same = ("device", "precision", "batch")
            show(group + [figures for figures in earlier if all(figures[key] == group[0][key] for key in same)])
    if args.json:
        with atomic_path(Path(args.json)) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n")


def show(group: Sequence[Figures]) -> None:
    """Print a table with a column per result; all but the first also show their ratio to the first."""
    first = group[0]
    height, width = first["input"]
    compiled = ", compiled" if first["compiled"] else ""
    title = f"{first['precision']}{compiled}, batch of {first['batch']}, {width} x {height} pixels"
    machine = f"{first['machine']}, {first['threads']} threads, {first['clock']}, torch {first['torch']}"
    table = Table(title=f"{title}\n{machine}")
    table.add_column("seconds")
    for figures in group:
        table.add_column(figures["config"], justify="right")
    rows = {"text, once": [figures["text"] for figures in group]}
    for stage in (*STAGES, REST):
        seconds = [figures["seconds"].get(stage, 0.0) for figures in group]
        if max(seconds) >= 5e-4:
            rows[stage] = seconds
    rows["all but the text"] = [sum(figures["seconds"].values()) for figures in group]
    for key in ("images/s", *(key for key in first if key.endswith("GB"))):
        rows[key] = [figures[key] for figures in group]
    for name, (own, *others) in rows.items():
        table.add_row(name, f"{own:.3f}", *(f"{value:.3f}  x {value / own:.2f}" if own else "" for value in others))
    Console().print(table)


if __name__ == "__main__":
    with user_errors():
        main()
