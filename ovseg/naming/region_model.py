"""``RegionModel``: scores of texts for regions, learnt from few labelled photographs on top of frozen towers.

The logit of a text with the unit embedding t, for a region with the features x, is ::

    o(x, t) + r(x, t)        o = (c(x) . t - m) / s        r = x A u(t)

* c is ConSE (Norouzi et al., arXiv 1312.5650): the mean of the embeddings of the 1000 names of ImageNet, weighted by
  the ten largest probabilities of the tower's own classifier, of unit length; m and s are two numbers. It knows no
  label of regions.
* r is learnt: A by cross-entropy over the names of the training, with o as a fixed offset; u(t) is t minus the mean of
  the names, of unit length.

Logits of names seen in training are too large in comparison with others ("calibrated stacking", Chao et al., arXiv
1605.04253): ``PENALTY`` is subtracted from theirs, and ``SHARE`` of r is used for others. A text that is close to one
of the training takes r of its name, so that the synonyms of a name share it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.clip.dense import LAST, covered, pool, spread
from ovseg.errors import OvsegError, reason_of

SIZE = 1024  # longer side of the image in the tower, pixels
LAYERS = ("blocks.4", "blocks.5")
# parts of a region's features: layer, kind of pooling, weight
PARTS = ((LAST, pool, 1.0), ("blocks.5", pool, 1.0), ("blocks.4", pool, 0.5), ("blocks.5", spread, 0.5))
GEOMETRY, GEOMETRY_WEIGHT = 19, 0.4
TEMPERATURE, NEAREST = 1.5, 10  # of ConSE
PENALTY, SHARE = 2.0, 0.6
SAME, OTHER = 0.95, 0.9  # cosines from which a text is one of the training, and below which it is not
FAMILIAR = 0.8  # cosine to the nearest text of the training below which a text is reported as unfamiliar
# texts that mean "none of the words", and their logit: pixels of words that were withheld from the vocabulary, and of
# words that were not, are right about equally often with it (64 and 76 % of them, cross-validation)
OTHERS = frozenset({"other", "others", "background"})
OTHERS_LOGIT = 2.0
SHIPPED = {"photo": Path(__file__).with_name("photo.safetensors")}  # files of this package, by name


class RegionModel(nn.Module):
    """Function of regions and texts, see :mod:`ovseg.naming.region_model`; all of its state are buffers.

    Args:
        state: C channels of the last map, D features of a region, E dimensions of texts, N names of ImageNet, S texts
            of the training:

            * ``centre``, ``scale`` (D,): of the features
            * ``weights`` (D, E): A
            * ``texts`` (S, E), ``name_of`` (S,) int64: texts of the training, and the position of each one's name
            * ``aliases`` (A, E), ``alias_of`` (A,) int64: texts that stand for names and say little by themselves, such
              as "wall-other-merged", and the position of each one's name
            * ``mean_text`` (E,): subtracted in u
            * ``classifier`` (N, C), ``classifier_bias`` (N,), ``class_texts`` (N, E): of ConSE
            * ``offset`` (2,): m and s
    """

    def __init__(self, state: Mapping[str, Tensor]):
        super().__init__()
        for name, tensor in state.items():
            self.register_buffer(name, tensor if name.endswith("_of") else tensor.float(), persistent=True)

    def forward(self, features: Tensor, last: Tensor, texts: Tensor) -> Tensor:
        """Return the logits of texts.

        Args:
            features, last: (V, D) and (V, C) of V regions, from :func:`describe`.
            texts: (T, E), unit vectors.

        Returns:
            float32 (V, T).
        """
        x = (features - self.centre) * self.scale
        seen, named = self.known(texts)
        own = x @ self.weights @ self.direction(texts).T
        learnt = x @ self.weights @ self.direction(self.texts[named]).T
        given, by_text = self.conse(last, texts), self.conse(last, self.texts)
        of_names = torch.full_like(by_text, -torch.inf).scatter_reduce(
            1, self.name_of.expand_as(by_text), by_text, "amax"
        )
        given = torch.where(seen > 0, given.maximum(of_names[:, named]), given)
        return given + seen * (learnt - PENALTY) + (1 - seen) * SHARE * own

    def known(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far texts (T, E) are ones of the training, 0 .. 1, (T,); and the row of the nearest one's name."""
        cosine, nearest = (texts @ torch.cat((self.texts, self.aliases)).T).max(dim=1)
        return ((cosine - OTHER) / (SAME - OTHER)).clamp(0, 1), torch.cat((self.name_of, self.alias_of))[nearest]

    def familiarity(self, texts: Tensor) -> Tensor:
        """Return the cosine of each text (T, E) to the nearest one of the training, (T,)."""
        return (texts @ torch.cat((self.texts, self.aliases)).T).amax(dim=1)

    def conse(self, last: Tensor, texts: Tensor) -> Tensor:
        """Return o, (V, T), for averages of the last map (V, C) and texts (T, E)."""
        mean, deviation = self.offset
        return (self.embed(last) @ texts.T - mean) / deviation

    def embed(self, last: Tensor) -> Tensor:
        """Return c, unit vectors (V, E)."""
        probabilities = (F.linear(last, self.classifier, self.classifier_bias) / TEMPERATURE).softmax(-1)
        largest, names = probabilities.topk(min(NEAREST, probabilities.shape[1]), dim=-1)
        return F.normalize((largest[..., None] * self.class_texts[names]).sum(-2), dim=-1)

    def direction(self, texts: Tensor) -> Tensor:
        """Return u, unit vectors (T, E)."""
        return F.normalize(texts - self.mean_text, dim=-1)


def describe(maps: Mapping[str, Tensor], masks: Tensor) -> tuple[Tensor, Tensor]:
    """Describe regions of an image.

    A place of a map counts by the square of the share of it that the mask covers, by the share itself in deviations.

    Args:
        maps: float32 (C, h, w) by layer, of :data:`LAYERS` and :data:`ovseg.clip.dense.LAST`.
        masks: bool (V, H, W), each with a pixel.

    Returns:
        Features float32 (V, D), each part of :data:`PARTS` of unit length, and the geometry; and the averages of the
        last map, (V, C).
    """
    binary = masks.float()
    shares, finest = {}, binary
    for size in sorted({tuple(maps[layer].shape[1:]) for layer, _, _ in PARTS}, reverse=True):
        shares[size] = finest = covered(finest, size)
    found: list[Tensor] = []
    for layer, function, _ in PARTS:
        weights = shares[tuple(maps[layer].shape[1:])]
        found.append(function(maps[layer], weights if function is spread else weights**2))
    parts = [part / (part.norm(dim=1, keepdim=True) + 1e-6) for part in found]
    return torch.cat([*parts, geometry(binary)], dim=1), found[0]


def geometry(masks: Tensor) -> Tensor:
    """Describe place and shape of masks.

    Args:
        masks: float (V, H, W), 0 and 1, each with a pixel.

    Returns:
        float32 (V, 19): centre x, its distance from the middle, centre y, spread in x and y; top, bottom, left and
        right of the box, all in parts of the sides; logarithms of the shares of area, of height and of width, and of
        height / width in pixels; share of the box that is filled; shares of the image's top, bottom, left and right
        border; logarithm of perimeter / sqrt(area).
    """
    height, width = masks.shape[1:]
    rows, columns = masks @ masks.new_ones(width), masks.new_ones(height) @ masks  # (V, H), (V, W)
    area = rows.sum(1)
    (centre_y, spread_y), (centre_x, spread_x) = _moments(rows), _moments(columns)
    (y0, y1), (x0, x1) = _ends(rows), _ends(columns)
    perimeter = _neighbours(masks, rows, columns)
    box_height, box_width = y1 - y0, x1 - x0
    return torch.stack(
        (
            centre_x,
            (centre_x - 0.5).abs(),
            centre_y,
            spread_x,
            spread_y,
            y0 / height,
            y1 / height,
            x0 / width,
            x1 / width,
            (area / (height * width)).log(),
            (box_height / height).log(),
            (box_width / width).log(),
            (box_height / box_width).log(),
            area / (box_height * box_width),
            rows[:, 0] / width,
            rows[:, -1] / width,
            columns[:, 0] / height,
            columns[:, -1] / height,
            (perimeter / area.sqrt() + 0.1).log(),
        ),
        dim=1,
    )


def load_regions(name: str) -> tuple[RegionModel, tuple[tuple[str, ...], ...]]:
    """Read a region model.

    Args:
        name: "photo", that of this package, or the path of a file of tools/train_photo_model.py.

    Returns:
        The model, and the names of its training, each with its synonyms.

    Raises:
        OvsegError: the file is missing, damaged, or another one.
    """
    path = SHIPPED.get(name, Path(name))
    remedy = "give photo, or a file of tools/train_photo_model.py"
    try:
        with safe_open(path, framework="pt") as file:
            words = json.loads((file.metadata() or {})["about"])["words"]
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise OvsegError(f"cannot read the region model {path} ({reason_of(error)}): {remedy}") from error
    return RegionModel(state).eval(), tuple(map(tuple, words))


def _moments(profile: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation (V,), in parts of the side, of the pixels whose numbers along a side are (V, n)."""
    share = profile / profile.sum(1, keepdim=True)
    places = (torch.arange(profile.shape[1], device=profile.device) + 0.5) / profile.shape[1]
    mean = share @ places
    return mean, (share * (places - mean[:, None]) ** 2).sum(1).sqrt()


def _ends(profile: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first place with a pixel and the one after the last, float (V,), of (V, n)."""
    occupied = (profile > 0).to(torch.uint8)
    return occupied.argmax(1).float(), (profile.shape[1] - occupied.flip(1).argmax(1)).float()


def _neighbours(masks: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the numbers of pairs of neighbours of which one is in the mask, (V,), by |a - b| = a + b - 2 a b.

    Args:
        masks: float (V, H, W), 0 and 1.
        rows, columns: their sums, (V, H) and (V, W).
    """
    width, flat = masks.shape[2], masks.flatten(1)
    below = 2 * columns.sum(1) - rows[:, 0] - rows[:, -1] - 2 * _dot(flat[:, width:], flat[:, :-width])
    wrapped = _dot(masks[:, 1:, 0], masks[:, :-1, -1])  # ends of rows, neighbours in memory only
    right = 2 * rows.sum(1) - columns[:, 0] - columns[:, -1] - 2 * (_dot(flat[:, 1:], flat[:, :-1]) - wrapped)
    return below + right


def _dot(a: Tensor, b: Tensor) -> Tensor:
    if torch.compiler.is_compiling():  # a graph takes any number of masks
        return (a * b).sum(1)
    return torch.stack([torch.dot(*pair) for pair in zip(a, b, strict=True)])  # views need no copies then
