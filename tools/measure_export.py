#!/usr/bin/env python3
r"""Export models and measure the graphs: differences, speeds, and how many pixels of label maps are equal.

python tools/measure_export.py configs/toy/ovseg_toy.yaml configs/toy/scan_toy.yaml photo --images 10
python tools/measure_export.py configs/ovseg_swinB_vitL_demo.yaml --size 640x640 --images 0 \
    --opts MODEL.WEIGHTS "" MODEL.CLIP_ADAPTER.CLIP_WEIGHTS none

Weights are random where a configuration names none, or where --opts empties MODEL.WEIGHTS. Images are toy scenes, or
those of --input. Models whose proposer is not exported get its masks. The tables are Markdown (docs/export.md); what
cannot be exported has its reason there. Times are of the processor, one thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import ovseg
from ovseg.cli.export import FORMATS, read_size
from ovseg.cli.options import parse_with_options
from ovseg.errors import OvsegError, user_errors

if TYPE_CHECKING:
    from ovseg.export.runtime import Runtime
    from ovseg.segmenter import Segmenter

GRAPHS = "| model | graph | largest difference | eager, ms | exported, ms | ratio | MB |\n|---|---|---|---|---|---|---|"
IMAGES = "| model | equal pixels, % | worst image | eager, s | runtime, s | ratio |\n|---|---|---|---|---|---|"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME|FILE", help="names of configurations, or files")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="of the graphs")
    parser.add_argument("--size", help="height and width of images, as 640x640; default: any")
    parser.add_argument("--images", type=int, default=10, help="number of images whose label maps are compared")
    parser.add_argument("--input", nargs="+", default=[], metavar="FILE", help="images; default: toy scenes")
    parser.add_argument("--words", help="words, separated by commas; default: those of the toy world")
    parser.add_argument("--opset", type=int, default=18, help="version of ONNX's operators")
    parser.add_argument("--opts", nargs="*", metavar="KEY VALUE", help="configuration keys and values")
    parser.add_argument("--output", type=Path, help="folder to keep the exports in; default: none")
    return parse_with_options(parser, argv)


def segmenter_of(name: str, opts: Sequence[str]) -> Segmenter:
    """Return the model of a configuration and options, with random weights if they name none."""
    import torch
    from detectron2.modeling import build_model

    from ovseg.config import load_cfg
    from ovseg.config.limits import needs_checkpoint
    from ovseg.segmenter import Segmenter

    cfg = load_cfg(name, opts)
    if cfg.MODEL.WEIGHTS or not needs_checkpoint(cfg):
        return Segmenter.from_config(name, opts=opts, device="cpu")
    cfg.MODEL.DEVICE = "cpu"
    size = {"min_size": cfg.INPUT.MIN_SIZE_TEST, "max_size": cfg.INPUT.MAX_SIZE_TEST}
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    return Segmenter(model, **size, antialias=cfg.INPUT.ANTIALIAS_TEST, name=Path(name).stem)


def images_of(args: argparse.Namespace) -> Iterator[np.ndarray]:
    """Yield the images, (H, W, 3) uint8 RGB."""
    from ovseg.io.images import read_image
    from ovseg.toy.classes import SPLITS
    from ovseg.toy.scene import make_scene

    for index in range(args.images):
        yield (
            read_image(args.input[index % len(args.input)])
            if args.input
            else make_scene(SPLITS["val"][0] + index).image
        )


def compare(segmenter: Segmenter, runtime: Runtime, args: argparse.Namespace) -> str:
    """Return the row of a model in the table of images."""
    shares, eager, exported = [], 0.0, 0.0
    for image in images_of(args):
        masks = None if "masks" in runtime.sessions else segmenter.propose(image).numpy()
        start = time.process_time()
        ours = segmenter(image, runtime.names).label_map
        middle = time.process_time()
        theirs = runtime(image, masks)
        eager, exported = eager + middle - start, exported + time.process_time() - middle
        shares.append(100 * float((ours == theirs).mean()))
    count = len(shares)
    times = f"{eager / count:.3f} | {exported / count:.3f} | {eager / exported:.2f}"
    return f"| {segmenter.name} | {sum(shares) / count:.3f} | {min(shares):.3f} | {times} |"


def measure(name: str, folder: Path, args: argparse.Namespace) -> tuple[list[str], str]:
    """Export a model; return the rows of its graphs, and its row in the table of images, "" for none."""
    from ovseg.export.runtime import Runtime
    from ovseg.export.writing import export
    from ovseg.toy.classes import CLASS_NAMES
    from ovseg.vocabulary import Vocabulary

    rows: list[str] = []
    segmenter = segmenter_of(name, args.opts)
    words = [word.strip() for word in args.words.split(",")] if args.words else list(CLASS_NAMES)
    plan = export(
        segmenter,
        Vocabulary.of(words),
        folder,
        format=args.format,
        size=read_size(args.size) if args.size else None,
        opset=args.opset,
        report=lambda row: rows.append(
            f"| {segmenter.name} | {row.name} | {row.difference:.1e} | {1000 * row.eager:.1f} | "
            f"{1000 * row.exported:.1f} | {row.eager / row.exported:.2f} | {row.size / 1e6:.1f} |"
        ),
    )
    rows += [f"| {segmenter.name} | {part} | not exported: {why} | | | | |" for part, why in plan.left_out.items()]
    if args.format != "onnx" or not args.images:
        return rows, ""
    try:
        runtime = Runtime(folder, threads=1)
    except ValueError as error:
        return rows, f"| {segmenter.name} | {str(error).partition(': ')[2]} | | | | |"
    return rows, compare(segmenter, runtime, args)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    ovseg.register()
    import torch

    torch.set_num_threads(1)
    graphs, images = [], []
    with tempfile.TemporaryDirectory() as temporary:
        for index, name in enumerate(args.models):
            try:
                folder = (args.output or Path(temporary)) / f"{index}_{Path(name).stem}"
                rows, row = measure(name, folder, args)
            except OvsegError as error:
                rows, row = [f"| {Path(name).stem} | | {error} | | | | |"], ""
            print(*rows, row, sep="\n", flush=True)
            graphs += rows
            images += [row] if row else []
    print("", GRAPHS, *graphs, "", IMAGES, *images, sep="\n")


if __name__ == "__main__":
    with user_errors():
        main()
