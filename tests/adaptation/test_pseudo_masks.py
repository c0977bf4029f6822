from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovseg.adaptation import pseudo_masks as pseudo
from ovseg.adaptation.pseudo_masks import Teacher, run
from ovseg.adaptation.pseudo_options import PseudoOptions
from ovseg.data.pseudo_masks import read_masks, read_pseudo_masks
from ovseg.errors import OvsegError
from ovseg.proposals.pseudo_labels import pseudo_masks
from ovseg.segmenter import Segmenter
from tests.adaptation.interruption import continued_by_two, killed_at
from tests.photos import write_photos
from tests.tiny_model import make_tiny_model

PHOTOS, PER_SHARD = 14, 3
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, PHOTOS)
    return folder


@pytest.fixture(scope="module")
def options(photos, tmp_path_factory) -> PseudoOptions:
    config, weights = make_tiny_model(tmp_path_factory.mktemp("model"))
    return PseudoOptions(
        data=[str(photos)],
        output=Path("unset"),
        config_file=str(config),
        weights=str(weights),
        min_confidence=0.5,  # of random weights
        shard_size=PER_SHARD,
        device="cpu",
    )


@pytest.fixture(scope="module")
def finished(options, tmp_path_factory) -> Path:
    """The output of an uninterrupted run of one process."""
    output = tmp_path_factory.mktemp("made") / "pseudo"
    run(replace(options, output=output))
    return output


def shards_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("masks-*.json"))}


def test_masks_are_the_confident_proposals(finished, options, photos):
    segmenter = Segmenter.from_config(options.config_file, options.weights, device="cpu")
    masks, summary = read_pseudo_masks(finished), json.loads((finished / "summary.json").read_text())
    assert list(masks) == [f"IMG {number:02d}.png" for number in range(PHOTOS)]
    assert summary["masks"] == sum(map(len, masks.values())) > PHOTOS and summary["images"] == PHOTOS
    assert masks.image_root == photos and masks.find_exact(photos / "IMG 00.png") == "IMG 00.png"
    for number in range(0, PHOTOS, 4):
        name = f"IMG {number:02d}.png"
        probabilities = segmenter.propose(photos / name)
        expected = pseudo_masks(torch.logit(probabilities), min_confidence=0.5)
        found = np.stack(list(read_masks(masks.place(name), *masks.size(name))))
        assert np.array_equal(found, expected.numpy())
        for annotation, mask in zip(masks[name], found, strict=True):
            means = [p[mask].mean().item() for p in probabilities if np.array_equal(p > 0.5, mask)]
            assert annotation["score"] == pytest.approx(max(means), abs=1e-4)
            ys, xs = np.nonzero(mask)
            x, y, width, height = annotation["bbox"]
            assert (x, y, x + width, y + height) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert annotation["area"] == mask.sum() and annotation["bbox_mode"] == 1


def test_ids_of_annotations_are_unique_and_sizes_are_in_order(finished):
    contents = [json.loads(content) for content in shards_of(finished).values()]
    annotations = [annotation for content in contents for annotation in content["annotations"]]
    assert len({annotation["id"] for annotation in annotations}) == len(annotations)
    assert {annotation["image_id"] for annotation in annotations} <= set(range(1, PHOTOS + 1))
    for content in contents:
        sizes = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
        assert all(a["segmentation"]["size"] == sizes[a["image_id"]] for a in content["annotations"])


def test_masks_of_large_images_are_selected_at_a_smaller_size(options, photos):
    segmenter = Segmenter.from_config(options.config_file, options.weights, device="cpu")
    item = pseudo.images_of([str(photos / "IMG 03.png")]).images[0]
    width, height = Image.open(item.path).size
    rule = {"min_confidence": 0.5}
    found = Teacher(segmenter, 30, rule)(item)
    small = pseudo_masks(torch.logit(segmenter.propose(item.path, largest=30)), **rule)
    assert (
        max(small.shape[1:]) == 30 and (found.height, found.width) == (height, width) and len(found) == len(small) > 0
    )
    for mask, selected in zip(found.masks, small, strict=True):
        assert mask["segmentation"]["size"] == [height, width]
        assert mask["area"] / (height * width) == pytest.approx(selected.float().mean().item(), abs=0.03)


def test_killed_run_goes_on_and_two_processes_equal_one(finished, options, tmp_path):
    options = replace(options, output=tmp_path / "pseudo")
    killed_at("IMG 07.png", Teacher, run, options)
    assert len(shards_of(options.output)) == 2 and not (options.output / "summary.json").exists()
    with pytest.raises(OvsegError, match="the run that fills it did not end"):
        read_pseudo_masks(options.output)
    continued_by_two(run, options, shards_of, finished)


def test_lost_shard_is_made_again(finished, options, tmp_path):
    output = shutil.copytree(finished, tmp_path / "pseudo")
    (output / "masks-00002.json").unlink()
    with pytest.raises(OvsegError, match="holds 4 of 5 shards"):
        read_pseudo_masks(output)
    run(replace(options, output=output))
    assert shards_of(output) == shards_of(finished)


def test_other_options_and_another_teacher_are_refused(finished, options, tmp_path):
    with pytest.raises(OvsegError, match=r"other settings \(max_iou; max_iou was 0.8, now it is 0.5\)"):
        run(replace(options, output=finished, max_iou=0.5))
    other = shutil.copy(options.weights, tmp_path / "other.safetensors")
    content = bytearray(Path(other).read_bytes())
    content[-1] ^= 1
    Path(other).write_bytes(content)
    with pytest.raises(OvsegError, match=r"other settings \(weights; "):
        run(replace(options, output=finished, weights=str(other)))
    with pytest.raises(OvsegError, match=r"other settings \(images, images_sha256; "):
        run(replace(options, output=finished, max_images=5))
    run(replace(options, output=finished, config_file=str(options.config_file), device=None))  # complete already


def test_unusable_images(options, photos, tmp_path):
    folder = shutil.copytree(photos, tmp_path / "photos")
    (folder / "IMG 05.png").write_bytes((folder / "IMG 05.png").read_bytes()[:500])
    few = replace(options, data=[str(folder)], output=tmp_path / "out")
    with pytest.raises(OvsegError, match=r"more than 1 %.*IMG 05"):
        run(few)
    run(replace(few, allow_bad=True))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["bad"] == 1 and summary["images"] == PHOTOS - 1
    assert "IMG 05.png" in (tmp_path / "out" / "bad_images.txt").read_text()
    masks = read_pseudo_masks(tmp_path / "out")
    assert [path.name for path in sorted(folder.glob("*.png")) if masks.find(path) is None] == ["IMG 05.png"]


def test_full_disk_is_reported_and_the_run_goes_on(finished, options, tmp_path, monkeypatch):
    output, written = tmp_path / "pseudo", []

    def little_room(images, first_id):
        written.append(first_id)
        if len(written) > 2:
            raise OSError(28, "No space left on device")
        return original(images, first_id)

    original = pseudo.shard_text
    with monkeypatch.context() as patch:
        patch.setattr(pseudo, "shard_text", little_room)
        with pytest.raises(OvsegError, match=r"disk full while writing .*free some space and run again"):
            run(replace(options, output=output))
    assert len(shards_of(output)) == 2
    run(replace(options, output=output))
    assert shards_of(output) == shards_of(finished)


def test_images_of_every_source(options, photos, tmp_path):
    (photos / "captions.csv").write_text("file_name,caption\nIMG 01.png,a dog\nIMG 01.png,a cat\nIMG 04.png,a cow\n")
    (tmp_path / "list.txt").write_text("IMG 02.png\n\nIMG 00.png\n")
    sub = tmp_path / "sub" / "a"
    sub.mkdir(parents=True)
    for number in (1, 2):
        shutil.copy(photos / "IMG 01.png", sub / f"{number}.png")

    def names(*data: str, **changes: object) -> tuple[list[str], list[int]]:
        found, root = pseudo.find_images(replace(options, data=data, **changes))
        own_ids = pseudo.has_own_ids(found.images)
        ids = [int(item.image_id) if own_ids else index for index, item in enumerate(found.images, 1)]
        return pseudo.names_of(found.images, root), ids

    assert names(str(photos), max_images=2) == (["IMG 00.png", "IMG 01.png"], [1, 2])
    assert names(str(photos / "captions.csv"))[0] == ["IMG 01.png", "IMG 04.png"]
    assert names(str(tmp_path / "list.txt"), image_root=photos)[0] == ["IMG 02.png", "IMG 00.png"]
    assert names(str(tmp_path / "sub/**/*.png"), image_root=tmp_path / "sub") == (["a/1.png", "a/2.png"], [1, 2])
    assert names(str(sub / "2.png"), str(sub / "1.png")) == (["2.png", "1.png"], [2, 1])
    assert names("toy:captions", max_images=2) == (["0250000.png", "0250001.png"], [250_000, 250_001])
    with pytest.raises(OvsegError, match="stands alone"):
        names("toy:captions", str(photos))
    with pytest.raises(OvsegError, match="no such file or folder"):
        names(str(tmp_path / "nothing"))
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(sub / "1.png", other / "1.png")
    with pytest.raises(OvsegError, match=r"would both be named 1.png: give their folder as --image-root"):
        names(str(sub / "1.png"), str(other / "1.png"), image_root=photos)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": 1.5}, "--threshold is 1.5"),
        ({"min_confidence": float("nan")}, "--min-confidence is nan"),
        ({"max_masks": 0}, "--max-masks is 0"),
        ({"shard_size": 0}, "--shard-size is 0"),
    ],
)
def test_options_that_cannot_work(options, tmp_path, changes, message):
    with pytest.raises(OvsegError, match=message):
        run(replace(options, output=tmp_path / "out", **changes))


def test_a_system_without_masks_is_no_teacher():
    class Pixels(torch.nn.Module):
        pass

    with pytest.raises(OvsegError, match="Pixels names pixels and has no masks"):
        Teacher(Segmenter(Pixels(), min_size=1, max_size=1), 1024, {})
