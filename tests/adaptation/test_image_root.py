"""Finding the whole image of a crop: by what was recorded, or by the crop's name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovseg.adaptation.image_root import ImageRoot, find_image_root
from ovseg.adaptation.mask_sources import Masks
from ovseg.adaptation.miner import Miner
from ovseg.adaptation.pair_list import read_pair_list, write_crops, write_list
from ovseg.adaptation.pair_shards import PairDataset, ShardWriter
from ovseg.data.caption_files import CaptionedImage
from ovseg.errors import OvsegError


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("000000000139.jpg", "ADE_val_00000001.jpg", "a.png", "sub/x.jpg"):
        (folder / name).touch()
    return ImageRoot(folder, "--image-root")


@pytest.mark.parametrize(
    ("crop", "image"),
    [
        ("000000000139_4.png", "000000000139.jpg"),
        ("000000000139_4_person.jpg", "000000000139.jpg"),
        ("ADE_val_00000001_12.png", "ADE_val_00000001.jpg"),
        ("a_1.png", "a.png"),
        ("a.png", "a.png"),
    ],
)
def test_the_crops_name_tells(root, crop, image):
    assert root.of_crop(Path("crops") / crop) == root.folder / image


def test_missing_images_are_named_with_the_option(root):
    with pytest.raises(
        OvsegError, match=r"crop crops/b_1.png is not there \(.*images/b\.jpg\).* as --image-root; where"
    ):
        root.of_crop(Path("crops/b_1.png"))
    with pytest.raises(OvsegError, match=r"of pair 3 is not there \(.*images/no.jpg\): give .* as --image-root"):
        root.recorded("no.jpg", "pair 3")
    with pytest.raises(OvsegError, match=r'no toy split "nowhere"'):
        find_image_root("toy:nowhere", "--image-root")


def test_a_lists_column_wins_and_may_be_empty(root, tmp_path):
    tsv = tmp_path / "list.csv"
    tsv.write_text("image\tfilepath\ttitle\nsub/x.jpg\t000000000139_4.png\tcup\n\t000000000139_4.png\tcup\n")
    assert read_pair_list(tsv).find_images(root) == [root.folder / "sub/x.jpg", root.folder / "000000000139.jpg"]
    tsv.write_text("filepath\ttitle\tother\n000000000139_4.png\tcup\tx\n")
    assert read_pair_list(tsv).find_images(root) == [root.folder / "000000000139.jpg"]
    tsv.write_text("filepath\ttitle\timage\n000000000139_4.png\tcup\tgone.jpg\n")
    with pytest.raises(OvsegError, match=r"whole image of .*000000000139_4.png is not there \(.*gone.jpg\)"):
        read_pair_list(tsv).find_images(root)


def test_mining_remembers_where_the_image_lies(tmp_path):
    """From the image in a subfolder to its shard, to the original's list, and back to the image."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(folder / "sub" / "x.png")
    mask = torch.zeros(1, 20, 30)
    mask[0, 5:15, 5:15] = 1

    def masks(item, pixels):
        return Masks(mask, ("cup",))

    masks.threshold = 0.5
    item = CaptionedImage(folder / "sub" / "x.png", "x", ())
    found = Miner(masks, None, None, image_root=folder)(item)[0]
    assert Miner(masks, None, None)(item)[0].info["image"] == "x.png"
    with ShardWriter(tmp_path / "pairs-00000.tar") as shard:
        shard.write("000000000_000", found.image, found.mask, found.info)
    root = ImageRoot(folder, "--image-root")
    assert PairDataset(tmp_path / "pairs-00000.tar").find_images(root) == [item.path]
    write_crops(tmp_path / "pairs-00000.tar", tmp_path / "crops")
    write_list([tmp_path / "pairs-00000.tar"], tmp_path / "pairs.tsv", tmp_path / "crops")
    assert read_pair_list(tmp_path / "pairs.tsv").find_images(root) == [item.path]


def test_a_shard_without_images_is_refused(root, tmp_path):
    with ShardWriter(tmp_path / "pairs-00000.tar") as shard:
        shard.write("0", np.zeros((2, 2, 3), np.uint8), np.ones((2, 2), bool), {"text": "cup"})
    with pytest.raises(OvsegError, match=r"pair 0 of .* does not name the image that it was cut from: mine"):
        PairDataset(tmp_path / "pairs-00000.tar").find_images(root)
