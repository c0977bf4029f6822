#!/usr/bin/env python3
"""Pretrain the backbone of the toy OVSeg by classifying things, in place of the pretraining on ImageNet.

    python tools/pretrain_toy_backbone.py --output output/toy_backbone.safetensors
    python train_net.py --config-file configs/toy/ovseg_toy.yaml MODEL.WEIGHTS output/toy_backbone.safetensors

The first phase classifies windows around the labelled things of ``toy_sem_seg_train`` (base words only), from the mean
of the backbone's last feature map; it is fast. The second classifies all labelled regions of whole scenes, from the
mean of the last map within their masks; it separates neighbours.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ovseg
from ovseg.errors import OvsegError, user_errors

ROOT = Path(__file__).parents[1]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default=ROOT / "configs/toy/ovseg_toy.yaml", help="names the backbone")
    parser.add_argument("--output", type=Path, default=Path("output/toy_backbone.safetensors"))
    parser.add_argument("--window-steps", type=int, default=1500)
    parser.add_argument("--window-batch", type=int, default=64, help="windows of a step")
    parser.add_argument("--scene-steps", type=int, default=600)
    parser.add_argument("--scene-batch", type=int, default=8, help="scenes of a step")
    parser.add_argument("--lr", type=float, nargs=2, default=(2e-3, 1e-3), help="of windows and of scenes")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args()  # before slow imports, for --help and errors
ovseg.register()

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_backbone
from rich.logging import RichHandler
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.checkpoint import save_safetensors
from ovseg.config import CfgNode, load_cfg
from ovseg.data.loader import build_train_loader
from ovseg.data.mapper import SemSegTrainMapper
from ovseg.io.images import read_image
from ovseg.io.progress import progress_bar
from ovseg.toy import BASE_CLASSES, CLASS_NAMES
from ovseg.toy.classes import IGNORE_LABEL

logger = logging.getLogger("pretrain_toy_backbone")

_SIDE = 80  # pixels of a window in the backbone's input
_MARGIN = (1.05, 1.7)  # half the side of a window, in half sides of the thing's box
_SHIFT = 0.25  # largest offset of a window's centre, in half sides of the box
_WARMUP = 50  # steps of linear warm-up


class RegionClassifier(nn.Module):
    """A backbone and a linear layer on the mean of its last map, of the whole image or of each region."""

    def __init__(self, cfg: CfgNode):
        super().__init__()
        self.backbone = build_backbone(cfg)
        self.last = max(self.backbone.output_shape())
        self.head = nn.Linear(self.backbone.output_shape()[self.last].channels, len(BASE_CLASSES))
        self.register_buffer("mean", torch.tensor(cfg.MODEL.PIXEL_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(cfg.MODEL.PIXEL_STD).view(3, 1, 1))

    def maps(self, images: Tensor) -> Tensor:
        """Return the last feature map (B, C, h, w) of images (B, 3, H, W), 0 .. 255."""
        return self.backbone((images - self.mean) / self.std)[self.last]

    def of_windows(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of windows (B, 3, S, S)."""
        return self.head(self.maps(images).mean(dim=(2, 3)))

    def of_regions(self, samples: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """Return logits (n, K) and classes (n,) of all regions of samples of one size, from the mapper."""
        means = []
        for features, sample in zip(self.maps(torch.stack([s["image"] for s in samples])), samples, strict=True):
            shares = F.adaptive_avg_pool2d(sample["instances"].gt_masks.float(), features.shape[-2:]).flatten(1)
            means.append(shares @ features.flatten(1).T / shares.sum(dim=1, keepdim=True))  # (n, C)
        return self.head(torch.cat(means)), torch.cat([sample["instances"].gt_classes for sample in samples])


def labelled_things(records: Sequence[dict]) -> list[tuple[np.ndarray, tuple[float, float, float], int]]:
    """Return (image uint8 (H, W, 3), (centre x, centre y, half side) of the box in pixels, class) of every thing."""
    things = []
    for record in records:
        image = read_image(record["file_name"])
        instances = cv2.imread(record["instance_file_name"], cv2.IMREAD_UNCHANGED)
        for thing in record["things"]:
            x, y, width, height = cv2.boundingRect((instances == thing["id"]).astype(np.uint8))
            things.append((image, (x + width / 2, y + height / 2, max(width, height) / 2), thing["category_id"]))
    return things


def window(image: np.ndarray, place: tuple[float, float, float], rng: np.random.Generator) -> np.ndarray:
    """Return a window around a thing, uint8 (S, S, 3), randomly placed and mirrored."""
    x, y, half = place
    x, y = (x, y) + rng.uniform(-_SHIFT, _SHIFT, 2) * half
    zoom, mirror = rng.uniform(*_MARGIN), rng.choice((-1.0, 1.0))
    scale = _SIDE / 2 / (zoom * half)
    matrix = np.array([[mirror * scale, 0, _SIDE / 2 - mirror * scale * x], [0, scale, _SIDE / 2 - scale * y]])
    return cv2.warpAffine(image, matrix, (_SIDE, _SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def window_batches(things: Sequence, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield endless batches of windows, float32 (B, 3, S, S), and classes (B,)."""
    rng = np.random.default_rng(seed)
    while True:
        rows = [things[row] for row in rng.integers(0, len(things), size)]
        images = np.stack([window(image, place, rng) for image, place, _ in rows])
        yield torch.from_numpy(images).permute(0, 3, 1, 2).float(), torch.tensor([label for *_, label in rows])


def train(
    model: RegionClassifier,
    what: str,
    predict: Callable[[], tuple[Tensor, Tensor]],
    steps: int,
    lr: float,
    weight_decay: float,
) -> None:
    """Minimise the cross entropy of ``predict``, which returns logits and classes of a new batch at each call."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    recent = []
    with progress_bar() as progress:
        task = progress.add_task(what, total=steps)
        for step in range(1, steps + 1):
            loss = F.cross_entropy(*predict())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            recent.append(loss.item())
            progress.update(task, advance=1, description=f"{what}, loss {recent[-1]:.3f}")
            if step % 100 == 0:
                logger.info("%s, step %d: loss %.3f", what, step, np.mean(recent))
                recent.clear()


@torch.no_grad()
def accuracy(model: RegionClassifier, cfg: CfgNode) -> dict[str, float]:
    """Return the accuracy on the base regions of the scenes of val, among base words: of all regions, and of things."""
    model.eval()
    mapper = SemSegTrainMapper(
        dataset_name="toy_sem_seg_val",
        augmentations=[T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)],
        image_format=cfg.INPUT.FORMAT,
        ignore_label=IGNORE_LABEL,
        num_classes=len(CLASS_NAMES),
    )
    hits, is_thing = [], []
    for record in DatasetCatalog.get("toy_sem_seg_val"):
        logits, classes = model.of_regions([mapper(record)])
        base = classes < len(BASE_CLASSES)
        hits.append(logits[base].argmax(dim=1) == classes[base])
        is_thing.append(torch.tensor([" " in CLASS_NAMES[k] for k in classes[base]], dtype=torch.bool))
    hits, is_thing = torch.cat(hits).float(), torch.cat(is_thing)
    model.train()
    return {"regions": float(hits.mean()), "things": float(hits[is_thing].mean())}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.output.suffix != ".safetensors":
        raise OvsegError(f"--output {args.output} must end in .safetensors")
    cfg = load_cfg(args.config_file)
    cfg.SOLVER.IMS_PER_BATCH = args.scene_batch
    torch.manual_seed(args.seed)
    model = RegionClassifier(cfg)

    windows = window_batches(labelled_things(DatasetCatalog.get("toy_sem_seg_train")), args.window_batch, args.seed)

    def name_windows() -> tuple[Tensor, Tensor]:
        images, classes = next(windows)
        return model.of_windows(images), classes

    train(model, "windows", name_windows, args.window_steps, args.lr[0], args.weight_decay)
    scenes = iter(build_train_loader(cfg, seed=args.seed))
    train(model, "scenes", lambda: model.of_regions(next(scenes)), args.scene_steps, args.lr[1], args.weight_decay)
    for what, share in accuracy(model, cfg).items():
        logger.info("base %s of val named right among base words: %.1f %%", what, 100 * share)
    state = {f"backbone.{name}": tensor for name, tensor in model.backbone.state_dict().items()}
    save_safetensors(state, args.output)
    logger.info("saved %s", args.output)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)])
    with user_errors():
        main()
