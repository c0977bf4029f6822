#!/usr/bin/env python3
"""Train the tiny CLIP of the toy world on scenes and their captions, and save ``weights/toy/clip.safetensors``.

    python tools/train_toy_clip.py            # words and images, from scratch
    python tools/train_toy_clip.py --init weights/toy/clip.safetensors --text-steps 0 --margin 1.1 1.4 --close-ups 5 \\
        --alone 1.0 --patches 2 --steps 1800 --work-dir output/toy_clip_2
    ... --resume                              # resumes a killed run

The two commands reproduce the shipped file. The second one improves the image tower on shapes, by closer
close-ups with less in them. After ``--text-steps`` the text tower is frozen: it has learnt its 90 words by then, while
the image tower needs much longer. Images: ``ovseg/toy/clip/batches.py``; loss:
``ovseg/toy/clip/training.py``.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import ovseg
from ovseg.errors import OvsegError, user_errors


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", type=Path, default=Path("configs/toy/clip.json"), help="open_clip JSON")
    parser.add_argument("--output", type=Path, default=Path("weights/toy/clip.safetensors"))
    parser.add_argument("--work-dir", type=Path, default=Path("output/toy_clip"), help="checkpoint and log.json")
    parser.add_argument("--init", type=Path, help="start from these weights (.safetensors) instead of from scratch")
    parser.add_argument("--scenes", type=int, default=3000, help="the train split and, above it, unlabelled scenes")
    parser.add_argument("--close-ups", type=int, default=4, help="windows around single things, for each scene")
    parser.add_argument(
        "--margin", type=float, nargs=2, default=(1.1, 1.6), help="half the side of a close-up, in radii of the thing"
    )
    parser.add_argument("--alone", type=float, default=0.5, help="share of close-ups whose captions leave out grounds")
    parser.add_argument("--patches", type=int, default=1, help="windows that show no thing, for each scene")
    parser.add_argument("--captions", type=int, default=6, help="captions written for each image")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--text-steps", type=int, default=800, help="the first so many train the text tower as well")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--warmup", type=int, default=100, help="steps of linear warm-up before the cosine")
    parser.add_argument("--checkpoint-every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="resume from the checkpoint in --work-dir")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args(None)  # --help and mistakes are answered before what takes seconds is imported
ovseg.register()

import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from rich.logging import RichHandler

from ovseg.adaptation.tuned_clip import clip_flags
from ovseg.checkpoint import save_safetensors
from ovseg.clip.model import ClipSource, build_clip, find_clip, load_clip_weights
from ovseg.clip.preprocessing import OPENAI
from ovseg.io.files import atomic_path
from ovseg.toy.cache import FORMAT
from ovseg.toy.clip.batches import PairSampler, ViewRecipe, load_views
from ovseg.toy.clip.training import Recipe, TrainingRun
from ovseg.toy.clip.zero_shot import evaluate

logger = logging.getLogger("train_toy_clip")


def find_architecture(args: argparse.Namespace) -> tuple[ClipSource, SimpleTokenizer]:
    """Return the CLIP to train, with the weights to start from, and its tokenizer.

    Raises:
        OvsegError: missing or bad file, or a CLIP that the toy world's pairs are not made for.
    """
    source = find_clip(str(args.architecture), str(args.init) if args.init else "none")
    model, tokenizer = build_clip(source)
    if not isinstance(model, CLIP) or not isinstance(tokenizer, SimpleTokenizer) or source.preprocessing != OPENAI:
        raise OvsegError(
            f"--architecture {args.architecture} has a text tower, a tokenizer or a preprocessing of its own: the toy "
            "world's pairs are made for OpenAI's, leave custom_text, hf_tokenizer_name and preprocess_cfg out"
        )
    return source, tokenizer


def train(args: argparse.Namespace, tokenizer: SimpleTokenizer, source: ClipSource) -> TrainingRun:
    """Train from scratch or from the checkpoint of a killed run."""
    architecture = source.architecture
    torch.manual_seed(args.seed)
    model = CLIP(**architecture)
    if args.init:
        load_clip_weights(model, source)
    recipe = Recipe(**{field.name: getattr(args, field.name) for field in fields(Recipe)})
    settings = {key: str(value) for key, value in sorted(vars(args).items()) if key != "resume"}
    about = {"settings": settings, "architecture": architecture, "scenes": FORMAT}
    run = TrainingRun(model, recipe, args.work_dir, about)
    if args.resume:
        run.resume()
    views = ViewRecipe(tuple(args.margin), args.close_ups, args.alone, args.patches, args.captions)
    side = architecture["vision_cfg"]["image_size"]
    run.train(PairSampler(*load_views(0, args.scenes, views), tokenizer, side))
    return run


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.scenes < args.batch_size or args.captions < 1:
        raise OvsegError("--scenes must be at least --batch-size, and --captions at least 1")
    with clip_flags(weights="--init"):
        source, tokenizer = find_architecture(args)
        run = train(args, tokenizer, source)
    half = {name: value.half().contiguous() for name, value in run.model.state_dict().items()}
    save_safetensors(half, args.output)
    run.model.load_state_dict(half)  # evaluate what is shipped
    scores = evaluate(run.model, tokenizer, source.architecture["vision_cfg"]["image_size"])
    with atomic_path(args.work_dir / "log.json") as path:
        path.write_text(json.dumps(run.log | {"evaluation": scores}, indent=1), encoding="utf-8")
    for name, value in scores.items():
        logger.info("%s: %.1f %%", name, 100 * value)
    logger.info("saved %s (%.1f MB)", args.output, args.output.stat().st_size / 1e6)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)])
    with user_errors():
        main()
