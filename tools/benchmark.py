#!/usr/bin/env python3
"""Time the stages of a model on one picture, and its peak memory.

python tools/benchmark.py --config-file configs/ovseg_swinB_vitL_bs32_120k.yaml --input photo.jpg --random-weights
python tools/benchmark.py --config-file CONFIG --input photo.jpg --precision fp32 bf16 --opts MODEL.WEIGHTS model.pth

Each precision runs in a process of its own, so that the peaks of memory are its own too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_model
from rich.console import Console
from rich.table import Table
from torch import nn

from ovseg.checkpoint import load_weights
from ovseg.config import load_cfg
from ovseg.errors import OvsegError, user_errors
from ovseg.files import atomic_path
from ovseg.images import read_image
from ovseg.meta_arch.painting import paint_labels
from ovseg.proposals.mask_comparison import upsample
from ovseg.vocabulary import Vocabulary

STAGES = ("text", "backbone", "head", "crops", "CLIP", "painting")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--input", required=True, help="a picture")
    parser.add_argument("--class-names", nargs="+", default=["person", "sky", "building", "tree", "water"])
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], help="of CLIP: fp32, bf16, fp16")
    parser.add_argument("--random-weights", action="store_true", help="needs no checkpoint; the masks mean nothing")
    parser.add_argument("--repeat", type=int, default=1, help="runs of which the fastest counts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", help="also write the figures as JSON")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs of the configuration")
    return parser.parse_args(argv)


class Stopwatch:
    """Wall-clock seconds between start and stop, after all work of the device is done."""

    def __init__(self, device: torch.device):
        self.device = device
        self._start = 0.0

    def start(self) -> None:
        self._synchronise()
        self._start = time.perf_counter()

    def stop(self) -> float:
        self._synchronise()
        return time.perf_counter() - self._start

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def build(args: argparse.Namespace, precision: str) -> tuple[nn.Module, dict]:
    """The model in evaluation mode, and the request for the picture."""
    opts = [*args.opts, "MODEL.DEVICE", args.device, "MODEL.CLIP_ADAPTER.PRECISION", precision]
    opts += ["MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR", "none"]
    if args.random_weights:
        opts += ["MODEL.CLIP_ADAPTER.CLIP_WEIGHTS", "none"]
    cfg = load_cfg(args.config_file, opts)
    if not (cfg.MODEL.WEIGHTS or args.random_weights):
        raise OvsegError("MODEL.WEIGHTS is empty: add --opts MODEL.WEIGHTS FILE, or --random-weights")
    image = read_image(args.input)
    transform = ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST).get_transform(image)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    if not args.random_weights:
        load_weights(model, cfg.MODEL.WEIGHTS)
    pixels = torch.from_numpy(transform.apply_image(image).copy()).permute(2, 0, 1)
    request = {"image": pixels, "height": image.shape[0], "width": image.shape[1], "outputs": ("label_map",)}
    return model, request | {"class_names": Vocabulary.from_words(args.class_names).class_names}


@torch.no_grad()
def time_stages(model: nn.Module, request: dict) -> dict[str, float]:
    """Seconds of each of :data:`STAGES`, calling the model's parts one by one."""
    watch, seconds = Stopwatch(model.device), {}
    adapter = model.clip_adapter
    image = request["image"].to(model.device).float()

    watch.start()
    text = adapter.text_matrix([name if isinstance(name, str) else name[0] for name in request["class_names"]])
    seconds["text"] = watch.stop()

    padding = (0, -image.shape[2] % model.size_divisibility, 0, -image.shape[1] % model.size_divisibility)
    batch = nn.functional.pad((image - model.pixel_mean) / model.pixel_std, padding)[None]
    watch.start()
    features = model.backbone(batch)
    seconds["backbone"] = watch.stop()
    watch.start()
    embeddings, masks = model.sem_seg_head(features)[-1]
    masks = upsample(masks, batch.shape[-2:])[0, :, : image.shape[1], : image.shape[2]].sigmoid()
    seconds["head"] = watch.stop()

    seconds["crops"] = seconds["CLIP"] = 0.0
    chunks = adapter.regions(image, masks[adapter.valid_masks(masks)])
    while True:
        watch.start()
        regions = next(chunks, None)
        seconds["crops"] += watch.stop()
        if regions is None:
            break
        watch.start()
        adapter.encode_regions(*regions)
        seconds["CLIP"] += watch.stop()

    weights = adapter.similarity(embeddings[0], text).softmax(-1)[:, :-1]
    watch.start()
    paint_labels(weights, masks, (request["height"], request["width"]), model.class_chunk_size)
    seconds["painting"] = watch.stop()
    return seconds


def measure(args: argparse.Namespace, precision: str, pipe) -> None:
    """Run in a child process: sends the figures, or the error, through ``pipe``."""
    try:
        model, request = build(args, precision)
        runs = [time_stages(model, request) for _ in range(args.repeat)]
        seconds = {stage: min(run[stage] for run in runs) for stage in STAGES}
        height, width = request["image"].shape[1:]
        figures = {"precision": precision, "input": [height, width], "seconds": seconds}
        figures["peak memory, GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # from KiB
        if model.device.type == "cuda":
            figures["peak GPU memory, GB"] = torch.cuda.max_memory_allocated() / 2**30
        pipe.send(figures)
    except OvsegError as error:
        pipe.send(error)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    results = []
    for precision in args.precision:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(args, precision, theirs))
        process.start()
        theirs.close()
        try:
            result = ours.recv()
        except EOFError:
            raise OvsegError(f"the run with {precision} was killed: it may have run out of memory") from None
        finally:
            process.join()
        if isinstance(result, OvsegError):
            raise result
        results.append(result)
    show(args, results)
    if args.output:
        with atomic_path(Path(args.output)) as temporary:
            temporary.write_text(json.dumps(results, indent=1))


def show(args: argparse.Namespace, results: list[dict]) -> None:
    height, width = results[0]["input"]
    threads = f"{torch.get_num_threads()} threads, {platform.machine()}" if args.device == "cpu" else args.device
    table = Table(
        title=f"{Path(args.config_file).stem}, {width} x {height} pixels, {threads}, torch {torch.__version__}"
    )
    table.add_column("seconds")
    for result in results:
        table.add_column(result["precision"], justify="right")
    for stage in STAGES:
        table.add_row(stage, *(f"{result['seconds'][stage]:.2f}" for result in results))
    table.add_row("all", *(f"{sum(result['seconds'].values()):.2f}" for result in results))
    for key in [key for key in results[0] if key.endswith("GB")]:
        table.add_row(key, *(f"{result[key]:.1f}" for result in results))
    Console().print(table)


if __name__ == "__main__":
    with user_errors():
        main()
