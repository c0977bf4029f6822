#!/usr/bin/env python3
"""Time deformable attention's sampling against one ``grid_sample`` per level, and compare their results.

python tools/benchmark_attention.py --input-size 640 960
python tools/benchmark_attention.py --device cuda --batch 4

The table has milliseconds of processor time on a CPU, which depends least on other programs, else of wall time.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence

from ovseg.errors import OvsegError, user_errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input-size", nargs=2, type=int, default=(640, 960), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeat", type=int, default=5, help="number of runs; the fastest is reported")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # --help and mistakes are answered before what takes seconds is imported

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ovseg.io.devices import find_device
from ovseg.proposals.deformable_attention import Pyramid
from ovseg.proposals.deformable_sampling import compiled_op, sample_compiled, sample_grids, sample_levels

STRIDES = (32, 16, 8)  # of the maps that Mask2Former's pixel decoder encodes
HEADS, CHANNELS, POINTS = 8, 32, 4
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # of values and weights

Operands = tuple[Tensor, tuple[tuple[int, int], ...], Tensor, Tensor, Tensor]


def operands(batch: int, input_size: tuple[int, int], device: str) -> Operands:
    """Return random operands of :func:`sample_levels`, with points within a few pixels of each query's position."""
    height, width = input_size
    sizes = tuple((-(-height // stride), -(-width // stride)) for stride in STRIDES)
    pyramid = Pyramid.of(sizes, torch.device(device))
    torch.manual_seed(0)
    shape = (batch, len(pyramid.x), HEADS, len(STRIDES), POINTS)
    value = torch.randn(*shape[:3], CHANNELS, device=device)
    x, y = (centre[:, None, :, None] + 3 * torch.randn(shape, device=device) for centre in (pyramid.x, pyramid.y))
    weights = torch.randn(*shape[:3], len(STRIDES) * POINTS, device=device).softmax(-1).view(shape)
    return value, sizes, x, y, weights


def milliseconds(work: Callable[[], object], repeat: int, device: str) -> float:
    """Return the milliseconds of the fastest of ``repeat`` runs, after one warm-up run."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    runs = []
    for _ in range(repeat + 1):
        start = clock()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        runs.append(clock() - start)
    return 1000 * min(runs[1:])


def measure(function: Callable[..., Tensor], given: Operands, repeat: int, device: str) -> tuple[float, float]:
    """Return the milliseconds of the forward pass, and of forward and backward pass together."""
    value, sizes, x, y, weights = given

    def forward() -> None:
        with torch.no_grad():
            function(value, sizes, x, y, weights)

    leaves = [tensor.clone().requires_grad_() for tensor in (value, x, y, weights)]
    gradient = torch.randn_like(value)

    def both() -> None:
        torch.autograd.grad(function(leaves[0], sizes, *leaves[1:]), leaves, gradient)

    return milliseconds(forward, repeat, device), milliseconds(both, repeat, device)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if min(*args.input_size, args.batch, args.repeat) < 1:
        raise OvsegError("--input-size, --batch and --repeat must be positive")
    find_device(args.device, "--device")

    given = operands(args.batch, tuple(args.input_size), args.device)
    value, sizes, x, y, weights = given
    double = [tensor.double() for tensor in (x, y, weights)]
    exact = sample_grids(value.double(), sizes, *double)
    threads = f", {torch.get_num_threads()} threads" if args.device == "cpu" else ""
    table = Table(
        title=f"levels {', '.join(f'{h} x {w}' for h, w in sizes)}, {args.device}{threads}, batch {len(value)}"
    )
    for column in ("", "type", "forward", "forward + backward", "largest error"):
        table.add_column(column, justify="right" if column else "left")

    def add(name: str, function: Callable[..., Tensor], dtype: torch.dtype, reference: tuple[float, float] | None):
        places = torch.promote_types(dtype, torch.float32)
        low = (value.to(dtype), sizes, x.to(places), y.to(places), weights.to(dtype))
        times = measure(function, low, args.repeat, args.device)
        error = (function(*low).double() - exact).abs().max().item()
        shown = [f"{ms:.1f} ms" for ms in times]
        if reference:
            shown = [f"{text} ({base / ms:.1f}x)" for text, ms, base in zip(shown, times, reference, strict=True)]
        table.add_row(name, str(dtype).removeprefix("torch."), *shown, f"{error:.1e}")
        return times

    reference = add("grid_sample per level", sample_grids, torch.float32, None)
    for dtype in DTYPES:
        add("ours", sample_levels, dtype, reference)
    op = compiled_op() if args.device != "cpu" else None
    if op is not None:
        add("compiled op", functools.partial(sample_compiled, op), torch.float32, reference)
    Console().print(table)


if __name__ == "__main__":
    with user_errors():
        main()
