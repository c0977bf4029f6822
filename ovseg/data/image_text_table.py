"""Rows of a table of image-text pairs, as ``datasets/data_process_cc12m.py`` writes it (specification 7.1)."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import numpy as np

from ovseg.data.caption_files import CAPTION_COLUMNS, IMAGE_COLUMNS
from ovseg.data.image_text_rows import ImageText
from ovseg.data.shared_entities import SharedEntities, split_entities
from ovseg.data.tables import Table
from ovseg.errors import OvsegError, shown

logger = logging.getLogger(__name__)

PAIRS = ("pairindex", "pairentity")
_MAKE = "make them by datasets/data_process_cc12m.py --mode makepair"


class TableRows:
    """Rows of a table: an image and its caption, and the rows that share an entity with it.

    Partners are those of the columns ``pairindex`` and ``pairentity``, lists of row numbers from 0 and of words; ours
    draws them from the column ``entity``, words separated by commas, where these two are missing. Damaged rows, which
    raise an error when they are read, have no entities.

    Args:
        path: csv or tsv, with the columns ``image_id``, a file below ``root``, and ``caption`` (other usual names are
            recognized).
        root: folder of the images; "" for that of the table.
        paired: whether partners are drawn.

    Raises:
        OvsegError: the table lacks columns, or has no rows; or there is no folder ``root``.
    """

    def __init__(self, path: str | Path, root: str | Path = "", paired: bool = False):
        self.root = Path(root) if root else Path(path).parent
        if not self.root.is_dir():
            raise OvsegError(f"there is no folder of images {self.root}: correct DATASETS.IMAGE_TEXT.ROOT")
        self.table = Table(path)
        self._image, self._caption = (self._find(names) for names in (IMAGE_COLUMNS, CAPTION_COLUMNS))
        if not len(self.table):
            raise OvsegError(f"{path} has no rows: name another table as DATASETS.IMAGE_TEXT.FILE")
        self._shared = None
        if paired and "entity" in self.table.columns and not set(PAIRS) <= set(self.table.columns):
            bad: list[str] = []
            self._shared = SharedEntities(map(split_entities, self.table.column("entity", bad)))
            if bad:
                logger.warning("%d rows are damaged and pair with no other, such as: %s", len(bad), bad[0])
        elif paired:
            self.table.need(PAIRS, _MAKE)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> ImageText:
        cells = self.table[row]
        name, caption = cells[self._image].strip(), cells[self._caption].strip()
        if not name or not caption:
            raise OvsegError(f"row {row + 1} of {self.table.path} lacks an image or a caption: correct or remove it")
        return ImageText(str(self.root / name), self.root / name, (caption,))

    def draw_partner(self, row: int, rng: np.random.Generator) -> tuple[int, str]:
        """Draw one of the row's pairs; see :class:`ovseg.data.image_text_rows.Rows`."""
        if self._shared is not None:
            if (drawn := self._shared.draw(row, rng)) is None:
                raise OvsegError(f"row {row + 1} of {self.table.path} has no entity: filter the table again")
            return drawn
        cells = self.table[row]
        rows, entities = (self._list(row, name, cells[name]) for name in PAIRS)
        if not rows or len(rows) != len(entities):
            raise self._wrong(row, f"has {len(rows)} rows and {len(entities)} words to pair with")
        drawn = int(rng.integers(len(rows)))
        if not isinstance(rows[drawn], int) or not 0 <= rows[drawn] < len(self):
            raise self._wrong(row, f"has the pair {shown(rows[drawn])}, which is no row of the table")
        return rows[drawn], str(entities[drawn])

    def _list(self, row: int, name: str, cell: str) -> list:
        try:
            value = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
        if not isinstance(value, list):
            raise self._wrong(row, f"has {shown(cell)} as {name}, which is not a list")
        return value

    def _wrong(self, row: int, what: str) -> OvsegError:
        return OvsegError(f"row {row + 1} of {self.table.path} {what}: {_MAKE} again")

    def _find(self, names: tuple[str, ...]) -> str:
        usual = "image_id" if names is IMAGE_COLUMNS else "caption"
        found = next((name for name in (usual, *names) if name in self.table.columns), usual)
        self.table.need([found], "a table of image-text pairs needs image_id and caption")
        return found
