"""Captions of every format, lists and shards of mask-text pairs, recipes."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from ovseg.adaptation.mining_report import summarise
from ovseg.adaptation.pair_list import read_pair_list
from ovseg.adaptation.pair_shards import PairDataset, ShardWriter
from ovseg.adaptation.recipe import MODES, Recipe, read_recipe
from ovseg.data.caption_checks import check_captions
from ovseg.data.caption_files import read_captions
from ovseg.vocabulary.nouns import get_extractor
from tests.fuzz.mutate import TEXTS, mutate_bytes, mutate_value, odd_value, to_json, to_yaml

_CAPTIONS = ("A dog and two black cats.", "the man's red bus", "Ein Hund, zwei Katzen", "猫 on a mat", "dog " * 40)
_COCO = {
    "images": [{"id": n, "file_name": f"{n}.png"} for n in range(3)],
    "annotations": [{"id": n, "image_id": n % 3, "caption": text} for n, text in enumerate(_CAPTIONS)],
}
_NARRATIVE = {"dataset_id": "mscoco_val2017", "image_id": "1", "annotator_id": 3, "caption": _CAPTIONS[0]}


def _table(rng: Random, mark: str) -> bytes:
    """Rows of a table with odd cells; the header is whole more often than not."""
    rows: list[list[Any]] = [["filepath", "title", "entity", "pairindex", "pairentity"]]
    for number, text in enumerate(_CAPTIONS):
        rows.append([f"{number % 3}.png", text, "dog,cat", "[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]", str(["dog"] * 10)])
    for _ in range(rng.randint(0, 4)):
        row = rng.choice(rows[rng.randint(0, 1) :])
        row[rng.randrange(len(row))] = rng.choice((odd_value(rng), rng.choice(TEXTS), "https://x.invalid/a.jpg"))
        if rng.random() < 0.2:
            row.append("more")
    quote = '"' if mark == "," else ""
    lines = [mark.join(f"{quote}{cell}{quote}" for cell in row) for row in rows]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


class Captions:
    """Files of captions."""

    name = "captions"
    inputs = 2000

    def __init__(self, folder: Path) -> None:
        self.root = folder
        for number in range(3):
            Image.new("RGB", (4, 4)).save(folder / f"{number}.png")
        self.extractors = [get_extractor(form="both"), get_extractor(known=["dog", "black cat"])]

    def make(self, rng: Random, folder: Path) -> Path:
        kind = rng.choice((".json", ".jsonl", ".csv", ".tsv", ".txt"))
        if kind == ".json":
            data = to_json(rng, mutate_value(rng, _COCO))
        elif kind == ".jsonl":
            odd = to_json(rng, mutate_value(rng, _NARRATIVE))
            data = b"\n".join([json.dumps(_NARRATIVE).encode(), odd, odd[:50]])
        else:
            data = _table(rng, rng.choice((",", "\t")))
        path = folder / f"captions{kind}"
        path.write_bytes(mutate_bytes(rng, data) if rng.random() < 0.3 else data)
        return path

    def steps(self, path: Path) -> Iterable[Callable[[], object]]:
        return [partial(check_captions, path, self.root), partial(self._nouns, path)]

    def _nouns(self, path: Path) -> None:
        for image in read_captions(path, self.root).images:
            for caption in image.captions:
                for extractor in self.extractors:
                    extractor.nouns(caption[:5000])


class Pairs:
    """Shards and lists of pairs, and recipes of fine-tuning."""

    name = "pairs"
    inputs = 2000

    def __init__(self, folder: Path) -> None:
        self.shard, image = folder / "pairs-00000.tar", np.full((5, 6, 3), 200, np.uint8)
        with ShardWriter(self.shard) as writer:
            info = {
                "text": "dog",
                "image": "0.png",
                "caption": "A dog.",
                "score": 0.5,
                "seen": True,
                "box": [0, 0, 5, 6],
            }
            for key in ("000000000_000", "000000001_000"):
                writer.write(key, image, image[:, :, 0] > 0, info)
        Image.fromarray(image).save(folder / "0.png")
        self.root = folder
        self.recipe = json.loads(json.dumps(asdict(Recipe()))) | {"full": {"lr": "5e-6"}, "mask-prompt": {"depth": 2}}

    def make(self, rng: Random, folder: Path) -> Path:
        kind = rng.randrange(5)
        if kind < 3:
            path = folder / "pairs-00000.tar"
            path.write_bytes(mutate_bytes(rng, self.shard.read_bytes()) if kind == 0 else self._odd_shard(rng))
        elif kind == 3:
            path = folder / "pairs.tsv"
            text = f"filepath\ttitle\timage\n{self.root}/0.png\tdog\t0.png\n0.png\tcat\t\n".encode()
            path.write_bytes(mutate_bytes(rng, rng.choice((text, _table(rng, "\t")))))
        else:
            path = folder / "recipe.yaml"
            keys = rng.sample(list(self.recipe), rng.randint(1, 6))
            path.write_bytes(to_yaml(rng, mutate_value(rng, {key: self.recipe[key] for key in keys})))
        return path

    def _odd_shard(self, rng: Random) -> bytes:
        """A whole archive with odd members."""
        file = io.BytesIO()
        with tarfile.open(self.shard) as old, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as new:
            for member in old.getmembers():
                data, kind = old.extractfile(member).read(), rng.randrange(12)
                if member.name.endswith("json") and kind < 6:
                    data = to_json(rng, mutate_value(rng, json.loads(data)))
                elif kind == 6:
                    data = mutate_bytes(rng, data)
                elif kind == 7:
                    continue
                elif kind == 8:
                    member.name = rng.choice(
                        ("x", "", "../x.png", "a.b.c", member.name.upper(), "x" * 90, member.name[:-1])
                    )
                elif kind == 9:
                    member.type, member.linkname = rng.choice((tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE)), "x"
                elif kind == 10:
                    data = b""
                member.size = len(data) if member.isreg() else 0
                new.addfile(member, io.BytesIO(data))
        return file.getvalue()

    def steps(self, path: Path) -> Iterable[Callable[[], object]]:
        if path.suffix == ".tsv":
            return [partial(_read_all, lambda: read_pair_list(path))]
        if path.suffix == ".yaml":
            return [partial(_recipe, path, mode) for mode in MODES]
        read = partial(_read_all, lambda: PairDataset([path]))
        return [read, partial(summarise, [path], 2, 2, 0, True)]


def _read_all(open_pairs: Callable[[], Any]) -> None:
    pairs = open_pairs()
    assert all(isinstance(text, str) for text in pairs.texts())
    for index in range(len(pairs)):
        pair = pairs[index]
        assert pair.image.shape[:2] == pair.mask.shape


def _recipe(path: Path, mode: str) -> None:
    Recipe(**read_recipe(path, mode)).of_mode(mode).check(1)
