"""Text embeddings remembered on disk: one small file for each word in each set of templates of each text tower."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ovseg.errors import OvsegError
from ovseg.io.files import atomic_path

logger = logging.getLogger(__name__)

_NORM_TOLERANCE = 1e-3


class TextCache:
    """A folder of embeddings, which several threads and processes may use at once.

    An entry holds what it is of and a checksum beside the embedding; what is not whole, or of something else, counts
    as absent and is written anew. A folder that cannot be used costs time, not results: it is warned of once.

    Args:
        folder: of the entries; made when the first is written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._warned: set[str] = set()

    def read(self, key: str, words: Sequence[str], width: int) -> dict[str, Tensor]:
        """The embeddings that are there, float32 (width,) unit vectors, by word.

        Args:
            key: of all that an embedding depends on but its word.
        """
        found = {}
        for word in words:
            path = self._path(key, word)
            try:
                found[word] = _read(path, key, word, width)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (SafetensorError, ValueError) as error:
                self._warn("damaged", "computing a damaged text embedding of the cache again: %s (%s)", path, error)
            except OSError as error:
                self._warn("unread", "cannot read the cache of text embeddings %s: %s", self.folder, error)
        return found

    def write(self, key: str, features: Mapping[str, Tensor]) -> None:
        """Store embeddings, float32 (width,), by word."""
        try:
            for word, feature in features.items():
                feature = feature.cpu().contiguous().clone()
                about = {"key": key, "word": json.dumps(word), "sha256": _checksum(key, word, feature)}
                with atomic_path(self._path(key, word)) as temporary:
                    save_file({"feature": feature}, temporary, about)
        except (OvsegError, OSError, SafetensorError) as error:
            self._warn("unwritten", "text embeddings that cannot be stored are kept in memory only: %s", error)

    def _path(self, key: str, word: str) -> Path:
        name = hashlib.sha256(word.encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / key[:32] / f"{name[:32]}.safetensors"

    def _warn(self, kind: str, message: str, *values: object) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(message, *values)


def _read(path: Path, key: str, word: str, width: int) -> Tensor:
    """An entry's embedding; ValueError says what is wrong with it."""
    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        if about.get("key") != key or about.get("word") != json.dumps(word):
            raise ValueError("it is of another word or model, or from before entries said of which")
        if list(file.keys()) != ["feature"]:
            raise ValueError("it holds something else")
        feature = file.get_tensor("feature")
    if feature.dtype != torch.float32 or feature.shape != (width,):
        raise ValueError(f"it is {feature.dtype} of shape {list(feature.shape)}")
    if about.get("sha256") != _checksum(key, word, feature):
        raise ValueError("its checksum is wrong")
    if not abs(float(feature.norm()) - 1) < _NORM_TOLERANCE:
        raise ValueError("it is no unit vector")
    return feature


def _checksum(key: str, word: str, feature: Tensor) -> str:
    return hashlib.sha256(f"{key} {json.dumps(word)} ".encode("ascii") + feature.numpy().tobytes()).hexdigest()
