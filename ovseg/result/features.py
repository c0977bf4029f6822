"""``ImageFeatures``: embeddings of the pixels and masks of an image, to compare with those of any words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ovseg.errors import OvsegError
from ovseg.io.tensor_files import Pieces, check_tensor_file, write_tensors

DTYPES = ("float32", "float16")
LARGEST = 2**32  # bytes of an array that is computed as a whole
PIECE = 2**24  # numbers of a piece


@dataclass(frozen=True, eq=False, repr=False)
class ImageFeatures:
    """Embeddings of one image in the space of a model's text embeddings.

    The model's own map of embeddings is kept, and what is asked for is interpolated from it bilinearly: the vectors of
    pixels at any stride (:attr:`pixels`), or at single points (:meth:`at`). Nothing of the size of all pixels times D
    is in memory unless :attr:`pixels` is used.

    Attributes:
        places: float32 (D, h0, w0), the model's map; unit vectors if ``normalised``.
        axes: for rows and columns, the place of the image's first pixel, and the step to the next one.
        size: height H and width W of the image, pixels.
        stride: s; maps have the size (h, w) = (ceil(H / s), ceil(W / s)).
        normalised: vectors are unit vectors, before and after the interpolation, and those of regions, too.
        dtype: "float32" or "float16", of what is returned and saved.
        regions: (N, D) in ``dtype``, the embeddings of the masks; None if the system has no masks.
        probabilities: float32 (N, H', W') of the masks, at the size of the model's input; None without masks.
        source: file of the image, or None.
        model: name of the configuration.
    """

    places: Tensor
    axes: tuple[tuple[float, float], tuple[float, float]]
    size: tuple[int, int]
    stride: float
    normalised: bool = True
    dtype: str = "float32"
    regions: np.ndarray | None = None
    probabilities: Tensor | None = None
    source: str | None = None
    model: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise OvsegError(f"dtype is {self.dtype!r}: choose {' or '.join(DTYPES)}")
        if isinstance(self.stride, bool) or not isinstance(self.stride, (int, float)) or not 1 <= self.stride < 2**15:
            raise OvsegError(f"stride is {self.stride!r}: give the pixels between two vectors, a number from 1")

    @classmethod
    def of(
        cls, places: Tensor, unit: bool, regions: Tensor | None, probabilities: Tensor | None, **rest: Any
    ) -> ImageFeatures:
        """Return the features of a model's outputs.

        Args:
            places: (D, h0, w0), any type.
            unit: make unit vectors of places, which the model compares by cosine.
            regions: (N, D), not normalised; None for a system without masks.
            probabilities, rest: attributes.
        """
        features = cls(F.normalize(places.float(), dim=0) if unit else places.float(), **rest)
        if regions is None:
            return features
        vectors = F.normalize(regions.float(), dim=1) if features.normalised else regions.float()
        return replace(features, regions=finished(vectors.cpu().numpy(), features.dtype), probabilities=probabilities)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        masks = "" if self.regions is None else f", {len(self.regions)} masks"
        return f"ImageFeatures({shape} {self.dtype}, stride {self.stride:g}{masks})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """D, h and w of :attr:`pixels`."""
        return (len(self.places), *(max(1, int(-(-side // self.stride))) for side in self.size))

    @property
    def pixels(self) -> np.ndarray:
        """Embeddings of pixels, (D, h, w).

        Raises:
            OvsegError: they are larger than 4 GiB.
        """
        self._check_memory(self.shape)
        return np.concatenate(list(self.channels()))

    @property
    def masks(self) -> np.ndarray | None:
        """Probabilities of the masks of :attr:`regions`, float16 (N, h, w); None if the system has no masks."""
        if self.probabilities is None:
            return None
        self._check_memory((len(self.probabilities), *self.shape[1:]))
        return np.concatenate([np.zeros((0, *self.shape[1:]), np.float16), *self._mask_pieces()])

    def channels(self) -> Iterator[np.ndarray]:
        """Yield :attr:`pixels` a few channels at a time, each (n, h, w)."""
        for few in self.places.split(self._at_a_time):
            yield self._finished(self._vectors(few).cpu().numpy())

    def at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return the embeddings at points of the image, (n, D).

        Args:
            rows, columns: (n,) in pixels of the image, whole or not; the centre of the first pixel is (0, 0).
        """
        points = [torch.as_tensor(np.asarray(given, dtype=np.float64)) for given in (rows, columns)]
        if points[0].ndim != 1 or points[0].shape != points[1].shape:
            raise OvsegError("rows and columns are not two lists of equally many numbers: give one of each per point")
        (i, j, a), (k, m, b) = (self._neighbours(given, axis) for axis, given in enumerate(points))
        upper = torch.lerp(self.places[:, i, k], self.places[:, i, m], b)
        found = torch.lerp(upper, torch.lerp(self.places[:, j, k], self.places[:, j, m], b), a).T
        return self._finished((F.normalize(found, dim=1) if self.normalised else found).cpu().numpy())

    def scores(self, text: np.ndarray) -> np.ndarray:
        """Return the dot products of all pixels with embeddings of texts, float32 (S, h, w).

        Args:
            text: (S, D), see :meth:`ovseg.segmenter.Segmenter.embed_words`.
        """
        self._check_memory((len(text), *self.shape[1:]))
        return np.concatenate([found.cpu().numpy() for _, found in self._score_pieces(text)])

    def labels(self, text: np.ndarray) -> np.ndarray:
        """Return the text with the highest dot product for each pixel, int64 (h, w), the lowest index of equals."""
        best = torch.full(self.shape[1:], -torch.inf, device=self.places.device)
        labels = torch.zeros(self.shape[1:], dtype=torch.int64, device=self.places.device)
        for start, scores in self._score_pieces(text):
            highest, index = scores.max(0)
            better = highest > best
            best, labels = torch.where(better, highest, best), torch.where(better, index + start, labels)
        return labels.cpu().numpy()

    def save(self, path: str | Path) -> Path:
        """Write the features to a file atomically; an existing file is replaced.

        It holds ``pixels`` (D, h, w), and with masks ``regions`` (N, D) and ``masks`` float16 (N, h, w); as metadata
        the texts ``model``, ``source``, ``height``, ``width``, ``stride``, ``normalised`` and ``format``.

        Args:
            path: a file name with the suffix .safetensors or .npz (whose metadata is the JSON in ``metadata``).

        Returns:
            the path.

        Raises:
            OvsegError: another suffix, the folder cannot be written, or the disk is full.
        """
        check_tensor_file(path)
        tensors = {"pixels": Pieces(self.shape, self.dtype, self.channels)}
        if self.regions is not None:
            masks = len(self.regions), *self.shape[1:]
            tensors |= {"regions": Pieces.of(self.regions), "masks": Pieces(masks, "float16", self._mask_pieces)}
        metadata = {
            "format": "ovseg image features 1",
            "model": self.model,
            "source": self.source or "",
            "height": str(self.size[0]),
            "width": str(self.size[1]),
            "stride": f"{self.stride:g}",
            "normalised": str(self.normalised).lower(),
        }
        write_tensors(path, tensors, metadata)
        return Path(path)

    @property
    def _at_a_time(self) -> int:
        return max(1, PIECE // (self.shape[1] * self.shape[2]))

    @cached_property
    def _grid(self) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """For both axes of the maps, the two neighbouring places of each pixel, and the weight of the second one."""
        found = []
        for axis, side in enumerate(self.shape[1:]):
            pixels = self.size[axis] / side
            found.append(self._neighbours((torch.arange(side, dtype=torch.float64) + 0.5) * pixels - 0.5, axis))
        return found[0], found[1]

    @cached_property
    def _norms(self) -> Tensor:
        """Norms of the interpolated vectors, (h, w)."""
        squares = sum(self._interpolated(few).square().sum(0) for few in self.places.split(self._at_a_time))
        return squares.sqrt().clamp_min(1e-12)

    def _neighbours(self, pixels: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
        first, step = self.axes[axis]
        last = self.places.shape[1 + axis] - 1
        position = (first + step * pixels).clamp(0, last)
        lower = position.floor().clamp(max=max(last - 1, 0))
        weight = (position - lower).to(self.places.device, self.places.dtype)
        lower = lower.long().to(self.places.device)
        return lower, (lower + 1).clamp(max=last), weight

    def _interpolated(self, maps: Tensor) -> Tensor:
        """Return maps of places at the pixels; (n, h0, w0) -> (n, h, w)."""
        (i, j, a), (k, m, b) = self._grid
        rows = torch.lerp(maps[:, i], maps[:, j], a[:, None])
        return torch.lerp(rows[..., k], rows[..., m], b)

    def _vectors(self, maps: Tensor) -> Tensor:
        found = self._interpolated(maps)
        return found / self._norms if self.normalised else found

    def _score_pieces(self, text: np.ndarray) -> Iterator[tuple[int, Tensor]]:
        """Yield the index of the first text of a piece, and the scores (n, h, w) of its texts."""
        rows = torch.as_tensor(np.asarray(text, dtype=np.float32), device=self.places.device)
        if rows.ndim != 2 or rows.shape[1] != len(self.places):
            raise OvsegError(f"text has the shape {list(rows.shape)}: give embeddings (S, {len(self.places)})")
        for start in range(0, len(rows), self._at_a_time):
            maps = torch.einsum("sd,dhw->shw", rows[start : start + self._at_a_time], self.places)
            yield start, self._vectors(maps)

    def _mask_pieces(self) -> Iterator[np.ndarray]:
        for few in self.probabilities.split(self._at_a_time):
            if len(few):
                resized = F.interpolate(few[None], self.shape[1:], mode="bilinear", align_corners=False)[0]
                yield resized.half().cpu().numpy()

    def _finished(self, values: np.ndarray) -> np.ndarray:
        return finished(values, self.dtype)

    def _check_memory(self, shape: tuple[int, ...]) -> None:
        if (size := 4 * int(np.prod(shape, dtype=np.int64))) > LARGEST:
            raise OvsegError(
                f"an array of {' x '.join(map(str, shape))} numbers takes {size / 2**30:.1f} GiB: give a larger "
                "stride, ask for single points with at(), or write a file with save(), which computes it in pieces"
            )


def finished(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return values in a type of :data:`DTYPES`.

    Raises:
        OvsegError: one is not a number, or too large for float16.
    """
    with np.errstate(over="ignore"):
        found = values.astype(dtype)
    if not np.isfinite(found).all():
        remedy = "choose float32, or normalise" if np.isfinite(values).all() else "the weights are damaged"
        raise OvsegError(f"embeddings are not all numbers in {dtype} (NaN or infinite): {remedy}")
    return found
