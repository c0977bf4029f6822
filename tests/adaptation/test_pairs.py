from __future__ import annotations

import errno
import pickle
from pathlib import Path

import numpy as np
import pytest
import webdataset

from ovseg.adaptation import pair_list, pair_shards
from ovseg.adaptation.pair_list import FILL, read_pair_list, write_crops, write_list
from ovseg.adaptation.pair_shards import PairDataset, ShardWriter
from ovseg.errors import OvsegError


def some_pairs(count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    for number in range(count):
        height, width = rng.integers(1, 30, 2)
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        mask = rng.random((height, width)) < 0.5
        mask[0, 0] = True
        yield f"{number:09d}_{0:03d}", image, mask, {"text": f"Wörd {number}", "image": f"sub/{number % 2}.jpg"}


def write_shard(path: Path, count: int, seed: int = 0) -> Path:
    with ShardWriter(path) as writer:
        for key, image, mask, info in some_pairs(count, seed):
            writer.write(key, image, mask, info)
    return path


@pytest.fixture
def folder(tmp_path):
    write_shard(tmp_path / "pairs-00000.tar", 5)
    write_shard(tmp_path / "pairs-00001.tar", 0)
    write_shard(tmp_path / "pairs-00002.tar", 3, seed=1)
    (tmp_path / "summary.json").write_text("{}")
    return tmp_path


def test_what_was_written_is_read_at_random(folder):
    dataset = PairDataset(folder)
    written = [*some_pairs(5), *some_pairs(3, seed=1)]
    assert len(dataset) == 8
    for index in (7, 0, 4, 5, 2):
        key, image, mask, info = written[index]
        pair = dataset[index]
        assert (pair.key, pair.text) == (key, info["text"])
        assert pair.image.dtype == np.uint8 and np.array_equal(pair.image, image)
        assert pair.mask.dtype == bool and np.array_equal(pair.mask, mask)
        assert dataset.info(index) == info
    assert dataset.texts() == [info["text"] for *_, info in written]
    assert dataset.shard_of(4).name == "pairs-00000.tar" and dataset.shard_of(5).name == "pairs-00002.tar"
    with pytest.raises(IndexError):
        dataset[8]
    assert len(PairDataset([folder / "pairs-00002.tar"])) == 3


def test_equal_pairs_give_equal_files(tmp_path):
    first, second = write_shard(tmp_path / "a.tar", 3), write_shard(tmp_path / "b.tar", 3)
    assert first.read_bytes() == second.read_bytes()


def test_webdataset_reads_the_shards(folder):
    samples = list(webdataset.WebDataset(str(folder / "pairs-00000.tar"), shardshuffle=False).decode("rgb8"))
    assert [sample["json"]["text"] for sample in samples] == [info["text"] for *_, info in some_pairs(5)]
    assert np.array_equal(samples[2]["png"], list(some_pairs(5))[2][1])


def test_travels_to_another_process(folder):
    dataset = PairDataset(folder)
    # safe: reads what this line has just written
    assert np.array_equal(pickle.loads(pickle.dumps(dataset))[3].image, dataset[3].image)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.6])
def test_truncated_shard_is_named(folder, share):
    shard = folder / "pairs-00000.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(OvsegError, match=r"pairs-00000\.tar is truncated or damaged.*mine_mask_text_pairs"):
        PairDataset(folder)


def test_shard_cut_between_two_parts_is_noticed(folder):
    shard = folder / "pairs-00002.tar"
    data = shard.read_bytes()
    end = max(i for i in range(0, len(data), 512) if any(data[i : i + 512])) + 512
    shard.write_bytes(data[:end])
    with pytest.raises(OvsegError, match="ends too early"):
        PairDataset([shard])


def test_not_a_shard_and_not_there(folder, tmp_path):
    other = tmp_path / "other.tar"
    other.write_bytes(b"\x89PNG" * 1000)
    with pytest.raises(OvsegError, match="truncated or damaged"):
        PairDataset([other])
    with pytest.raises(OvsegError, match="there is no shard"):
        PairDataset([tmp_path / "none.tar"])
    (folder / "summary.json").unlink()
    with pytest.raises(OvsegError, match="its mining did not end"):
        PairDataset(folder)


def test_interrupted_writing_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "pairs-00000.tar") as writer:
        writer.write(*next(some_pairs(1)))
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_full_disk_is_told(tmp_path, monkeypatch):
    def no_room(self, sample):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pair_shards.TarWriter, "write", no_room)
    with pytest.raises(OvsegError, match=r"disk full while writing .*pairs-00000\.tar"):
        write_shard(tmp_path / "pairs-00000.tar", 1)
    assert not list(tmp_path.iterdir())


def test_original_list_and_back(folder):
    shards = sorted(folder.glob("pairs-*.tar"))
    for shard in shards:
        write_crops(shard, folder / "crops")
    write_list(shards, folder / "pairs.tsv", folder / "crops")
    lines = (folder / "pairs.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["filepath\ttitle\timage", "crops/pairs-00000/000000000_000.png\tWörd 0\tsub/0.jpg"]
    listed, dataset = read_pair_list(folder / "pairs.tsv"), PairDataset(folder)
    assert len(listed) == len(dataset) and listed.texts() == dataset.texts()
    for own, original in zip(listed, dataset, strict=True):
        assert np.array_equal(own.mask, original.mask)
        assert np.array_equal(own.image[own.mask], original.image[original.mask])
        assert (own.image[~own.mask] == FILL).all()


def test_a_mask_pixel_of_the_fill_colour_stays_foreground(tmp_path):
    with ShardWriter(tmp_path / "pairs-00000.tar") as writer:
        writer.write("0_0", np.full((2, 2, 3), FILL, np.uint8), np.eye(2, dtype=bool), {"text": "wall"})
    write_crops(tmp_path / "pairs-00000.tar", tmp_path / "crops")
    write_list([tmp_path / "pairs-00000.tar"], tmp_path / "pairs.tsv", tmp_path / "crops")
    assert np.array_equal(read_pair_list(tmp_path / "pairs.tsv")[0].mask, np.eye(2, dtype=bool))


def test_lists_by_others(tmp_path):
    pixels = np.full((16, 16, 3), FILL, np.uint8)
    pixels[4:12, 4:12] = (255, 0, 0)
    pair_list.cv2.imwrite(str(tmp_path / "a.jpg"), pixels[:, :, ::-1], [pair_list.cv2.IMWRITE_JPEG_QUALITY, 95])
    tsv = tmp_path / "x.csv"
    tsv.write_text('title\tfilepath\n"red" square\ta.jpg\n')
    pair = read_pair_list(tsv)[0]
    assert pair.text == '"red" square'  # quotes mean nothing
    assert pair.mask[5:11, 5:11].all() and not pair.mask[:2].any()
    tsv.write_text("title,filepath\nred,a.jpg\n")
    with pytest.raises(OvsegError, match="columns filepath and title"):
        read_pair_list(tsv)
    tsv.write_text("title\tfilepath\nred\n")
    with pytest.raises(OvsegError, match="line 2"):
        read_pair_list(tsv)
