#!/usr/bin/env python3
"""Search MASK_THR and CLIP_ENSEMBLE_WEIGHT of a model: mIoU over a grid at the cost of one run per threshold.

python tools/search_thresholds.py --config-file configs/toy/ovseg_toy.yaml --limit 100 \\
    DATASETS.TEST '("toy_sem_seg_tune",)'
python tools/search_thresholds.py --config-file CONFIG --thresholds 0.35 0.4 0.45 --weights 0.6 0.65 0.7 0.75 0.8 \\
    --output output/search MODEL.WEIGHTS checkpoint.pth DATASETS.TEST '("my_tuning_split",)'

The search uses the split DATASETS.TEST. Do not choose settings on the split on which you report results.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import ovseg
from ovseg.cli.options import parse_with_options
from ovseg.config.files import check_file
from ovseg.errors import OvsegError, user_errors

THRESHOLDS = (0.35, 0.4, 0.45)  # the original's
WEIGHTS = (0.6, 0.65, 0.7, 0.75, 0.8)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    for name, default in (("thresholds", THRESHOLDS), ("weights", WEIGHTS)):
        key = {"thresholds": "MASK_THR", "weights": "CLIP_ENSEMBLE_WEIGHT"}[name]
        parser.add_argument(
            f"--{name}", nargs="+", type=float, default=default, metavar="X", help=f"of {key} ({default})"
        )
    parser.add_argument("--output", type=Path, help="folder, with a subfolder per split (default: OUTPUT_DIR/search)")
    parser.add_argument("--limit", type=int, metavar="N", help="use N images, evenly spread over the split")
    parser.add_argument("--num-gpus", type=int, default=1, help="0 for the CPU (default: a GPU where there is one)")
    args = parse_with_options(parser, argv, bare=True)
    check_file(args.config_file)
    return args


if __name__ == "__main__":
    with user_errors():
        parse()  # --help and mistakes are answered before what takes seconds is imported
ovseg.register()

from rich.console import Console
from rich.table import Table

from ovseg.checkpoint import load_model
from ovseg.config import CfgNode, load_cfg
from ovseg.data.catalog import check_prepared
from ovseg.data.custom.names import folder_name
from ovseg.engine.launch import choose_device
from ovseg.engine.setup import seed_everything
from ovseg.evaluation.report import write_csv, write_json
from ovseg.evaluation.threshold_search import Grid, draw_heat_map, search
from ovseg.io.files import atomic_path, explained_writing, locked_folder
from ovseg.io.progress import progress_bar


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    console = Console(soft_wrap=True, highlight=False)
    cfg = load_cfg(args.config_file, args.opts)
    cfg.MODEL.DEVICE = choose_device(cfg.MODEL.DEVICE, args.num_gpus)
    cfg.freeze()
    if not (cfg.MODEL.WEIGHTS and cfg.DATASETS.TEST):
        raise OvsegError("MODEL.WEIGHTS and DATASETS.TEST must name a checkpoint and the split to search on")
    for name in cfg.DATASETS.TEST:
        check_prepared(name)
    output = args.output or Path(cfg.OUTPUT_DIR) / "search"
    with explained_writing(output), locked_folder(output):
        run(args, cfg, output, console)


def run(args: argparse.Namespace, cfg: CfgNode, output: Path, console: Console) -> None:
    """Search on each split and write its results into a subfolder of ``output``."""
    seed_everything(max(cfg.SEED, 0))
    model = load_model(cfg, complete=True).eval()
    for name in cfg.DATASETS.TEST:
        folder = output / folder_name(name, cfg.DATASETS.TEST)
        with progress_bar() as progress:
            task = progress.add_task(f"searching on {name}", total=None)
            grid = search(
                cfg,
                model,
                name,
                args.thresholds,
                args.weights,
                limit=args.limit,
                on_image=lambda done, total, task=task: progress.update(task, completed=done, total=total),
            )
        write(grid, folder, cfg)
        show(grid, folder, console)


def write(grid: Grid, folder: Path, cfg: CfgNode) -> None:
    """Write results.json, grid.csv and heat_map.png."""
    threshold, weight = grid.best
    content = {
        "tuned_on": grid.dataset,
        "tuned_on_a_split_that_results_are_reported_on": grid.is_reported_split,
        "num_images": grid.num_images,
        "weights": cfg.MODEL.WEIGHTS,
        "miou_convention": cfg.TEST.MIOU_CONVENTION,
        "best": {"MASK_THR": threshold, "CLIP_ENSEMBLE_WEIGHT": weight, "mIoU": grid.values().max()},
        "best_opts": grid.best_opts,
        "grid": grid.rows(),
    }
    write_csv(folder / "grid.csv", grid.rows())
    with atomic_path(folder / "heat_map.png") as temporary:
        draw_heat_map(grid, temporary)
    write_json(folder / "results.json", content)


def show(grid: Grid, folder: Path, console: Console) -> None:
    table = Table(title=f"mIoU %, tuned on {grid.dataset} ({grid.num_images} images)")
    table.add_column("MASK_THR \\ WEIGHT")
    for weight in grid.weights:
        table.add_column(f"{weight:g}", justify="right")
    for threshold, values in zip(grid.thresholds, grid.values(), strict=True):
        cells = [f"{value:.2f}" for value in values]
        best = threshold == grid.best[0]
        cells = [
            f"[bold]{cell}[/bold]" if best and weight == grid.best[1] else cell
            for cell, weight in zip(cells, grid.weights, strict=True)
        ]
        table.add_row(f"{threshold:g}", *cells)
    console.print(table)
    console.print(f"best on {grid.dataset}: {grid.best_opts}", markup=False)
    console.print(f"details: {folder}/results.json, grid.csv, heat_map.png", markup=False)
    if grid.is_reported_split:
        print(
            f"warning: {grid.dataset} looks like a split that results are reported on: settings tuned on it bias its "
            "score; tune on a held-out part of the training data, or report it",
            file=sys.stderr,
        )


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    with user_errors():
        main()
