#!/usr/bin/env python3
"""Compare settings of full-size models on one GPU: time, memory, share of the peak rate, host synchronisations.

python tools/benchmark_gpu.py
python tools/benchmark_gpu.py --models ovseg scan --settings fp32 bf16 bf16+graphs --json gpu.json

Weights are random, and ellipses replace the masks (see tools/benchmark.py). Each setting gives the same image to the
same model; the time of an image is the median over --repeat images given one after the other, with the copy of the
label map to the host. The share of the peak rate is that of a product of two 8192 x 8192 matrices of the same type,
measured first. "Synchronisations" are the times that the host waits for the GPU within the model.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import ovseg
from ovseg.cli.options import parse_with_options
from ovseg.errors import user_errors

MODELS: dict[str, tuple[str, list[str]]] = {  # configuration and options
    "ovseg": ("configs/ovseg_swinB_vitL_bs32_120k.yaml", []),
    "ovseg-pooled": (
        "configs/ovseg_swinB_vitL_bs32_120k.yaml",
        ["MODEL.META_ARCHITECTURE", "ProposeAndName", "MODEL.NAMER.NAME", "['QueryEmbedding', 'PooledMap']"],
    ),
    "scan": ("configs/scan_vitL.yaml", []),
}
SETTINGS = {  # precision of both networks, TF32, compiled, CUDA graphs
    "fp32": ("fp32", False, False, False),
    "tf32": ("fp32", True, False, False),
    "bf16": ("bf16", False, False, False),
    "bf16+graphs": ("bf16", False, False, True),
    "bf16+compiled+graphs": ("bf16", False, True, True),
}
MATRIX = 8192


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="models to measure")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="the first: reference")
    parser.add_argument("--input", help="an image; default: random pixels, 640 x 427, enlarged to 959 x 640")
    parser.add_argument(
        "--class-names", nargs="+", default=["person", "sky", "building", "tree", "water", "grass", "car", "dog"]
    )
    parser.add_argument("--device", default="cuda", help="cuda; cpu to try this program")
    parser.add_argument("--repeat", type=int, default=20, help="number of measured images")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file, too")
    parser.add_argument("--opts", nargs="*", metavar="KEY VALUE", help="configuration keys and values")
    return parse_with_options(parser, argv)


if __name__ == "__main__":
    parse()  # before slow imports, for --help and errors
ovseg.register()

import torch
from benchmark import build
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ovseg.io.devices import find_device
from ovseg.io.files import atomic_path

Row = dict[str, object]


def use(model: nn.Module, setting: str) -> None:
    """Switch a model to a setting."""
    precision, tf32, compiled, graphs = SETTINGS[setting]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    model.clip_adapter.precision = model.proposer.precision = precision
    model.accelerate(compiled, graphs)


@contextlib.contextmanager
def counted_synchronisations(count: list[str]) -> Iterator[None]:
    """Append to ``count`` the place of each synchronisation of the host with the GPU."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for each in caught:
        if "called a synchronizing" in str(each.message):
            count.append(f"{Path(each.filename).name}:{each.lineno}")


@torch.inference_mode()
def measure(model: nn.Module, requests: list, setting: str, repeat: int, flops: int, peaks: dict[str, float]) -> Row:
    """Return the figures of a setting; ``flops`` are those of an image, ``peaks`` of :func:`peak_rates`."""
    on_gpu = model.device.type == "cuda"
    use(model, setting)
    begin = time.perf_counter()
    for _ in range(3):
        labels = model(requests)[0]["label_map"].cpu()
    first = time.perf_counter() - begin
    places: list[str] = []
    if on_gpu:
        with counted_synchronisations(places):
            model(requests)
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeat):
        begin = time.perf_counter()
        model(requests)[0]["label_map"].cpu()
        seconds.append(time.perf_counter() - begin)
    row: Row = {"setting": setting, "ms": 1e3 * statistics.median(seconds), "first three images, s": first}
    row["synchronisations"], row["places"] = len(places), places
    if on_gpu:
        row["peak memory, GB"] = torch.cuda.max_memory_allocated() / 2**30
    precision, tf32, *_ = SETTINGS[setting]
    kind = "tf32" if tf32 else precision
    if kind in peaks:
        row["share of peak, %"] = 100 * flops / (row["ms"] / 1e3) / peaks[kind]
    row["labels"] = labels
    return row


def peak_rates() -> dict[str, float]:
    """Return the rate of a product of two large matrices, FLOP/s, by type."""
    rates = {}
    for name, dtype, tf32 in (
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bf16", torch.bfloat16, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        left, right = (torch.randn(MATRIX, MATRIX, device="cuda", dtype=dtype) for _ in range(2))
        times = []
        for _ in range(8):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            left @ right
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        rates[name] = 2 * MATRIX**3 / statistics.median(times[2:])
    return rates


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    device = find_device(args.device, "--device")
    peaks = peak_rates() if device.type == "cuda" else {}
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    title = f"{name}, torch {torch.__version__}; peak rates, TFLOP/s: " + ", ".join(
        f"{kind} {rate / 1e12:.0f}" for kind, rate in peaks.items()
    )
    print(title, flush=True)
    rows: list[Row] = []
    for chosen in args.models:
        config, opts = MODELS[chosen]
        wanted = argparse.Namespace(
            **vars(args) | {"opts": [*opts, *args.opts], "compile": False, "cuda_graphs": False}
        )
        with torch.device(device):
            model, requests = build(wanted, config, args.device, "fp32", 1)
        use(model.requires_grad_(False), "fp32")  # the counter needs it
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(requests)
        flops = counter.get_total_flops()
        reference = None
        for setting in args.settings:
            try:
                row = measure(model, requests, setting, args.repeat, flops, peaks)
            except Exception:  # one setting must not cost the others their figures
                traceback.print_exc()
                continue
            labels = row.pop("labels")
            reference = labels if reference is None else reference
            row["equal pixels, %"] = 100 * (labels == reference).float().mean().item()
            rows.append({"model": chosen, "TFLOP": flops / 1e12, **row})
            print(rows[-1], flush=True)
            if args.json:
                with atomic_path(Path(args.json)) as temporary:
                    temporary.write_text(json.dumps({"device": title, "rows": rows}, indent=1) + "\n")
        del model
    show(title, rows)


def show(title: str, rows: Sequence[Row]) -> None:
    """Print the figures as a table."""
    columns = ["model", "setting", "ms", "first three images, s", "peak memory, GB", "share of peak, %"]
    columns += ["synchronisations", "equal pixels, %"]
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column in ("model", "setting") else "right")
    for model, group in itertools.groupby(rows, lambda row: row["model"]):
        for row in group:
            cells = (row.get(column, "") for column in columns[1:])
            table.add_row(model, *(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells))
        table.add_section()
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    with user_errors():
        main()
