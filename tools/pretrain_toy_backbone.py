#!/usr/bin/env python3
"""Teach the toy OVSeg's backbone to name things before it learns to find them, as ImageNet does for the real one.

    python tools/pretrain_toy_backbone.py --output output/toy_backbone.safetensors
    python train_net.py --config-file configs/toy/ovseg_toy.yaml MODEL.WEIGHTS output/toy_backbone.safetensors

Pictures are windows around the labelled things of ``toy_sem_seg_train`` (base words only), classified from the mean
of the backbone's last feature map. Swin is pre-trained in the same way on ImageNet (Liu et al. 2021, section 4.1).
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_backbone
from rich.logging import RichHandler
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

import ovseg  # noqa: F401 (registers data sets and backbones)
from ovseg.checkpoint import save_safetensors
from ovseg.config import get_cfg
from ovseg.data.toy import BASE_CLASSES
from ovseg.errors import OvsegError, user_errors
from ovseg.images import read_image
from ovseg.progress import progress_bar

logger = logging.getLogger("pretrain_toy_backbone")

_SIDE = 80  # pixels of a window, as the backbone sees it
_MARGIN = (1.05, 1.7)  # half the side of a window, in half sides of the thing's box
_SHIFT = 0.25  # how far a window's centre may lie off, in half sides of the box
_HELD_OUT = 100  # last scenes of the split, to measure on


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="configs/toy/ovseg_toy.yaml", help="says which backbone")
    parser.add_argument("--output", type=Path, default=Path("output/toy_backbone.safetensors"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def labelled_things(records: Sequence[dict]) -> list[tuple[np.ndarray, tuple[float, float, float], int]]:
    """(picture uint8 (H, W, 3), (centre x, centre y, half side) of its box in pixels, class) of every thing."""
    things = []
    for record in track(records, "reading", transient=True):
        image = read_image(record["file_name"])
        instances = cv2.imread(record["instance_file_name"], cv2.IMREAD_UNCHANGED)
        for thing in record["things"]:
            x, y, width, height = cv2.boundingRect((instances == thing["id"]).astype(np.uint8))
            things.append((image, (x + width / 2, y + height / 2, max(width, height) / 2), thing["category_id"]))
    return things


def window(image: np.ndarray, place: tuple[float, float, float], rng: np.random.Generator | None) -> np.ndarray:
    """A window around a thing, (S, S, 3) uint8: placed and mirrored at random, or in the middle without ``rng``."""
    x, y, half = place
    zoom, mirror = float(np.mean(_MARGIN)), 1.0
    if rng is not None:
        x, y = (x, y) + rng.uniform(-_SHIFT, _SHIFT, 2) * half
        zoom, mirror = rng.uniform(*_MARGIN), rng.choice((-1.0, 1.0))
    scale = _SIDE / 2 / (zoom * half)
    matrix = np.array([[mirror * scale, 0, _SIDE / 2 - mirror * scale * x], [0, scale, _SIDE / 2 - scale * y]])
    return cv2.warpAffine(image, matrix, (_SIDE, _SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


class Classifier(nn.Module):
    """A backbone and a linear layer on the mean of its last map: (B, 3, S, S) in 0..255 to logits (B, K)."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_backbone(cfg)
        self.last = max(self.backbone.output_shape())
        self.head = nn.Linear(self.backbone.output_shape()[self.last].channels, len(BASE_CLASSES))
        self.register_buffer("mean", torch.tensor(cfg.MODEL.PIXEL_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(cfg.MODEL.PIXEL_STD).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone((images - self.mean) / self.std)[self.last]
        return self.head(features.mean(dim=(2, 3)))


def batch_of(things: Sequence, rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
    images = np.stack([window(image, place, rng) for image, place, _ in things])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float(), torch.tensor([label for *_, label in things])


def train(model: Classifier, things: Sequence, args: argparse.Namespace) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / args.warmup) * 0.5 * (1 + math.cos(math.pi * step / args.steps)),
    )
    rng = np.random.default_rng(args.seed)
    with progress_bar() as progress:
        task = progress.add_task("training", total=args.steps)
        for step in range(args.steps):
            rows = rng.integers(0, len(things), args.batch_size)
            images, labels = batch_of([things[row] for row in rows], rng)
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.update(task, advance=1, description=f"loss {loss.item():.3f}")
            if (step + 1) % 100 == 0:
                logger.info("step %d: loss %.3f", step + 1, loss.item())


@torch.no_grad()
def accuracy(model: Classifier, things: Sequence) -> float:
    model.eval()
    hits = [
        (model(images).argmax(dim=1) == labels).float()
        for images, labels in (batch_of(things[start : start + 64], None) for start in range(0, len(things), 64))
    ]
    return float(torch.cat(hits).mean())


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.output.suffix != ".safetensors":
        raise OvsegError(f"--output {args.output} must end in .safetensors")
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    torch.manual_seed(args.seed)
    model = Classifier(cfg)
    records = DatasetCatalog.get("toy_sem_seg_train")
    train(model, labelled_things(records[:-_HELD_OUT]), args)
    held_out = accuracy(model, labelled_things(records[-_HELD_OUT:]))
    logger.info("things of %d scenes kept aside: %.1f %% named right among base words", _HELD_OUT, 100 * held_out)
    state = {f"backbone.{name}": tensor for name, tensor in model.backbone.state_dict().items()}
    save_safetensors(state, args.output)
    logger.info("saved %s", args.output)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)])
    with user_errors():
        main()
