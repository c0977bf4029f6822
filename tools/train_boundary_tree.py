#!/usr/bin/env python3
"""Train the ranking of the boundary tree on photographs with panoptic labels, and measure it by cross-validation.

python tools/train_boundary_tree.py --photos PHOTOS --output ovseg/proposals/region_ranker.safetensors
python tools/train_boundary_tree.py --photos PHOTOS --measure val2017  # with the packaged ranker

PHOTOS holds COCO's panoptic layout of train2017. The deep features are projected by a linear discriminant analysis of
the segments of each image (32 dimensions) and by a principal component analysis (24); three small networks learn which
regions are a segment, with an IoU of at least 0.5. In the cross-validation, five folds of photographs, the regions of a
fold are projected by the discriminant analysis of the others, and ranked by networks of the others; the principal
components (without labels) are those of all. Minutes on one core; all seeds are fixed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of the photographs")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--output", type=Path, help="train, and write the ranker to this file")
    action.add_argument("--measure", metavar="SPLIT", help="measure the proposals of this split, such as val2017")
    parser.add_argument("--boundaries", nargs="+", default=["hed", "gradient"], help="(default: hed gradient)")
    parser.add_argument("--ranking", default="network", help="for --measure: network or tree (default: network)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    parse_args(None)  # --help and mistakes are answered before what takes seconds is imported

import numpy as np
import torch
from safetensors.numpy import save_file
from scipy.linalg import eigh
from torch import nn
from torch.nn import functional as F

from ovseg.errors import OvsegError, reason_of, user_errors
from ovseg.io.files import atomic_path, check_file
from ovseg.io.images import read_image
from ovseg.proposals.boundary_tree import BoundaryTree, enlarged
from ovseg.proposals.region_ranker import RegionRanker, grow
from ovseg.proposals.region_ranking import choose
from ovseg.proposals.regions import Pieces

FOLDS, NETS, WIDTHS, EPOCHS, BATCH, RATE = 5, 3, (32, 16), 4, 1024, 3e-3
DEEP, LOOK, SHRINKAGE, SMALL = 32, 24, 0.1, 256


@dataclass
class Photograph:
    """A photograph: its pieces, their features (n, C), and the pixels that each shares with segments (n, 1 + S)."""

    pieces: Pieces
    features: np.ndarray | None
    shared: np.ndarray
    sizes: np.ndarray

    def ious(self, members: np.ndarray) -> np.ndarray:
        """Return the IoUs (c, S) of regions (c, n) with the segments; pixels without a label do not count."""
        common = members.astype(np.float32) @ self.shared[:, 1:].astype(np.float32)
        return common / np.maximum(common.sum(1, keepdims=True) + self.sizes - common, 1)


def photographs(folder: Path, split: str, proposer: BoundaryTree) -> Iterator[Photograph]:
    """Yield the photographs of a split in COCO's panoptic layout."""
    path = folder / f"panoptic_{split}.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OvsegError(f"{path} is not valid JSON ({reason_of(error)}): give COCO's panoptic labels") from error
    names = {image["id"]: image["file_name"] for image in described["images"]}
    for about in described["annotations"]:
        image = read_image(folder / "images" / split / names[about["image_id"]])
        colours = read_image(folder / f"panoptic_{split}" / about["file_name"]).astype(np.int64)
        codes = colours @ np.array([1, 256, 65536])  # of R, G and B
        known = np.array([0, *sorted(segment["id"] for segment in about["segments_info"])])
        truth = np.searchsorted(known, codes) * np.isin(codes, known)
        pieces, features = proposer.pieces_of(torch.from_numpy(image.copy()).permute(2, 0, 1).float())
        labels = enlarged(pieces.labels, truth.shape)
        shared = np.bincount((labels * len(known) + truth).ravel(), minlength=len(pieces) * len(known))
        shared = shared.reshape(len(pieces), len(known)).astype(np.float64)
        yield Photograph(pieces, features, shared, np.bincount(truth.ravel(), minlength=len(known))[1:])


def scatter(photograph: Photograph) -> tuple[np.ndarray, ...]:
    """Return the scatter of features within the segments of an image and between them, (C, C), and both weights."""
    segment = photograph.shared.argmax(1) - 1
    kept = segment >= 0
    features, segment = photograph.features[kept].astype(np.float64), segment[kept]
    weights = np.sqrt(photograph.pieces.areas[kept])
    totals = np.bincount(segment, weights, minlength=photograph.shared.shape[1] - 1)
    sums = np.zeros((len(totals), features.shape[1]))
    np.add.at(sums, segment, features * weights[:, None])
    means = sums / np.maximum(totals, 1e-9)[:, None]
    rest = (features - means[segment]) * np.sqrt(weights)[:, None]
    means, roots = means[totals > 0], np.sqrt(totals[totals > 0])[:, None]
    apart = (means - (means * roots).sum(0) / roots.sum()) * np.sqrt(roots)
    return rest.T @ rest, apart.T @ apart, weights.sum(), roots.sum()


def discriminant(scatters: Sequence[tuple[np.ndarray, ...]]) -> np.ndarray:
    """Return the projection (C, DEEP) that spreads segments most, relative to the spread within them."""
    within, between, inner, outer = (sum(parts) for parts in zip(*scatters, strict=True))
    within, between = within / inner, between / outer
    within += SHRINKAGE * np.trace(within) / len(within) * np.eye(len(within))
    return eigh(between, within, subset_by_index=[len(within) - DEEP, len(within) - 1])[1][:, ::-1]


def principal(photos: Sequence[Photograph]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean (C,) and whitening projection (C, LOOK) of the features, weighted by the root of the areas."""
    features = np.concatenate([photo.features for photo in photos]).astype(np.float64)
    weights = np.sqrt(np.concatenate([photo.pieces.areas for photo in photos]))[:, None]
    mean = (features * weights).sum(0) / weights.sum()
    centred = (features - mean) * np.sqrt(weights / weights.sum())
    count = centred.shape[1]
    values, vectors = eigh(centred.T @ centred, subset_by_index=[count - LOOK, count - 1])
    return mean, (vectors / np.sqrt(values))[:, ::-1]


def train(features: np.ndarray, found: np.ndarray) -> dict[str, np.ndarray]:
    """Return the tensors of networks that learn from features (c, F) the chance of ``found`` (c,)."""
    mean, scale = features.mean(0), features.std(0) + 1e-6
    x, y = torch.from_numpy((features - mean) / scale), torch.from_numpy(found.astype(np.float32))
    tensors = {"net.mean": mean, "net.scale": scale}
    for index in range(NETS):
        torch.manual_seed(index)
        sizes = (x.shape[1], *WIDTHS, 1)
        layers = [nn.Linear(before, after) for before, after in pairwise(sizes)]
        net = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))[:-1]
        optimizer, steps = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.03), EPOCHS * (len(x) // BATCH + 1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1)
        for _ in range(steps):
            rows = torch.randint(0, len(x), (BATCH,))
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(net(x[rows])[:, 0], y[rows]).backward()
            optimizer.step()
            schedule.step()
        for place, layer in enumerate(layers):
            tensors[f"net.{index}.{place}.weight"] = layer.weight.detach().numpy().T.copy()
            tensors[f"net.{index}.{place}.bias"] = layer.bias.detach().numpy()
    return tensors


def report(name: str, best: Sequence[np.ndarray], sizes: Sequence[np.ndarray]) -> None:
    """Print the recall of segments by their best IoU."""
    ious, areas = np.concatenate(best), np.concatenate(sizes)
    big = ious[areas >= SMALL]
    recalls = ", ".join(f"{100 * (big >= level).mean():.1f} at {level}" for level in (0.5, 0.7, 0.9))
    print(
        f"{name}: recall of {len(big)} segments of at least {SMALL} pixels {recalls}; of all {len(ious)}"
        f" {100 * (ious >= 0.5).mean():.1f} at 0.5; area-weighted best IoU {100 * np.average(ious, weights=areas):.1f}",
        flush=True,
    )


def train_ranker(photos: Sequence[Photograph], name: str, count: int = 100) -> dict[str, np.ndarray]:
    """Print the figures of the cross-validation, and return the tensors of a ranker trained on all photographs."""
    scatters = [scatter(photo) for photo in photos]
    mean, look = principal(photos)
    projection = {"deep.mean": mean, "look.mean": mean, "look.matrix": look}
    grown = []
    for fold in range(FOLDS):
        others = [part for index, part in enumerate(scatters) if index % FOLDS != fold]
        ranker = RegionRanker(projection | {"deep.matrix": discriminant(others)})
        for photo in photos[fold::FOLDS]:
            found = grow(ranker.project(photo.pieces, photo.features))
            grown.append((fold, photo, found, photo.ious(found.members)))
    best, reach = [], []
    for fold in range(FOLDS):
        learnt = [(found.features, ious.max(1) >= 0.5) for other, _, found, ious in grown if other != fold]
        ranker = RegionRanker(train(*(np.concatenate(part) for part in zip(*learnt, strict=True))))
        for of_fold, photo, found, ious in grown:
            if of_fold == fold:
                chosen = choose(found.members, photo.pieces.areas, ranker.chances(found.features), count)
                best.append(ious[chosen].max(0))
                reach.append(ious.max(0))
    sizes = [photo.sizes for _, photo, _, _ in grown]
    report(f"{name}, cross-validation", best, sizes)
    report(f"{name}, all candidates", reach, sizes)
    learnt = [(found.features, ious.max(1) >= 0.5) for _, _, found, ious in grown]
    nets = train(*(np.concatenate(part) for part in zip(*learnt, strict=True)))
    return projection | {"deep.matrix": discriminant(scatters)} | nets


def measure(folder: Path, split: str, proposer: BoundaryTree) -> None:
    """Print the figures of a proposer on a split, and the seconds of a photograph."""
    best, sizes, start = [], [], time.process_time()
    for photo in photographs(folder, split, proposer):
        best.append(photo.ious(proposer.regions_of(photo.pieces, photo.features)).max(0))
        sizes.append(photo.sizes)
    report(f"{proposer.kind}, {split}", best, sizes)
    print(f"{(time.process_time() - start) / len(best):.2f} CPU seconds a photograph, with reading and measuring")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; ``OvsegError`` if a package or a file is missing."""
    args = parse_args(argv)
    split = args.measure or "train2017"
    check_file(args.photos / f"panoptic_{split}.json", "file of panoptic labels")
    torch.set_num_threads(1)
    if args.measure:
        for boundary in args.boundaries:
            measure(args.photos, split, BoundaryTree(boundary, args.ranking))
        return
    tensors = {}
    for boundary in args.boundaries:
        proposer = BoundaryTree(boundary, "network")
        if len(photos := list(photographs(args.photos, split, proposer))) < FOLDS:
            raise OvsegError(f"{args.photos} has {len(photos)} labelled photographs of {split}: give {FOLDS} or more")
        for name, tensor in train_ranker(photos, boundary).items():
            kind = np.float16 if name.endswith("matrix") else np.float32
            tensors[f"{boundary}.{name}"] = np.ascontiguousarray(tensor, dtype=kind)
    with atomic_path(args.output) as temporary:
        save_file(tensors, temporary)


if __name__ == "__main__":
    with user_errors():
        main()
