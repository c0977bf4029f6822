"""Damaged caption files, and lists and shards of pairs: one sentence, or counted lines; never a traceback."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovseg.adaptation.finetune import LAST, METRICS, checkpoint_folder
from ovseg.adaptation.image_root import ImageRoot
from ovseg.adaptation.mining_run import PAIRS
from ovseg.adaptation.pair_list import read_pair_list
from ovseg.adaptation.pair_shards import PairDataset, ShardWriter, iterate_infos
from ovseg.adaptation.shard_work import SETTINGS, claim
from ovseg.data.caption_checks import check_captions
from ovseg.data.caption_files import read_captions
from ovseg.engine.metrics import cut_lines
from ovseg.errors import OvsegError

COCO = json.dumps(
    {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "id": 1, "caption": "A dog."}]}
)
WHOLE = {
    "captions.json": COCO,
    "captions.jsonl": json.dumps({"image_id": "a", "caption": "A dog."}),
    "captions.csv": "filepath,title\na.png,A dog.",
    "captions.tsv": "filepath\ttitle\na.png\tA dog.",
}
DAMAGE = {
    "empty": b"",
    "zeros": bytes(500),
    "not UTF-8": b"\xff\xfe\x00" * 50,
    "null": b"null",
    "a list": b"[]",
    "a number": b"1e999",
    "deep": b"[" * 100_000,
    "long": b'"' + b"x" * 200_000,
    "wrong types": json.dumps({"images": [{"id": [], "file_name": {}}], "annotations": 5}).encode(),
    "odd names": json.dumps(
        {
            "images": [{"id": 1, "file_name": "n" * 5000}, {"id": 2, "file_name": "a\0b"}, {"id": 3, "file_name": 7}],
            "annotations": [{"image_id": i, "caption": "x"} for i in (1, 2, 3, [], None)] + [None, {}],
        }
    ).encode(),
    "odd lines": b'{"image_id": {}, "caption": 3}\n[[[\n"\\ud800"\n{"caption": "x"}\n' + b"[" * 5000,
    "long names": b"filepath,title\n" + b"n" * 5000 + b",x\na\0b,x\n",
    "pairs": b"filepath,title,entity,pairindex,pairentity\na.png,x,e," + b"y" * 200_000 + b",z\n",
}


@pytest.fixture
def folder(tmp_path) -> Path:
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(tmp_path / "a.png")
    return tmp_path


def sentence_or_result(read, *arguments) -> object:
    try:
        return read(*arguments)
    except OvsegError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return None


@pytest.mark.parametrize("name", WHOLE)
def test_damaged_captions(folder, name):
    path = folder / name
    path.write_text(WHOLE[name])
    assert len(read_captions(path).images) == 1
    for content in DAMAGE.values():
        path.write_bytes(content)
        assert sentence_or_result(read_captions, path) is None  # none holds a usable caption
        found = sentence_or_result(check_captions, path)
        assert found is None or found.faults or not found.captions
    path.unlink()
    path.mkdir()
    with pytest.raises(OvsegError, match="there is no captions file"):
        read_captions(path)


@pytest.mark.parametrize("name", WHOLE)
def test_mutated_captions(folder, name):
    path, generator, whole = folder / name, random.Random(0), WHOLE[name].encode()
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            place = generator.randrange(len(content))
            content[place : place + generator.randint(0, 3)] = generator.randbytes(generator.randint(0, 3))
        path.write_bytes(content)
        sentence_or_result(read_captions, path)
        sentence_or_result(check_captions, path)


def shard_of(folder: Path) -> Path:
    path = folder / "pairs-00000.tar"
    with ShardWriter(path) as writer:
        for index in range(2):
            pixels = np.full((3, 4, 3), index, np.uint8)
            writer.write(f"{index:09d}_000", pixels, np.ones((3, 4), bool), {"text": "dog", "score": 0.5, "seen": None})
    return path


def read_all(path: Path) -> None:
    dataset = PairDataset([path])
    for index in range(len(dataset)):
        dataset[index]
    list(iterate_infos(path))


def with_part(path: Path, part: str, content: bytes) -> None:
    """Replace a part of each pair."""
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w") as tar:
        for name, old in members:
            info = tarfile.TarInfo(name)
            data = content if name.partition(".")[2] == part else old
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(
    ("part", "content"),
    [
        *(("json", content) for content in (b"", b"null", b"[]", b"{}", b'{"text": 3}', b"\xff", b"[" * 100_000)),
        *(("json", content) for content in (b'{"text": "x", "score": "y"}', b'{"text": "x", "image": 3}')),
        *((part, content) for part in ("png", "mask.png") for content in (b"", b"zzz", bytes(100))),
    ],
)
def test_damaged_parts_of_pairs_are_named(folder, part, content):
    path = shard_of(folder)
    read_all(path)
    with_part(path, part, content)
    with pytest.raises(OvsegError, match=r"pairs-00000\.tar is truncated or damaged \(pair 000000000_000: "):
        read_all(path)


def test_mutated_shards(folder):
    path, generator = shard_of(folder), random.Random(0)
    whole = path.read_bytes()
    for _ in range(200):
        content = bytearray(whole)
        for _ in range(3):
            content[generator.randrange(len(content.rstrip(b"\0")))] = generator.randrange(256)
        path.write_bytes(content)
        sentence_or_result(read_all, path)


def test_damaged_lists_of_pairs(folder):
    path = folder / "pairs.tsv"
    for content in DAMAGE.values():
        path.write_bytes(content)
        found = sentence_or_result(read_pair_list, path)
        assert found is None or len(found) == 0


def test_damaged_settings_of_mining(folder):
    shard_of(folder)
    for content in (b"", b"[]", b"null", b"\xff", b"[" * 100_000):
        (folder / SETTINGS).write_bytes(content)
        with pytest.raises(OvsegError, match="is damaged: choose another --output"), claim(folder, {"a": 1}, PAIRS):
            pass


def test_damaged_metrics_are_cut_and_the_rest_stays(folder):
    good = json.dumps({"step": 3, "loss": 1.0})
    (folder / METRICS).write_bytes(b"\n".join([good.encode(), b"[]", b"{}", b'{"step": "x"}', b"\xff", b"[" * 9999]))
    cut_lines(folder / METRICS, "step", 3)
    assert (folder / METRICS).read_text() == good + "\n"


def test_a_last_checkpoint_that_is_something_else(folder):
    import torch

    for content in ({}, {"settings": 3}, {"settings": "{}", "step": "x"}):
        torch.save(content, folder / LAST)
        with pytest.raises(OvsegError, match=r"last\.pt"):
            checkpoint_folder(folder).load_newest()


def test_names_of_whole_images_that_no_file_can_have(folder):
    root = ImageRoot(folder, "--image-root")
    for name in ("n" * 5000, "a\0b", "a.png/b"):
        with pytest.raises(OvsegError, match="is not there"):
            root.recorded(name, "a crop")
