#!/usr/bin/env python3
"""Evaluate every proposer with every namer on the same images: one table, one heat map.

python tools/matrix.py --proposers MaskFormer GroundTruth --namers own crops pooled --data toy_sem_seg_val --images 50
python tools/matrix.py --systems configs/toy/ovseg_toy.yaml configs/toy/scan_toy.yaml --output output/matrix
python tools/matrix.py --parts MaskFormer=CONFIG crops+prompts=CONFIG ... --data ade20k_sem_seg_val MODEL.DEVICE cuda

Writes matrix.md, matrix.json and matrix.png into --output. Finished pairs are not run again, and an interrupted one
continues, while configurations, weights, images and code are the same. By default, parts have the weights of the toy
world; --parts names the configuration files of others.

proposers: MaskFormer, Mask2Former; GroundTruth; BoundaryTree (colour gradients, without weights); RegionQueries
           (OpenSeg's; with pooled, the baseline of its paper); SAM (not by default: it has no weights of the toy world)
namers:    own (the proposer's class embeddings); crops (masked crops, by CLIP as trained on whole images);
           crops+adapted (by CLIP adapted to masked crops); crops+prompts (the same with mask prompts); context (crops
           in the context of the whole image); pooled (CLIP as trained on the whole image once, its last attention
           restricted to each mask)
"""

from __future__ import annotations

import argparse
import difflib
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import ovseg
from ovseg.cli.options import parse_with_options
from ovseg.errors import OvsegError, user_errors

PROPOSERS = ("MaskFormer", "Mask2Former", "GroundTruth", "BoundaryTree", "RegionQueries", "SAM")
NAMERS = ("own", "crops", "crops+adapted", "crops+prompts", "context", "pooled")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proposers", nargs="*", default=PROPOSERS[:-1], metavar="NAME", help=", ".join(PROPOSERS))
    parser.add_argument("--namers", nargs="*", default=NAMERS, metavar="NAME", help=", ".join(NAMERS))
    parser.add_argument("--systems", nargs="*", default=[], metavar="FILE", help="configuration files: a row each")
    parser.add_argument("--data", nargs="+", default=["toy_sem_seg_val"], metavar="NAME", help="data sets")
    parser.add_argument("--parts", nargs="+", default=[], metavar="NAME=FILE", help="configurations of parts' weights")
    parser.add_argument("--images", type=int, metavar="N", help="use N images, evenly spread over each data set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("output/matrix"), help="folder (default: %(default)s)")
    parser.add_argument("--num-gpus", type=int, default=1, help="0 for the CPU (default: a GPU where there is one)")
    args = parse_with_options(parser, argv, bare=True)
    check_names("--proposers", args.proposers, PROPOSERS)
    check_names("--namers", args.namers, NAMERS)
    files = [entry.partition("=") for entry in args.parts]
    check_names("--parts", [name for name, _, _ in files], (*PROPOSERS, *NAMERS))
    if lacking := [name for name, _, file in files if not file]:
        raise OvsegError(f"--parts {lacking[0]} names no file: give {lacking[0]}=CONFIG.yaml")
    args.parts = {name: file for name, _, file in files}
    if not (args.proposers and args.namers) and not args.systems:
        raise OvsegError("there is nothing to evaluate: give --proposers and --namers, or --systems")
    if args.images is not None and args.images < 1:
        raise OvsegError(f"--images is {args.images}: give at least 1")
    return args


def check_names(option: str, given: Sequence[str], choices: Sequence[str]) -> None:
    """Raise OvsegError unless the names are among the choices, each once."""
    for place, name in enumerate(given):
        if name not in choices:
            near = difflib.get_close_matches(name, choices, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise OvsegError(f"{option} {name!r} is unknown: {hint}choose among {', '.join(choices)}")
        if name in given[:place]:
            raise OvsegError(f"{option} has {name} twice: remove one of them")


if __name__ == "__main__":
    with user_errors():
        parse()  # --help and mistakes are answered before what takes seconds is imported
ovseg.register()

from rich.console import Console

from ovseg.data.catalog import check_prepared
from ovseg.engine.launch import choose_device
from ovseg.engine.matrix import MatrixPart, Settings, all_cells, jobs_of
from ovseg.evaluation.cells import Cell, as_markdown, draw_heat_map
from ovseg.evaluation.report import write_json
from ovseg.io.files import atomic_path, explained_writing, locked_folder, write_text

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
OVSEG, SCAN, OPENSEG = (str(CONFIGS / "toy" / f"{name}_toy.yaml") for name in ("ovseg", "scan", "openseg"))
NO_PROMPTS = {"CLIP_ADAPTER.MASK_PROMPT_FWD": False, "CLIP_ADAPTER.MASK_PROMPT_DEPTH": 0}
GRADIENT = {
    **{"PROPOSER.BOUNDARY_TREE.BOUNDARY": "gradient", "PROPOSER.BOUNDARY_TREE.RANKING": "tree"},
    "RENDERING": "area_weighted_sum",  # for nested regions
}
PARTS = {
    "MaskFormer": MatrixPart(OVSEG),
    "Mask2Former": MatrixPart(SCAN),
    "GroundTruth": MatrixPart(OVSEG),
    "BoundaryTree": MatrixPart(OVSEG, GRADIENT),
    "RegionQueries": MatrixPart(OPENSEG),
    "SAM": MatrixPart(str(CONFIGS / "sam_vitB_clip_vitB16.yaml")),
    "own": MatrixPart(OVSEG, {"NAMER.NAME": ["QueryEmbedding"], "CLIP_ADAPTER.MASK_PROMPT_FWD": False}, "proposer"),
    "crops": MatrixPart(OVSEG, {"NAMER.NAME": ["MaskedCrops"], **NO_PROMPTS}),
    "crops+adapted": MatrixPart(
        OVSEG, {"NAMER.NAME": ["MaskedCrops"], "CLIP_ADAPTER.MASK_PROMPT_FWD": False}, "adapted"
    ),
    "crops+prompts": MatrixPart(OVSEG, {"NAMER.NAME": ["MaskedCrops"]}, "adapted"),
    "context": MatrixPart(SCAN, {"NAMER.NAME": ["ContextCrops"]}, "adapted"),
    "pooled": MatrixPart(OVSEG, {"NAMER.NAME": ["PooledMap"], **NO_PROMPTS}),
}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    settings = Settings(args.data, args.output, args.images, args.seed, args.opts)
    for name in args.data:
        check_prepared(name)
    parts = {name: _with_file(part, args.parts.get(name)) for name, part in PARTS.items()}
    proposers, namers = ({name: parts[name] for name in names} for names in (args.proposers, args.namers))
    jobs = jobs_of(proposers, namers if proposers else {}, args.systems, settings)
    for job in jobs:
        job.cfg.MODEL.DEVICE = choose_device(job.cfg.MODEL.DEVICE, args.num_gpus)
    console = Console(soft_wrap=True, highlight=False)
    cells: list[Cell] = []
    began = time.monotonic()
    with explained_writing(args.output), locked_folder(args.output):
        for done, found in enumerate(all_cells(jobs, settings), 1):
            cells += found
            write(cells, args)
            minutes = (time.monotonic() - began) / 60
            console.print(f"{done} of {len(jobs)}: {jobs[done - 1].name}, {minutes:.1f} min", markup=False)
        with atomic_path(args.output / "matrix.png") as temporary:
            draw_heat_map(cells, temporary, title_of(args))
    console.print((args.output / "matrix.md").read_text(encoding="utf-8"), markup=False)


def write(cells: Sequence[Cell], args: argparse.Namespace) -> None:
    """Write the table of the cells so far."""
    settings = f"Settings of all: {' '.join(args.opts)}" if args.opts else "%; s and images through CLIP per image."
    write_text(args.output / "matrix.md", as_markdown(cells, title_of(args), [settings]))
    content = {"data": args.data, "images": args.images, "seed": args.seed, "opts": args.opts}
    write_json(args.output / "matrix.json", {**content, "cells": [vars(cell) for cell in cells]})


def title_of(args: argparse.Namespace) -> str:
    images = f"{args.images} images, evenly spread" if args.images else "all images"
    return f"{', '.join(args.data)}: {images}, seed {args.seed}"


def _with_file(part: MatrixPart, file: str | None) -> MatrixPart:
    return part if file is None else MatrixPart(file, part.keys, part.clip)


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    with user_errors():
        main()
