#!/usr/bin/env python3
"""Train the namer of the model ``photo`` from photographs with panoptic labels, or measure it.

python tools/train_photo_model.py --train train.yaml --output ovseg/naming/photo.safetensors \\
    --projection ovseg/clip/photo.safetensors
python tools/train_photo_model.py --train train.yaml --val val.yaml --evaluate

A YAML file describes a data set of COCO's panoptic layout (docs/your_data.md): ``images``, ``coco_panoptic``, and
``label_set: coco_panoptic_133`` with ``ids: label_set``. --output gets a RegionModel (ovseg.naming.region_model), which
MODEL.NAMER.REGIONS names; --projection gets what CLIP ``photo`` has of its own, for the namers of crops. The same files
give the same numbers: nothing is random but the folds of --evaluate, whose seeds are fixed. 100 photographs take two
minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import ovseg
from ovseg.errors import user_errors

logger = logging.getLogger("train_photo_model")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="YAML file of the photographs to train with")
    parser.add_argument("--val", type=Path, help="YAML file of other photographs, to measure with")
    parser.add_argument("--output", type=Path, help="file of the namer to write (.safetensors)")
    parser.add_argument("--projection", type=Path, help="file of CLIP's projection to write (.safetensors)")
    parser.add_argument("--evaluate", action="store_true", help="cross-validate, and hold names out")
    parser.add_argument("--config-file", default="photo", help="configuration with the CLIP (default: %(default)s)")
    args = parser.parse_args(argv)
    if not (args.output or args.projection or args.evaluate or args.val):
        parser.error("there is nothing to do: give --output, --projection, --val or --evaluate")
    return args


if __name__ == "__main__":
    parse_args(None)  # --help and mistakes are answered before what takes seconds is imported
ovseg.register()

import torch
from rich.logging import RichHandler

from ovseg.adaptation.projection import train_projection
from ovseg.adaptation.regions import (
    Regions,
    cross_validate,
    embed_names,
    hold_out,
    measure,
    predict,
    read_regions,
    train_regions,
)
from ovseg.checkpoint import save_safetensors
from ovseg.checkpoint.packaged import packaged_weights
from ovseg.checkpoint.state_dicts import read_state_dict
from ovseg.clip.adapter import ClipAdapter
from ovseg.config import load_cfg
from ovseg.data.custom.description import read_description
from ovseg.data.custom.source import Source, open_source
from ovseg.naming.region_model import RegionModel


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    source = open_source(read_description(args.train))
    others = open_source(read_description(args.val)) if args.val else None
    clip = ClipAdapter(load_cfg(args.config_file))
    clip.eval()
    if args.projection:
        save_safetensors(train_projection(clip, source), args.projection)
        logger.info("saved %s (%.1f MB)", args.projection, args.projection.stat().st_size / 1e6)
        if not (args.output or args.evaluate or others):
            return
    classifier = imagenet_classifier()
    names = embed_names(clip, source.classes.vocabulary)
    train = read(clip, source)
    state = train_regions(train, names, classifier)
    if args.output:
        words = [source.classes.vocabulary.synonyms[index] for index in sorted(set(train.classes.tolist()))]
        about = {"words": words, "templates": clip.text.templates}  # one entry: safetensors does not order several
        save_safetensors(state, args.output, {"about": json.dumps(about)})
        logger.info("saved %s (%.1f MB)", args.output, args.output.stat().st_size / 1e6)
    if args.evaluate:
        named, held = cross_validate(train, names, classifier)
        report(f"{args.train}, cross-validated over photographs", named, held)
    if others is not None:
        regions = read(clip, others)
        named = measure(predict(RegionModel(state), regions, names), regions)
        report(str(args.val), named, hold_out(train, regions, names, classifier) if args.evaluate else {})


def read(clip: ClipAdapter, source: Source) -> Regions:
    """Return the segments of a data set."""
    regions = read_regions(clip, source)
    found = len(regions.classes.unique())
    logger.info("%s: %d segments of %d classes", source.own.file, len(regions), found)
    return regions


def imagenet_classifier() -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights (1000, 1280) and bias (1000,) of EfficientNet-Lite0's classifier, the last tensors of its file."""
    weights, bias = list(read_state_dict(packaged_weights("efficientnet-lite0")).values())[-2:]
    return weights, bias


def report(title: str, *tables: dict[str, float]) -> None:
    """Log percentages."""
    values = [f"{name} {value:.1f}" for table in tables for name, value in table.items()]
    logger.info("%s: %s", title, ", ".join(values))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)])
    with user_errors():
        main()
