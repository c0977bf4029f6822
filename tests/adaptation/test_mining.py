from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovseg.adaptation import mining_run, pair_shards, shard_work
from ovseg.adaptation.miner import Miner
from ovseg.adaptation.mining_options import MiningOptions
from ovseg.adaptation.mining_run import PAIRS, run
from ovseg.adaptation.pair_list import read_pair_list
from ovseg.adaptation.pair_shards import PairDataset
from ovseg.adaptation.shard_work import claim
from ovseg.data.caption_files import CaptionedImages
from ovseg.errors import OvsegError
from ovseg.naming.crops import has_pixel
from ovseg.proposals.views import Views
from tests.adaptation.interruption import continued_by_two, killed_at
from tests.photos import write_photos
from tests.tiny_model import make_tiny_model

PHOTOS = 20
THINGS = ("dogs", "green grass", "a red car", "a wooden table", "people", "the sky")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A user's folder: images of several sizes and a table of captions, two for each."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    lines = ["filepath,caption"]
    for name in write_photos(folder, PHOTOS):
        for _ in range(2):
            some = [THINGS[i] for i in rng.permutation(len(THINGS))[:2]]
            lines.append(f'{name},"A photo of {some[0]}, and {some[1]}."')
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def options(photos, tmp_path_factory) -> MiningOptions:
    folder = tmp_path_factory.mktemp("model")
    config, weights = make_tiny_model(folder)
    return MiningOptions(
        data=str(photos / "captions.csv"),
        output=Path("unset"),
        config_file=str(config),
        weights=str(weights),
        shard_size=3,
        device="cpu",
        nouns="phrase",
    )


@pytest.fixture(scope="module")
def finished(options, tmp_path_factory) -> Path:
    """The output of an uninterrupted run of one process."""
    output = tmp_path_factory.mktemp("mined") / "pairs"
    run(replace(options, output=output))
    return output


def shards_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("pairs-*.tar"))}


def test_photos_with_a_table_of_captions(finished, photos):
    dataset = PairDataset(finished)
    summary = json.loads((finished / "summary.json").read_text())
    # the first caption of each photo has two nouns, and each has one best mask
    assert len(dataset) == summary["pairs"] == 2 * PHOTOS
    assert set(dataset.texts()) <= {"dog", "green grass", "red car", "wooden table", "person", "sky"}
    assert summary["unique_nouns"] == len(set(dataset.texts())) and summary["images_with_pairs"] == PHOTOS
    assert sum(count for _, count in summary["top"]) == len(dataset) and summary["bad"] == 0
    for index in range(0, len(dataset), 7):
        pair, info = dataset[index], dataset.info(index)
        x0, y0, x1, y1 = info["box"]
        photo = np.array(Image.open(photos / info["image"]))
        assert np.array_equal(pair.image, photo[y0:y1, x0:x1])  # the background is not blanked
        # the box is the mask's
        assert pair.mask[0].any() and pair.mask[-1].any() and pair.mask[:, 0].any() and pair.mask[:, -1].any()
        assert -1 <= info["score"] <= 1 and info["seen"] is None and pair.key.startswith(f"{index // 2:09d}_")
    assert Image.open(finished / "contact_sheet.png").size[0] == 1280


def test_each_noun_gets_its_best_mask(finished, options, photos):
    from ovseg.segmenter import Segmenter

    segmenter = Segmenter.from_config(options.config_file, options.weights, device="cpu")
    namer = segmenter.model.mask_namer
    info = PairDataset(finished).info(0)
    photo = np.array(Image.open(photos / info["image"]))
    with torch.inference_mode():
        soft = segmenter.propose(photo)
        soft = soft[has_pixel(soft, namer.mask_threshold)]
        image = torch.from_numpy(photo).permute(2, 0, 1)
        (features,) = namer.features(Views([{"image": image}], [image]), [(0, soft)])
        text = namer.clip_adapter.text([info["text"]])[0]
        cosines = torch.nn.functional.cosine_similarity(features, text[None])
    masks = soft > namer.mask_threshold
    assert masks.flatten(1).sum(1).min() >= 0.0005 * photo.size / 3  # else the tiny ones would have to go first
    assert info["score"] == pytest.approx(cosines.max().item(), abs=1e-4)
    ys, xs = np.nonzero(masks[cosines.argmax()].numpy())
    assert info["box"] == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_killed_run_goes_on_and_two_processes_equal_one(finished, options, tmp_path):
    options = replace(options, output=tmp_path / "pairs")
    killed_at("IMG 10.png", Miner, run, options)
    whole, half = shards_of(options.output), list(options.output.glob(".pairs-*.tmp*"))
    assert len(whole) == 3 and half and not (options.output / "summary.json").exists()
    with pytest.raises(OvsegError, match="its mining did not end"):
        PairDataset(options.output)
    continued_by_two(run, options, shards_of, finished)
    assert not list(options.output.glob(".pairs-*.tmp*"))


def test_list_of_the_original_from_finished_pairs(finished, options, tmp_path, monkeypatch):
    output = shutil.copytree(finished, tmp_path / "pairs")
    monkeypatch.setattr(mining_run, "build_miner", None)  # nothing is mined again
    run(replace(options, output=output, write_list=True))
    listed, dataset = read_pair_list(output / "pairs.tsv"), PairDataset(output)
    assert listed.texts() == dataset.texts()
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(listed, dataset, strict=True))


def test_lost_or_damaged_shard_is_made_again(finished, options, tmp_path):
    output = shutil.copytree(finished, tmp_path / "pairs")
    (output / "pairs-00004.tar").unlink()
    (output / "summary.json").unlink()
    run(replace(options, output=output))
    assert shards_of(output) == shards_of(finished)


def test_all_captions_seen_words_and_least_score(finished, options, tmp_path):
    seen = tmp_path / "seen.txt"
    seen.write_text("car\nSky\n")
    output = tmp_path / "all"
    run(replace(options, output=output, captions="all", seen=str(seen), data=options.data))
    dataset = PairDataset(output)
    infos = [dataset.info(i) for i in range(len(dataset))]
    assert len({(info["image"], info["text"]) for info in infos}) == len(dataset) > 2 * PHOTOS
    assert {info["text"] for info in infos if info["seen"]} == {"red car", "sky"}
    summary = json.loads((output / "summary.json").read_text())
    assert summary["seen_share"] == pytest.approx(sum(info["seen"] for info in infos) / len(infos), abs=1e-4)
    middle = float(np.median([info["score"] for info in infos]))
    run(replace(options, output=tmp_path / "some", captions="all", min_score=middle))
    assert 0 < len(PairDataset(tmp_path / "some")) < len(dataset)


@pytest.fixture
def label_maps(photos, tmp_path) -> Path:
    folder = tmp_path / "maps"
    folder.mkdir()
    for path in photos.glob("*.png"):
        width, height = Image.open(path).size
        labels = np.full((height, width), 255, np.uint8)
        labels[: height // 2] = 1
        labels[height // 2 :, : width // 2] = 0
        Image.fromarray(labels).save(folder / path.name)
    return folder


def test_label_maps_and_their_names(options, photos, label_maps, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("floor\nwall\n")
    plain = replace(options, config_file=None, weights=None, masks=str(label_maps), max_images=4)
    run(replace(plain, output=tmp_path / "a", data=str(photos), names_from="labels", label_names=str(words)))
    dataset = PairDataset(tmp_path / "a")
    assert dataset.texts() == ["floor", "wall"] * 4
    assert dataset[1].mask.all() and dataset.info(1)["score"] is None
    height, width = np.array(Image.open(label_maps / dataset.info(1)["image"])).shape
    assert dataset.info(1)["box"] == [0, 0, width, height // 2]
    with pytest.raises(OvsegError, match="--architecture and --clip"):
        run(replace(plain, output=tmp_path / "b"))
    with pytest.raises(OvsegError, match="--label-names"):
        run(replace(plain, output=tmp_path / "b", names_from="labels"))


def test_folders_of_masks_with_a_clip_given_directly(options, photos, tmp_path):
    clip = Path(options.config_file).parent / "clip.json"
    state = clip_state(options.weights)
    torch.save(state, tmp_path / "clip.pt")
    for path in sorted(photos.glob("*.png"))[:3]:
        (tmp_path / "masks" / path.stem).mkdir(parents=True)
        width, height = Image.open(path).size
        mask = np.zeros((height, width), np.uint8)
        mask[3:20, 5:30] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / path.stem / "0.png")
    run(
        replace(
            options,
            config_file=None,
            weights=None,
            masks=str(tmp_path / "masks"),
            max_images=3,
            output=tmp_path / "out",
            architecture=str(clip),
            clip=str(tmp_path / "clip.pt"),
            max_size=45,  # photos are shrunk, boxes are in their own pixels
        )
    )
    dataset = PairDataset(tmp_path / "out")
    assert len(dataset) == 6
    assert np.abs(np.array(dataset.info(0)["box"]) - [5, 3, 30, 20]).max() <= 2


def clip_state(weights: str) -> dict[str, torch.Tensor]:
    from ovseg.checkpoint.state_dicts import read_state_dict

    prefix = "clip_adapter.clip_model."
    return {n.removeprefix(prefix): t for n, t in read_state_dict(weights).items() if n.startswith(prefix)}


def test_other_settings_and_second_run_are_refused(finished, options, tmp_path):
    with pytest.raises(OvsegError, match=r"other settings \(nouns; nouns was 'phrase', now it is 'noun'\)"):
        run(replace(options, output=finished, nouns="noun"))
    settings = json.loads((finished / "settings.json").read_text())
    held = tmp_path / "held"
    with claim(held, settings, PAIRS):
        assert "BlockingIOError" in lock(held).stderr.read()
    other = lock(held)
    assert other.stdout.readline() == "locked\n"
    with pytest.raises(OvsegError, match="another run is writing"), claim(held, settings, PAIRS):
        pass
    other.kill()
    other.wait()
    with claim(held, {**settings, "nouns": "noun"}, PAIRS):  # the lock went with the process; no pair is there yet
        pass
    (held / "settings.json").unlink()
    (held / "pairs-00000.tar").touch()
    with pytest.raises(OvsegError, match="of another origin"), claim(held, settings, PAIRS):
        pass


def lock(folder: Path) -> subprocess.Popen:
    """Another process that locks a folder as a run does, or fails to."""
    code = """
import fcntl, sys, time
with open(sys.argv[1], "a") as file:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("locked", flush=True)
    time.sleep(600)
"""
    command = [sys.executable, "-c", code, str(folder / ".lock")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_settings_do_not_depend_on_the_folder_of_the_configuration(tmp_path):
    configs = []
    for folder in ("clone", "moved", "changed"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "clip.json").write_text(f'{{"changed": {int(folder == "changed")}}}')
        configs.append(tmp_path / folder / "config.yaml")
        configs[-1].write_text("MODEL: {CLIP_ADAPTER: {CLIP_MODEL_NAME: clip.json}}")
    options = [MiningOptions("photos", Path("pairs"), config_file=str(config)) for config in configs]
    one, moved, changed = (mining_run.settings_of(option, CaptionedImages(), None, 1) for option in options)
    assert one == moved and one["config"] != changed["config"]


def test_bad_captions_and_images(options, photos, tmp_path):
    folder = shutil.copytree(photos, tmp_path / "photos")
    table = folder / "captions.csv"
    table.write_text(table.read_text() + "gone.png,a dog\nIMG 01.png,\n")
    few = replace(options, data=str(table), output=tmp_path / "out")
    with pytest.raises(OvsegError, match=r"2 of 42 captions \(4\.8%\) cannot be used.*--allow-bad"):
        run(few)
    assert len((tmp_path / "out" / "bad_captions.txt").read_text().splitlines()) == 2
    (folder / "IMG 05.png").write_bytes((folder / "IMG 05.png").read_bytes()[:500])
    with pytest.raises(OvsegError, match=r"more than 1 %.*IMG 05"):
        run(replace(few, data=str(photos / "captions.csv"), image_root=folder))
    run(replace(few, allow_bad=True))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["bad"] == 3 and summary["images_with_pairs"] == PHOTOS - 1
    assert "IMG 05.png" in (tmp_path / "out" / "bad_images.txt").read_text()


def test_full_disk_is_told_and_the_run_goes_on(finished, options, tmp_path, monkeypatch):
    output, written = tmp_path / "pairs", []
    write = pair_shards.TarWriter.write

    def little_room(self, sample):
        written.append(sample["__key__"])
        if len(written) > 15:
            raise OSError(28, "No space left on device")
        return write(self, sample)

    with monkeypatch.context() as patch:
        patch.setattr(pair_shards.TarWriter, "write", little_room)
        with pytest.raises(OvsegError, match=r"disk full while writing .*free some space and run again"):
            run(replace(options, output=output))
    assert len(shards_of(output)) == 2
    run(replace(options, output=output))
    assert shards_of(output) == shards_of(finished)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config_file": None}, "name where masks come from"),
        ({"masks": "folder"}, "not both"),
        ({"config_file": None, "masks": "ground-truth"}, "--data toy:"),
        ({"clip": "openai"}, "belong together"),
        ({"clip": "none", "architecture": "ViT-B/16"}, "random weights"),
        ({"data": "photos"}, "no captions file photos"),
        ({"shard_size": 0}, "--shard-size"),
        ({"seen": "coco_stuf"}, "no vocabulary file coco_stuf"),
    ],
)
def test_options_that_cannot_work(options, tmp_path, changes, message):
    with pytest.raises(OvsegError, match=message):
        run(replace(options, output=tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_shard_size_does_not_depend_on_processes():
    assert shard_work.default_shard_size(3) == 5
    assert shard_work.default_shard_size(2000) == 63
    assert shard_work.default_shard_size(118_287) == 250
