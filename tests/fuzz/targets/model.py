"""Images in memory and files of remembered word embeddings, given to a tiny model."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load, save

from ovseg import Segmenter
from tests.fuzz.mutate import TEXTS, mutate_bytes, odd_value
from tests.tiny_model import make_tiny_model

_SIDES = (0, 1, 1, 2, 3, 7, 16, 33, 64, 2000)
_TYPES = ("u1", "i1", "u2", "i4", "i8", "f2", "f4", "f8", "c8", "?", "O", "U3", "M8[s]")
_WORDS = ["sky", "dog", "black cat"]


class Arrays:
    """Arrays, tensors, Pillow images and odd objects as images, and where results are saved."""

    name = "arrays"
    inputs = 2000

    def __init__(self, folder: Path) -> None:
        self.segmenter = Segmenter.from_config(*make_tiny_model(folder))

    def make(self, rng: Random, folder: Path) -> tuple[Any, str | None]:
        generator = np.random.default_rng(rng.getrandbits(32))
        sides = [rng.choice(_SIDES), rng.choice(_SIDES), rng.choice((0, 1, 2, 3, 3, 3, 4, 5))]
        shape = sides[: rng.choice((0, 1, 2, 2, 3, 3, 3, 3))]
        if rng.random() < 0.1:
            shape = rng.choice(([3, 8, 9], [1, 8, 9, 3], [4, 8, 9], [2, 8, 9, 3]))
        if np.prod(shape) > 50_000:
            shape[0] = 3
        scale = rng.choice((1, 255, 255, 255, 1000, float("nan"), -1))
        dtype = rng.choice(_TYPES) if rng.random() < 0.4 else "u1"
        with np.errstate(all="ignore"):
            array = np.asarray(generator.random(shape) * scale).astype(dtype)
        pillow = dtype == "u1" and array.size and (array.ndim == 2 or (array.ndim == 3 and shape[2] in (3, 4)))
        kind, image = rng.randrange(8), array
        if kind == 0:
            image = array.T[::-1] if array.ndim == 2 else array[..., ::-1] if array.ndim else array
        elif kind == 1 and dtype in ("u1", "i1", "i4", "i8", "f2", "f4", "f8"):
            image = torch.from_numpy(np.ascontiguousarray(array))
        elif kind == 2 and pillow:
            image = Image.fromarray(array).convert(rng.choice(("1", "L", "P", "RGB", "RGBA", "I", "F", "CMYK")))
        elif kind == 3:
            image = rng.choice((odd_value(rng), io.BytesIO(b"x"), b"x", array.tolist(), np.ma.array([1]), object()))
        elif kind == 4:
            array.flags.writeable = False
        place = rng.choice(("out", "out.jpg", "sub/", *TEXTS, "x" * 240)) if rng.random() < 0.2 else None
        return image, place

    def steps(self, given: tuple[Any, str | None]) -> Iterable[Callable[[], object]]:
        return [partial(self._segment, *given)]

    def _segment(self, image: Any, place: str | None) -> None:
        result = self.segmenter(image, _WORDS)
        assert result.label_map.ndim == 2 and -1 <= result.label_map.min() <= result.label_map.max() < len(_WORDS)
        if isinstance(image, np.ndarray) and image.ndim > 1:
            assert result.label_map.shape in (image.shape[:2], image.shape[1:])  # channels last or first
        result.to_json()
        if place is not None:
            place = place.replace("..", "__")  # which is written where it says
            result.save(Path.cwd() / place if not place.startswith(("/", "\0")) else place.replace("/", "_"))


class TextCache:
    """Damaged files of remembered embeddings: the answers must be those of the words."""

    name = "textcache"
    inputs = 2000

    def __init__(self, folder: Path) -> None:
        cache = folder / "cache"
        config, weights = make_tiny_model(folder, opts=["MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR", str(cache)])
        self.embedder = Segmenter.from_config(config, weights).model.clip_adapter.text
        self.right = self.embedder(_WORDS).clone()
        self.files = {path: path.read_bytes() for path in cache.rglob("*.safetensors")}
        assert len(self.files) == len(_WORDS)

    def make(self, rng: Random, folder: Path) -> Path:
        for path, data in self.files.items():
            path.write_bytes(data)
        path = rng.choice(sorted(self.files))
        path.write_bytes(self._odd(rng, self.files[path]))
        return path

    def _odd(self, rng: Random, data: bytes) -> bytes:
        others, kind = list(self.files.values()), rng.randrange(4)
        if kind == 0:
            return mutate_bytes(rng, data, others)
        if kind == 1:
            return rng.choice(others)
        feature = load(data)["feature"]
        values = (
            feature * 0,
            feature * float("nan"),
            feature * 2,
            -feature,
            feature[:-1],
            feature[None],
            feature.half(),
            feature.double(),
        )
        return save(
            {rng.choice(("feature", "feature", "x")): rng.choice((*values, feature.long(), feature.roll(1))).clone()}
        )

    def steps(self, path: Path) -> Iterable[Callable[[], object]]:
        return [self._embed]

    def _embed(self) -> None:
        self.embedder._memory.clear()
        # the word is encoded again, in another batch
        assert torch.allclose(self.embedder(_WORDS), self.right, atol=1e-5), "another embedding than the word's"
