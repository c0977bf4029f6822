"""``TableText``: vectors of words from a file, in place of CLIP's text tower.

SPNet (Xian et al., CVPR 2019), say, classifies pixels by dot products with 600-dimensional word2vec and fastText
vectors.
"""

from __future__ import annotations

import difflib
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ovseg.errors import OvsegError, argument, shown

NAMES, VECTORS = "names", "vectors"
HINTS = 3


class TableText:
    """Callable that looks up the vectors of words; it has the call of :class:`ovseg.clip.text.TextEmbedder`.

    Args:
        path: npz file with the vector of each word, (D,), under the word (``numpy.savez(path, **vectors)``); or with
            two arrays, ``names`` (N,) text and ``vectors`` (N, D).
        unit: divide the vectors by their norm.

    Raises:
        OvsegError: the file cannot be read, or holds anything but finite vectors of one size, with ``unit`` not zero.
    """

    templates: tuple[str, ...] = ("{}",)

    def __init__(self, path: str | Path, unit: bool = True):
        self.path = str(path)
        names, vectors = self._read()
        self._rows = {name: row for row, name in enumerate(names)}
        self.vectors = torch.from_numpy(vectors)
        if unit:
            norms = self.vectors.norm(dim=1, keepdim=True)
            if not norms.all():
                self._refuse(f"the vector of {shown(names[int(norms[:, 0].argmin())])} is zero")
            self.vectors = self.vectors / norms

    @property
    def dim(self) -> int:
        """Dimension D of the vectors."""
        return self.vectors.shape[1]

    def __call__(self, words: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Return the vectors of words, float32 (K, D); templates are ignored.

        Raises:
            OvsegError: the table lacks a word.
        """
        for word in words:
            if word not in self._rows:
                near = difflib.get_close_matches(word, self._rows, HINTS, cutoff=0.5)
                hint = f"; it has {', '.join(map(repr, near))}" if near else ""
                raise OvsegError(
                    f"the table {self.path} ({argument('table')}) has no vector of the word {shown(word)}{hint}: add "
                    "one, or ask for other words"
                )
        return self.vectors[[self._rows[word] for word in words]]

    def _read(self) -> tuple[list[str], np.ndarray]:
        """Return N names and their vectors, float32 (N, D)."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = dict(file)
        except OSError as error:
            self._refuse(f"it cannot be read ({error.strerror or error})")
        except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            self._refuse(f"it is not an npz file ({error})")
        if set(arrays) == {NAMES, VECTORS}:
            names, rows = arrays[NAMES].reshape(-1).tolist(), list(np.atleast_2d(arrays[VECTORS]))
        else:
            names, rows = list(arrays), list(arrays.values())
        if not rows or len(names) != len(rows) or not all(isinstance(name, str) for name in names):
            self._refuse(f"it holds {len(rows)} vectors for {len(names)} names")
        if twice := [name for name, number in Counter(names).items() if number > 1]:
            self._refuse(f"{shown(twice[0])} has more than one vector")
        for name, row in zip(names, rows, strict=True):
            if row.shape != rows[0].shape or row.ndim != 1 or row.dtype.kind not in "fiu" or not np.isfinite(row).all():
                self._refuse(f"{shown(name)} has {row.dtype} of shape {list(row.shape)}, not a finite vector as others")
        return names, np.stack(rows).astype(np.float32)

    def _refuse(self, reason: str) -> None:
        raise OvsegError(
            f"{self.path} ({argument('table')}) is not a table of words: {reason}; give an npz file with a vector for "
            "each word"
        )
