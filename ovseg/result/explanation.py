"""Explanation of a segmentation: the class scores of each mask by each classifier."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 100  # of a printed table, characters


@dataclass(frozen=True, eq=False)
class MaskScores:
    """Class scores of n masks for K words, as returned by a model.

    Attributes:
        names: K words; the last one may be "others", added by the model.
        own: (n,K) float32, probabilities of the proposal network; 1 minus the sum of a row is that of "no object"; NaN
            for a proposer that gives none.
        clip: (n,K) float32, probabilities of CLIP; NaN for masks that CLIP did not classify.
        fused: (n,K) float32, the fused scores that are rendered; not normalised.
        fractions: (n,) float32, area as a share of the image.
        boxes: (n,4) float32, x0, y0, x1, y1 as shares of the image's width and height.
    """

    names: tuple[str, ...]
    own: np.ndarray
    clip: np.ndarray
    fused: np.ndarray
    fractions: np.ndarray
    boxes: np.ndarray

    @classmethod
    def from_model(cls, tensors: Mapping[str, Any], names: Sequence[str]) -> MaskScores:
        """Create an instance from the ``explanations`` in a model's output, for the words ``names``."""
        arrays = {name: tensor.float().cpu().numpy() for name, tensor in tensors.items()}
        extra = arrays["fused"].shape[1] - len(names)
        return cls((*names, *["others"] * extra), **arrays)


@dataclass(frozen=True)
class WordScores:
    """Scores of one word for one mask: of the proposal network, of CLIP (None: not classified by it), and fused."""

    word: str
    own: float | None
    clip: float | None
    fused: float


@dataclass(frozen=True)
class MaskExplanation:
    """The best words of one mask.

    Attributes:
        area: pixels of the image, rounded to the resolution of the model's input.
        box: x0, y0, x1, y1 in pixels, ends exclusive.
        no_object: probability of "no object" by the proposal network.
        words: the words with the highest fused scores, best first.
    """

    area: int
    box: tuple[int, int, int, int]
    no_object: float
    words: tuple[WordScores, ...]


class Explanation(tuple[MaskExplanation, ...]):
    """Explanation of one image: its masks, largest first; prints as a table."""

    @classmethod
    def of(cls, scores: MaskScores, height: int, width: int, top_k: int) -> Explanation:
        """Return the ``top_k`` best words of every mask, for an image of ``height`` x ``width`` pixels."""
        masks = []
        for n in np.argsort(-scores.fractions, kind="stable"):
            best = np.argsort(-scores.fused[n], kind="stable")[:top_k]
            words = []
            for k in best:
                own, clip, fused = (float(kind[n, k]) for kind in (scores.own, scores.clip, scores.fused))
                words.append(WordScores(scores.names[k], *(None if math.isnan(x) else x for x in (own, clip)), fused))
            x0, y0, x1, y1 = (int(value) for value in np.rint(scores.boxes[n] * (width, height, width, height)))
            area = int(np.rint(scores.fractions[n] * height * width))
            masks.append(MaskExplanation(area, (x0, y0, x1, y1), float(max(0, 1 - scores.own[n].sum())), tuple(words)))
        return cls(masks)

    def __rich__(self) -> Table:
        table = Table("mask", "area", "box", "word", "own", "CLIP", "fused")
        for column in table.columns[4:]:
            column.justify = "right"
        for number, mask in enumerate(self):
            for rank, word in enumerate(mask.words):
                place = (str(number), str(mask.area), ",".join(map(str, mask.box))) if rank == 0 else ("", "", "")
                own, clip = ("-" if score is None else f"{score:.3f}" for score in (word.own, word.clip))
                last = rank == len(mask.words) - 1
                table.add_row(*place, Text(word.word), own, clip, f"{word.fused:.3f}", end_section=last)
        return table

    def __str__(self) -> str:
        console = Console(width=WIDTH)
        with console.capture() as capture:
            console.print(self)
        return capture.get()

    def to_json(self) -> list[dict[str, Any]]:
        """Return a dict per mask for ``json.dump``: ``area``, ``box`` [x0,y0,x1,y1], ``no_object``, ``words``."""
        return [asdict(mask) for mask in self]
