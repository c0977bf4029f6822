"""Pseudo-masks are joined to their own images: by path, or by the end of the path, never to another image."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ovseg.data.pseudo_joining import join_pseudo_masks
from ovseg.data.pseudo_masks import ImageMasks, shard_text
from ovseg.errors import OvsegError

MASK = {"segmentation": {"size": [2, 2], "counts": "04"}, "bbox": [0, 0, 2, 2], "area": 4, "score": 0.9}


@pytest.fixture
def data(tmp_path):
    """Two videos with frames of the same names and sizes."""
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"")
    return tmp_path / "data"


def made(folder: Path, *names: str, root: Path | None = None) -> Path:
    """Write pseudo-masks of images; without a root, as older versions did."""
    folder.mkdir()
    images = [ImageMasks(number, name, 2, 2, [MASK]) for number, name in enumerate(names, start=1)]
    (folder / "masks-00000.json").write_text(shard_text(images))
    (folder / "summary.json").write_text(json.dumps({"shards": 1} | ({"image_root": str(root)} if root else {})))
    return folder


def joined(folders: list[Path], *files: Path) -> dict[str, str]:
    """Return, by image, the folder of the masks that were joined to it."""
    records = [{"file_name": str(file)} for file in files]
    join_pseudo_masks(records, folders)
    own = [record for record in records if "pseudo_masks" in record]
    assert len({record["pseudo_masks"] for record in own}) == len({record["file_name"] for record in own})
    return {
        Path(record["file_name"]).relative_to(record["file_name"].partition("data/")[0] + "data").as_posix(): Path(
            record["pseudo_masks"][0]
        ).parent.name
        for record in own
    }


def test_each_image_has_the_masks_of_its_own_folder(data, tmp_path):
    pa = made(tmp_path / "pa", "1.jpg", "2.jpg", root=data / "a")
    pb = made(tmp_path / "pb", "1.jpg", "2.jpg", root=data / "b")
    files = [data / name for name in ("b/1.jpg", "a/1.jpg", "b/2.jpg")]
    assert joined([pa, pb], *files) == {"a/1.jpg": "pa", "b/1.jpg": "pb", "b/2.jpg": "pb"}
    assert joined([pa], *files) == {"a/1.jpg": "pa"}  # not 2.jpg of b: that of a, which is not trained on, is there
    older = made(tmp_path / "older", "1.jpg", "2.jpg")
    assert joined([pa, older], *files) == {"a/1.jpg": "pa", "b/1.jpg": "older", "b/2.jpg": "older"}


def test_an_image_of_several_data_sets_and_behind_a_link(data, tmp_path):
    (tmp_path / "link").mkdir()
    (tmp_path / "link/data").symlink_to(data)
    for root in (data, None):
        pseudo = made(tmp_path / f"pseudo {root is None}", "a/1.jpg", root=root)
        records = [{"file_name": str(file)} for file in (data / "a/1.jpg", tmp_path / "link/data/a/1.jpg")]
        records.append(records[0].copy())
        join_pseudo_masks(records, [pseudo])
        assert len({record["pseudo_masks"] for record in records}) == 1


@pytest.mark.parametrize("recorded", [False, True])
def test_moved_data(data, tmp_path, recorded):
    pseudo = made(tmp_path / "pseudo", "a/1.jpg", "b/1.jpg", root=data if recorded else None)
    moved = shutil.move(data, tmp_path / "elsewhere/data")
    assert joined([pseudo], moved / "a/1.jpg", moved / "b/1.jpg") == {"a/1.jpg": "pseudo", "b/1.jpg": "pseudo"}


def test_names_of_images_outside_of_the_root(data, tmp_path):
    pseudo = made(tmp_path / "pseudo", "1.jpg", "3.jpg", root=data / "a")
    (data / "b/3.jpg").write_bytes(b"")
    assert joined([pseudo], data / "a/1.jpg", data / "b/3.jpg") == {"a/1.jpg": "pseudo", "b/3.jpg": "pseudo"}


def test_masks_that_two_images_would_have(data, tmp_path):
    pseudo = made(tmp_path / "pseudo", "1.jpg")
    message = r"pseudo-masks of 1\.jpg in .*pseudo are of one image, .*a/1\.jpg and .*b/1\.jpg both .* as --image-root"
    with pytest.raises(OvsegError, match=message):
        joined([pseudo], data / "a/1.jpg", data / "b/1.jpg")


@pytest.mark.parametrize("recorded", [False, True])
def test_an_image_with_masks_in_two_folders(data, tmp_path, recorded):
    root = data / "a" if recorded else None
    folders = [made(tmp_path / "one", "1.jpg", root=root), made(tmp_path / "two", "1.jpg", root=root)]
    with pytest.raises(OvsegError, match=r"one and .*two, have masks for the image .*a/1\.jpg: name one of them"):
        joined(folders, data / "a/1.jpg")


def test_a_folder_for_no_image(data, tmp_path):
    pa, none = made(tmp_path / "pa", "1.jpg", root=data / "a"), made(tmp_path / "none", "9.jpg")
    with pytest.raises(OvsegError, match=r"none are of no image .* lacks masks \(of .*a/1\.jpg, for example\): name"):
        joined([pa, none], data / "a/1.jpg")  # its only image has masks in the other folder
    with pytest.raises(OvsegError, match="all images have masks, so leave it out"):
        joined([pa])
