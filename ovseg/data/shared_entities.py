"""Which rows of image-text pairs share an entity, in memory (OVSegmentor, specification 7.1 and 7.4)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np


class SharedEntities:
    """Rows by entity and entities by row; about 8 bytes for each entity of each row.

    Args:
        rows: entities of each row, each once; a row may have none.

    Attributes:
        names: the entities, by number.
    """

    def __init__(self, rows: Iterable[Sequence[str]]):
        numbers: dict[str, int] = {}
        entities, ends = array("i"), array("q", [0])
        for row in rows:
            entities.extend(numbers.setdefault(entity, len(numbers)) for entity in row)
            ends.append(len(entities))
        self.names = list(numbers)
        self._entities = np.frombuffer(entities, np.int32) if len(entities) else np.empty(0, np.int32)
        self._ends = np.frombuffer(ends, np.int64)
        owners = np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self._ends))
        self._members = owners[np.argsort(self._entities, kind="stable")]
        self._member_ends = np.cumsum([0, *np.bincount(self._entities, minlength=len(self.names))])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def count(self, row: int) -> int:
        """Return the number of entities of a row."""
        return int(self._ends[row + 1] - self._ends[row])

    def draw(self, row: int, rng: np.random.Generator) -> tuple[int, str] | None:
        """Draw an entity of a row, then a row that has it, which may be the row itself.

        Returns:
            the row drawn and the entity; None for a row without entities.
        """
        if not self.count(row):
            return None
        rows, entities = self.draw_many(np.array([row]), 1, rng)
        return int(rows[0, 0]), self.names[entities[0, 0]]

    def draw_many(self, rows: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw several times for each of N rows, which must have entities; see :meth:`draw`.

        Returns:
            rows drawn, int32 (N, count), and the numbers of the entities in :attr:`names`, int32 (N, count).
        """
        entities = self._entities[_draw_between(self._ends, rows[:, None], (len(rows), count), rng)]
        return self._members[_draw_between(self._member_ends, entities, entities.shape, rng)], entities


def split_entities(cell: str) -> list[str]:
    """Return the words of a cell of the column ``entity``, which commas separate, each once, without blanks around."""
    return [word for word in dict.fromkeys(map(str.strip, cell.split(","))) if word]


def _draw_between(ends: np.ndarray, index: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    first, end = ends[index], ends[index + 1]
    return first + (rng.random(shape) * (end - first)).astype(np.int64)
