"""Training and evaluation of :class:`ovseg.naming.region_model.RegionModel` from photographs with panoptic labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ovseg.clip.adapter import ClipAdapter
from ovseg.clip.dense import resize_whole
from ovseg.clip.dense_towers import dense_tower
from ovseg.data.custom.coco import PanopticLabels
from ovseg.data.custom.source import Source
from ovseg.errors import OvsegError
from ovseg.io.images import read_image
from ovseg.naming.region_model import GEOMETRY, GEOMETRY_WEIGHT, LAYERS, PARTS, SIZE, RegionModel, describe
from ovseg.vocabulary import Vocabulary

SMALLEST = 64  # pixels of a segment in training
COUNTED = 256  # pixels of a segment that the share of right names counts
DECAY = 1e-4  # of A, on the mean cross entropy
BALANCE = 0.5  # a segment weighs 1 / (segments of its class) to this power
STEPS, HISTORY = 60, 8  # of L-BFGS
COMPONENTS = 600  # of the features, at most
SCALARS = ("centre", "scale", "mean_text", "offset")  # stored as float32; the rest as float16


@dataclass(frozen=True)
class Regions:
    """The segments of a data set.

    Attributes:
        features: float32 (N, D), see :func:`ovseg.naming.region_model.describe`.
        last: float32 (N, C).
        classes: int64 (N,).
        areas: int64 (N,), pixels.
        images: int64 (N,), position of the image of each.
        widths: numbers of the features of each part, see :data:`ovseg.naming.region_model.PARTS`.
    """

    features: Tensor
    last: Tensor
    classes: Tensor
    areas: Tensor
    images: Tensor
    widths: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, chosen: Tensor) -> Regions:
        rows = (self.features, self.last, self.classes, self.areas, self.images)
        return Regions(*(tensor[chosen] for tensor in rows), self.widths)


@dataclass(frozen=True)
class Names:
    """Embeddings of names.

    Attributes:
        vocabulary: the K classes with their synonyms; the first synonym is the name that is trained.
        texts: float32 (S, E), unit vectors, of all synonyms.
        aliases: float32 (K, E), of the names of the data set, such as "wall-other-merged".
        class_texts: float32 (1000, E), unit vectors, of the names of ImageNet.
    """

    vocabulary: Vocabulary
    texts: Tensor
    aliases: Tensor
    class_texts: Tensor

    @property
    def first(self) -> Tensor:
        """Row in ``texts`` of each class, (K,)."""
        classes = torch.tensor(self.vocabulary.classes)
        return torch.searchsorted(classes, torch.arange(len(self.vocabulary)))


def embed_names(clip: ClipAdapter, vocabulary: Vocabulary) -> Names:
    """Return the embeddings of a vocabulary and of ImageNet's names, whose synonyms are averaged."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    synonyms = [info.index_to_description(index).split(", ") for index in range(1000)]
    texts = clip.text([text for group in synonyms for text in group])
    means = torch.stack([part.mean(0) for part in texts.split([len(group) for group in synonyms])])
    texts, aliases = clip.text(vocabulary.texts).cpu(), clip.text(vocabulary.names).cpu()
    return Names(vocabulary, texts, aliases, F.normalize(means, dim=-1).cpu())


@torch.inference_mode()
def read_regions(clip: ClipAdapter, source: Source) -> Regions:
    """Describe the segments of a data set of COCO's panoptic layout.

    Raises:
        OvsegError: the data set has another layout, no segments, or CLIP has no dense maps.
    """
    if not isinstance(source.reader, PanopticLabels):
        raise OvsegError(f"{source.own.file} is not a panoptic data set: give one with coco_panoptic")
    tower = dense_tower(clip.clip_model.visual, clip.source.name, layers=LAYERS)
    rows: list[tuple[Tensor, ...]] = []
    widths: tuple[int, ...] = ()
    for number, pair in enumerate(source.pairing.pairs):
        segments = [(index, mask) for index, mask in source.reader.masks(pair) if mask.sum() >= SMALLEST]
        if not segments:
            continue
        pixels = torch.from_numpy(read_image(pair.image)).permute(2, 0, 1)
        whole = resize_whole(pixels, SIZE, clip.pixel_mean, clip.pixel_std)
        maps = {layer: found[0] for layer, found in tower.maps(whole, LAYERS).items()}
        widths = tuple(len(maps[layer]) for layer, _, _ in PARTS)
        masks = torch.from_numpy(np.stack([mask for _, mask in segments]))
        classes = torch.tensor([index for index, _ in segments])
        of_image = torch.full_like(classes, number)
        rows.append((*describe(maps, masks), classes, masks.flatten(1).sum(1), of_image))
    if not rows:
        raise OvsegError(f"{source.own.file} has no segment of {SMALLEST} pixels: give a data set with labels")
    return Regions(*map(torch.cat, zip(*rows, strict=True)), widths)


def train_regions(regions: Regions, names: Names, classifier: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Train a region model: the cross entropy is convex, and the result without randomness.

    Args:
        regions: the segments.
        names: those of the classes and of ImageNet.
        classifier: weights (1000, C) and bias (1000,) of the tower's own classifier.

    Returns:
        The state of a :class:`ovseg.naming.region_model.RegionModel`, in the types in which it is stored. Only names
        with a segment are in it.
    """
    counts = torch.bincount(regions.classes, minlength=len(names.vocabulary))
    seen = counts.nonzero()[:, 0]
    centre, scale = _standardise(regions.features, regions.widths)
    state = {
        "centre": centre,
        "scale": scale,
        "weights": torch.zeros(len(centre), names.texts.shape[1]),
        "mean_text": names.texts[names.first].mean(0),
        "classifier": classifier[0],
        "classifier_bias": classifier[1],
        "class_texts": names.class_texts,
        "offset": torch.tensor([0.0, 1.0]),
    } | _texts_of(names, seen)
    model = RegionModel(_stored(state))
    state["offset"] = _conse_offset(model, regions, names)
    model = RegionModel(_stored(state))
    given = model.conse(regions.last, names.texts)
    given = _best(given, names)[:, seen]  # (N, seen)
    targets = torch.searchsorted(seen, regions.classes)
    weights = counts[regions.classes].float() ** -BALANCE
    directions = model.direction(names.texts[names.first][seen])
    x = (regions.features - centre) * scale
    basis = _components(x)
    found = _fit(x @ basis, directions, given, targets, weights / weights.sum())
    return _stored(state | {"weights": basis @ found})


def predict(model: RegionModel, regions: Regions, names: Names) -> Tensor:
    """Return the logits of the classes, (N, K), the maximum over their synonyms."""
    return _best(model(regions.features, regions.last, names.texts), names)


def measure(logits: Tensor, regions: Regions) -> dict[str, float]:
    """Return how well segments are named, in percent.

    Args:
        logits: (N, K).

    Returns:
        ``top-1``, ``top-5`` of segments of at least :data:`COUNTED` pixels; ``mIoU`` over the pixels of all segments,
        the mean over the classes that occur; ``pixels``, the share of pixels with the right name.
    """
    right, ranks = regions.classes, (logits > logits.gather(1, regions.classes[:, None])).sum(1)
    counted = regions.areas >= COUNTED
    found, areas, classes = logits.argmax(1), regions.areas.double(), logits.shape[1]
    true, named, both = (
        torch.bincount(index[chosen], areas[chosen], classes)
        for index, chosen in ((right, right >= 0), (found, right >= 0), (right, right == found))
    )
    occurs = true > 0
    result = {
        "top-1": (ranks[counted] < 1).double().mean(),
        "top-5": (ranks[counted] < 5).double().mean(),
        "mIoU": (both / (true + named - both))[occurs].mean(),
        "pixels": both.sum() / true.sum(),
    }
    return {name: 100 * float(value) for name, value in result.items()}


def hold_out(
    train: Regions, test: Regions, names: Names, classifier: tuple[Tensor, Tensor], folds: int = 5, seed: int = 1
) -> dict[str, float]:
    """Measure names that are held out of the training, a fifth of them at a time, while all names compete.

    Returns:
        ``held out`` and ``rest``: the percentage of right names among the segments of at least :data:`COUNTED` pixels
        whose names were held out, and among the others, over all folds.
    """
    fold_of = torch.randperm(len(names.vocabulary), generator=torch.Generator().manual_seed(seed)) % folds
    right = {"held out": [], "rest": []}
    for fold in range(folds):
        model = RegionModel(train_regions(train[fold_of[train.classes] != fold], names, classifier))
        correct = predict(model, test, names).argmax(1) == test.classes
        counted, held = test.areas >= COUNTED, fold_of[test.classes] == fold
        right["held out"].append(correct[counted & held])
        right["rest"].append(correct[counted & ~held])
    return {name: 100 * float(torch.cat(parts).double().mean()) for name, parts in right.items()}


def cross_validate(
    regions: Regions, names: Names, classifier: tuple[Tensor, Tensor], folds: int = 5, seed: int = 0
) -> tuple[dict[str, float], dict[str, float]]:
    """Return :func:`measure` of a data set whose images are predicted in turn; and :func:`hold_out`, likewise."""
    images = torch.randperm(int(regions.images.max()) + 1, generator=torch.Generator().manual_seed(seed)) % folds
    fold_of = images[regions.images]
    logits = torch.zeros(len(regions), len(names.vocabulary))
    held = []
    for fold in range(folds):
        inside, outside = regions[fold_of != fold], fold_of == fold
        logits[outside] = predict(RegionModel(train_regions(inside, names, classifier)), regions[outside], names)
        held.append(hold_out(inside, regions[outside], names, classifier))
    return measure(logits, regions), {name: float(np.mean([one[name] for one in held])) for name in held[0]}


def _standardise(features: Tensor, widths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return centre and scale (D,): each part gets its weight as root mean square length."""
    centre = features.mean(0)
    *parts, geometry = (features - centre).split([*widths, GEOMETRY], dim=1)
    scales = [
        torch.full((part.shape[1],), weight) / part.square().sum(1).mean().sqrt().clamp(min=1e-6)
        for part, (_, _, weight) in zip(parts, PARTS, strict=True)
    ]
    scales.append(GEOMETRY_WEIGHT / (geometry.std(0, correction=0) + 1e-3) / GEOMETRY**0.5)
    return centre, torch.cat(scales)


def _texts_of(names: Names, seen: Tensor) -> dict[str, Tensor]:
    """Return the texts of the seen classes and the row of the first text of each one's class."""
    classes = torch.tensor(names.vocabulary.classes)
    kept = torch.isin(classes, seen)
    first = torch.searchsorted(classes[kept], classes[kept])
    return {
        "texts": names.texts[kept],
        "name_of": first,
        "aliases": names.aliases[seen],
        "alias_of": torch.searchsorted(classes[kept], seen),
    }


def _conse_offset(model: RegionModel, regions: Regions, names: Names) -> Tensor:
    values = _best(model.embed(regions.last) @ names.texts.T, names)
    return torch.stack((values.mean(), values.std(correction=0)))


def _best(logits: Tensor, names: Names) -> Tensor:
    """Return the maximum over the texts of each class, (N, K), of logits (N, S)."""
    classes = torch.tensor(names.vocabulary.classes).expand(logits.shape)
    return logits.new_full((len(logits), len(names.vocabulary)), -torch.inf).scatter_reduce(1, classes, logits, "amax")


def _components(x: Tensor) -> Tensor:
    """Return an orthonormal basis (D, R) of the rows x (N, D): the main :data:`COMPONENTS` directions."""
    values, vectors = torch.linalg.eigh(x.double() @ x.double().T)
    values, vectors = values.flip(0)[:COMPONENTS], vectors.flip(1)[:, :COMPONENTS]
    kept = values > 1e-6 * values[0]
    return (x.double().T @ (vectors[:, kept] / values[kept].sqrt())).float()


def _fit(x: Tensor, directions: Tensor, given: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return B (R, E) that minimises the weighted cross entropy of ``given + x B directions^T`` plus its decay.

    Only the part of B in the span of the directions matters: it is found in an orthonormal basis of them.
    """
    values, vectors = torch.linalg.eigh(directions.T.double() @ directions.double())
    axes = vectors[:, values > 1e-5 * values.max()].float()  # (E, R')
    inside = directions @ axes
    found = torch.zeros(x.shape[1], axes.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([found], max_iter=STEPS, history_size=HISTORY, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        entropy = F.cross_entropy(given + x @ found @ inside.T, targets, reduction="none") @ weights
        total = entropy + DECAY / 2 * found.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        solver.step(loss)
    return found.detach() @ axes.T


def _stored(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor if name.endswith("_of") else tensor.float() if name in SCALARS else tensor.half()
        for name, tensor in state.items()
    }
