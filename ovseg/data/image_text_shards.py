"""Image-text pairs in WebDataset shards: tar archives with an image and its caption under one key."""

from __future__ import annotations

import glob
import json
import logging
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ovseg.data.image_text_rows import Finder, ImageText
from ovseg.data.shared_entities import SharedEntities
from ovseg.errors import OvsegError, reason_of
from ovseg.io.files import atomic_path
from ovseg.io.tar_index import index_tar

logger = logging.getLogger(__name__)

IMAGES = ("jpg", "jpeg", "png", "webp")  # parts of a sample, in the order in which they are looked for
TEXTS = ("json", "txt")
_ABSENT = (-1, 0)  # offset and size of a part that a sample lacks
_IMAGE, _JSON, _TEXT = 1, 3, 5  # columns of the offsets
_NEED = "a sample needs an image (.jpg, .png, .webp) and .txt or .json with its caption"


class ShardRows:
    """Rows of shards, in the order of shards and of samples within them, read at random.

    Only positions are held in memory (56 bytes a row). A caption is ``caption`` of ``KEY.json``, or else the text of
    ``KEY.txt``. Partners share an ``entity`` of the JSON, a list of words, or else what a finder finds in the caption;
    the shards are read for that when training starts.

    Args:
        source: a folder of ``.tar`` files, one of them, or a pattern such as ``cc12m-{0000..0099}.tar``.
        finder: of entities.
        paired: whether partners are drawn.

    Raises:
        OvsegError: there is no such shard; one is damaged, or holds no pair.
    """

    def __init__(self, source: str, finder: Finder, paired: bool = False):
        self.shards = find_shards(source)
        self.left_out = 0
        spans = []
        for number, shard in enumerate(self.shards):
            samples = _index(shard)
            found = [_spans(parts) for parts in samples.values()]
            self.left_out += found.count(None)
            kept = [(number, *span) for span in found if span is not None]
            spans.append(np.array(kept, np.int64).reshape(-1, 7))
        # (N, 7): shard; offset and size of the image, of JSON and of text
        self._spans = np.concatenate(spans)
        if not len(self._spans):
            raise OvsegError(f"{self.shards[0]} holds no image-text pair: {_NEED}")
        if self.left_out:
            logger.warning("%d samples of the shards are left out: %s", self.left_out, _NEED)
        self._shared = SharedEntities(self._entities(row, finder) for row in range(len(self))) if paired else None

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, row: int) -> ImageText:
        name = f"sample {row} of {self._shard(row)}"
        caption = self._content(row)["caption"]
        if not caption:
            raise OvsegError(f"{name} has no caption: {_NEED}")
        return ImageText(name, self._read(row, _IMAGE), (caption,))

    def draw_partner(self, row: int, rng: np.random.Generator) -> tuple[int, str]:
        """Draw an entity of a row, then a row with it; see :class:`ovseg.data.image_text_rows.Rows`."""
        if (drawn := self._shared.draw(row, rng)) is None:
            raise OvsegError(f"sample {row} of {self._shard(row)} has no entity that another image could share")
        return drawn

    def _entities(self, row: int, finder: Finder) -> Sequence[str]:
        try:
            content = self._content(row)
        except OvsegError:  # it is counted when it is drawn
            return ()
        found = content.get("entity")
        return list(map(str, found)) if isinstance(found, list) else finder.shared(content["caption"])

    def _content(self, row: int) -> Mapping[str, Any]:
        """Return the JSON of a row, with its ``caption``, stripped; "" for none."""
        has_json, has_text = (self._spans[row, [_JSON, _TEXT]] >= 0).tolist()
        try:
            content = json.loads(self._read(row, _JSON).decode("utf-8")) if has_json else {}
            if not isinstance(content, Mapping):
                raise ValueError("its JSON is no object")
            caption = str(content.get("caption") or "").strip()
            if not caption and has_text:
                caption = self._read(row, _TEXT).decode("utf-8").strip()
        except (ValueError, RecursionError) as error:
            raise OvsegError(f"sample {row} of {self._shard(row)} is damaged ({reason_of(error)})") from error
        return {**content, "caption": caption}

    def _read(self, row: int, column: int) -> bytes:
        start, size = self._spans[row, column : column + 2].tolist()
        try:
            with self._shard(row).open("rb", buffering=0) as file:
                file.seek(start)
                data = file.read(size)
        except OSError as error:
            raise OvsegError(f"cannot read {self._shard(row)} ({error.strerror}): check that it is there") from error
        if len(data) < size:
            raise OvsegError(f"{self._shard(row)} has become shorter: copy it again")
        return data

    def _shard(self, row: int) -> Path:
        return self.shards[self._spans[row, 0]]


def find_shards(source: str) -> list[Path]:
    """Return the shards of a folder, a file, or a pattern with braces and asterisks, in order.

    Raises:
        OvsegError: there are none, or one of the pattern is missing; or the source is on another machine.
    """
    if ":" in source and not Path(source).exists():
        raise OvsegError(f"DATASETS.IMAGE_TEXT.FILE {source} is on another machine: copy the shards here first")
    if Path(source).is_dir():
        found = sorted(Path(source).glob("*.tar"))
    else:
        from webdataset.shardlists import expand_urls  # takes seconds to import

        names = expand_urls(source) if "{" in source else [source]
        found = [Path(path) for name in names for path in (sorted(glob.glob(name)) if "*" in name else [name])]
    if lacking := [path for path in found if not path.is_file()]:
        raise OvsegError(f"there is no shard {lacking[0]}: correct DATASETS.IMAGE_TEXT.FILE, {source}")
    if not found:
        raise OvsegError(f"there is no shard in {source}: name a folder of .tar files as DATASETS.IMAGE_TEXT.FILE")
    return found


def write_shard(path: Path, rows: Iterable[tuple[int, Path, str, Sequence[str]]]) -> tuple[int, list[str]]:
    """Write a shard, whole or not at all; equal rows give equal bytes.

    Args:
        path: of the shard.
        rows: number, image file, caption and entities of each.

    Returns:
        the number of samples written, and the image files that are missing or empty, which are left out.
    """
    from webdataset import TarWriter  # takes seconds to import

    written, lacking = 0, []
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        tar = TarWriter(file, encoder=False, compress=False, mtime=0, user="ovseg", group="ovseg")
        for number, image, caption, entities in rows:
            part = image.suffix.lower().removeprefix(".")
            try:
                data = image.read_bytes() if part in IMAGES else b""
            except OSError:
                data = b""
            if not data:
                lacking.append(str(image))
                continue
            content = {"image_id": image.name, "caption": caption, "entity": list(entities)}
            text = json.dumps(content, ensure_ascii=False).encode("utf-8")
            tar.write({"__key__": f"{number:09d}", part: data, "json": text})
            written += 1
        tar.close()
    return written, lacking


def _index(shard: Path) -> dict[str, dict[str, tuple[int, int]]]:
    try:
        return index_tar(shard)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise OvsegError(
            f"the shard {shard} is truncated or damaged ({reason_of(error)}): copy it again, or leave it out of "
            "DATASETS.IMAGE_TEXT.FILE"
        ) from error
    except OSError as error:
        raise OvsegError(f"cannot read {shard} ({error.strerror or error}): check its permissions") from error


def _spans(parts: Mapping[str, tuple[int, int]]) -> tuple[int, ...] | None:
    """Return offset and size of the image, the JSON and the text of a sample; None for one that is no pair."""
    image = next((parts[kind] for kind in IMAGES if kind in parts), None)
    if image is None or parts.keys().isdisjoint(TEXTS):
        return None
    return (*image, *(number for kind in TEXTS for number in parts.get(kind, _ABSENT)))
