"""Rows of image-text pairs: an image, its captions, and the rows that it shares an entity with."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ovseg.data.shared_entities import SharedEntities
from ovseg.errors import OvsegError, shown
from ovseg.vocabulary.entities import EntityFinder, PhraseFinder

Finder = EntityFinder | PhraseFinder


@dataclass(frozen=True)
class ImageText:
    """One row.

    Attributes:
        name: of the image, for messages.
        image: its file, or the content of its file.
        captions: at least one.
    """

    name: str
    image: Path | bytes
    captions: tuple[str, ...]

    def open(self) -> Path | io.BytesIO:
        """Return what an image decoder reads."""
        return io.BytesIO(self.image) if isinstance(self.image, bytes) else self.image


class Rows(Protocol):
    """Rows that can be read in any order, by several processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> ImageText:
        """Return a row.

        Raises:
            OvsegError: the row is damaged.
        """

    def draw_partner(self, row: int, rng: np.random.Generator) -> tuple[int, str]:
        """Draw a row that shares an entity with this one, perhaps itself, and return it with the entity.

        Raises:
            OvsegError: this row has none.
        """


class RecordRows:
    """Rows of dataset dicts with ``file_name`` and ``captions``; partners share what a finder finds in their captions.

    Args:
        records: dataset dicts; those without captions are left out, and with ``paired`` those without entities.
        finder: of entities.
        paired: whether partners are drawn.
        where: the data sets, for messages.

    Raises:
        OvsegError: no row is left.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]], finder: Finder, paired: bool, where: str):
        kept = [(str(record["file_name"]), _captions(record)) for record in records]
        kept = [(name, captions) for name, captions in kept if captions]
        if not kept:
            raise OvsegError(
                f"no image of DATASETS.TRAIN ({where}) has captions: name a data set with captions, or a table as "
                "DATASETS.IMAGE_TEXT.FILE"
            )
        self._entities = None
        if paired:
            found = [list(dict.fromkeys(e for text in texts for e in finder.shared(text))) for _, texts in kept]
            kept = [row for row, entities in zip(kept, found, strict=True) if entities]
            self._entities = SharedEntities(entities for entities in found if entities)
        if not kept:
            raise OvsegError(
                f"no caption of DATASETS.TRAIN ({where}) has an entity that images could share: set "
                "INPUT.TEXT_AUG.ENTITIES to the words that these captions name, or MODEL.OVSEGMENTOR.USE_MASKLOSS False"
            )
        self._rows = kept
        self.left_out = len(records) - len(kept)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> ImageText:
        name, captions = self._rows[row]
        return ImageText(name, Path(name), captions)

    def draw_partner(self, row: int, rng: np.random.Generator) -> tuple[int, str]:
        """Draw an entity of this row's captions, then a row with it; return the row and the entity."""
        return self._entities.draw(row, rng)


def _captions(record: Mapping[str, Any]) -> tuple[str, ...]:
    captions = record.get("captions") or ()
    if isinstance(captions, str) or not all(isinstance(caption, str) for caption in captions):
        raise OvsegError(f"captions of {record['file_name']} are {shown(captions)}: give a list of texts")
    return tuple(caption for caption in captions if caption.strip())
