"""The toy world: reproducible, honest labels and captions, a cache that survives anything."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from ovseg.errors import OvsegError
from ovseg.toy import (
    BASE_CLASSES,
    CLASS_NAMES,
    COLOURS,
    NOVEL_CLASSES,
    SHAPES,
    STUFF,
    Scene,
    make_scene,
    register_toy,
    registration,
    render_split,
)
from ovseg.toy.cache import record_path
from ovseg.toy.classes import IGNORE_LABEL, NOVEL_STUFF
from ovseg.toy.registration import SPLITS
from ovseg.toy.sentences import names_sides
from tests.processes import run_processes

_NOUN = re.compile(
    r"(?:(small|medium|large) )?(?:(striped|dotted) )?"
    rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b"
)

SCENES = 15  # of each split


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(seed, num_captions=6) for seed in range(60)]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict]]]:
    root = tmp_path_factory.mktemp("toy")
    return root, {split: render_split(split, root, num_scenes=SCENES) for split in SPLITS}


def _read(path: str) -> np.ndarray:
    return cv2.imread(path, cv2.IMREAD_UNCHANGED)


def _digest(scene: Scene) -> str:
    return hashlib.sha256(scene.image.tobytes() + scene.labels.tobytes() + repr(scene.captions).encode()).hexdigest()


def test_same_seed_same_bytes_in_every_process():
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_toy as t;"
    code += "print(t._digest(t.make_scene(7)))"
    other = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == _digest(make_scene(7)) == _digest(make_scene(7))
    assert _digest(make_scene(8)) != _digest(make_scene(7))


def test_more_captions_change_nothing_else():
    few, many = make_scene(3, 2), make_scene(3, 9)
    assert many.captions[:2] == few.captions
    assert len(many.captions) == 9
    assert np.array_equal(few.image, many.image)


def test_seeds_of_splits_are_disjoint():
    ranges = [range(first, first + count) for first, count in SPLITS.values()]
    assert len(set().union(*ranges)) == sum(map(len, ranges))
    assert SPLITS["captions"][0] >= 3000  # tools/train_toy_clip.py --scenes


def test_words_are_split_into_base_and_novel():
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == len(COLOURS) * len(SHAPES) + len(STUFF) == 90
    assert CLASS_NAMES == BASE_CLASSES + NOVEL_CLASSES
    assert set(NOVEL_CLASSES) >= NOVEL_STUFF
    pairs = [name for name in NOVEL_CLASSES if " " in name]
    assert 0.2 <= len(pairs) / (len(COLOURS) * len(SHAPES)) <= 0.25
    for position, words in ((0, COLOURS), (1, SHAPES)):
        for novel_or_base in (NOVEL_CLASSES, BASE_CLASSES):
            seen = {name.split()[position] for name in novel_or_base if " " in name}
            assert seen == set(words)


def test_scene_agrees_with_itself(scenes):
    for scene in scenes:
        height, width, channels = scene.image.shape
        assert (128 <= height <= 192, 128 <= width <= 192, channels) == (True, True, 3)
        assert scene.image.dtype == scene.labels.dtype == np.uint8
        assert scene.instances.dtype == np.uint16
        assert scene.labels.shape == scene.instances.shape == (height, width)
        assert 2 <= len(scene.things) <= 6
        assert 2 <= len(scene.stuff) <= 4
        assert set(np.unique(scene.instances)) == set(range(len(scene.things) + 1))
        for index, thing in enumerate(scene.things, 1):
            mask = scene.instances == index
            assert mask.sum() == thing.area >= 150
            assert set(scene.labels[mask]) == {CLASS_NAMES.index(thing.name)}
        ground = Counter(CLASS_NAMES[label] for label in scene.labels[scene.instances == 0])
        assert set(ground) == set(scene.stuff)
        assert min(ground.values()) >= 600
        assert len({thing.name for thing in scene.things}) == len(scene.things)


def test_thing_has_its_colour(scenes):
    """The median colour inside a plain thing is nearer to its own colour than to any other, up to brightness."""
    right = total = 0
    palette = np.array(list(COLOURS.values()), float)
    for scene in scenes:
        for index, thing in enumerate(scene.things, 1):
            if thing.pattern == "plain":
                median = np.median(scene.image[scene.instances == index], axis=0)
                total += 1
                right += list(COLOURS)[int(np.linalg.norm(palette - median, axis=1).argmin())] == thing.colour
    assert total > 60
    assert right == total


def test_captions_say_only_what_is_there(scenes):
    for scene in scenes:
        there = {(thing.size, thing.pattern, thing.colour, thing.shape) for thing in scene.things}
        by_name = {thing.name: thing for thing in scene.things}
        for caption in scene.captions:
            mentions = list(_NOUN.finditer(caption))
            assert mentions, caption
            for size, pattern, colour, shape in (mention.groups() for mention in mentions):
                assert any(
                    (colour, shape) == entry[2:] and size in (None, entry[0]) and pattern in (None, entry[1])
                    for entry in there
                ), caption
            bare = _NOUN.sub("", caption)
            assert not re.search(rf"\b({'|'.join([*COLOURS, *SHAPES])})\b", bare), caption
            assert {kind for kind in STUFF if re.search(rf"\b{kind}\b", bare)} <= set(scene.stuff), caption
            if on := re.match(r".*? (?:lies|sits|rests|is|has been put) on the (\w+)", caption):
                assert by_name[" ".join(mentions[0].group(3, 4))].ground == on[1], caption
            assert names_sides(caption) == bool(re.search(r"to the (left|right) of", caption)), caption
            if side := re.search(r"to the (left|right) of|(above|below)", caption):
                first, second = (by_name[" ".join(mention.group(3, 4))].centre for mention in mentions)
                axis, lower = {"left": (0, True), "right": (0, False), "above": (1, True), "below": (1, False)}[
                    side[1] or side[2]
                ]
                assert (first[axis] < second[axis]) == lower, caption
        assert {mention.group(3, 4) for mention in _NOUN.finditer(scene.captions[0])} == {
            (thing.colour, thing.shape) for thing in scene.things
        }


def test_captions_are_varied(scenes):
    skeletons = {_NOUN.sub("N", re.sub(rf"\b({'|'.join(STUFF)})\b", "S", scene.captions[1])) for scene in scenes}
    assert len(skeletons) > 25


def test_train_labels_hold_base_words_only(rendered):
    _, splits = rendered
    ignored = 0
    for record in splits["train"]:
        labels, instances = _read(record["sem_seg_file_name"]), _read(record["instance_file_name"])
        scene = make_scene(record["image_id"])
        assert labels[labels != IGNORE_LABEL].max() < len(BASE_CLASSES)
        assert np.array_equal(labels == IGNORE_LABEL, scene.labels >= len(BASE_CLASSES))
        assert np.array_equal(labels[labels != IGNORE_LABEL], scene.labels[labels != IGNORE_LABEL])
        assert {thing["id"] for thing in record["things"]} == set(np.unique(instances)) - {0}
        for thing in record["things"]:
            assert set(labels[instances == thing["id"]]) == {thing["category_id"]}
        ignored += int((labels == IGNORE_LABEL).sum())
    assert ignored > 0


def test_caption_only_scenes_have_no_labels(rendered):
    root, splits = rendered
    assert not (root / "captions" / "labels").exists() and not (root / "captions" / "instances").exists()
    for record in splits["captions"][:5]:
        scene = make_scene(record["image_id"])
        assert set(record) == {"file_name", "image_id", "height", "width", "captions"}
        assert np.array_equal(_read(record["file_name"])[:, :, ::-1], scene.image)
        assert tuple(record["captions"]) == scene.captions and record["width"] == scene.image.shape[1]
        with pytest.raises(OvsegError, match="captions only"):
            registration.WORLD.regions(record)


def test_novel_words_occur_in_train_captions():
    first, count = SPLITS["train"]
    text = " ".join(make_scene(seed).captions[0] for seed in range(first, first + min(count, 160)))
    missing = [name for name in NOVEL_CLASSES if not re.search(rf"\b{name}\b", text)]
    assert not missing


def test_val_has_every_class(tmp_path):
    seen: set[int] = set()
    for record in render_split("val", tmp_path):
        labels = _read(record["sem_seg_file_name"])
        assert labels.shape == (record["height"], record["width"])
        seen |= set(np.unique(labels).tolist())
    assert seen == set(range(len(CLASS_NAMES)))


def test_files_hold_the_scene(rendered):
    _, splits = rendered
    for record in splits["val"][:10]:
        scene = make_scene(record["image_id"])
        assert np.array_equal(_read(record["file_name"])[:, :, ::-1], scene.image)
        assert np.array_equal(_read(record["sem_seg_file_name"]), scene.labels)
        instances = _read(record["instance_file_name"])
        assert instances.dtype == np.uint16
        assert np.array_equal(instances, scene.instances)
        assert tuple(record["captions"]) == scene.captions


def test_cache_is_reused_and_mended(rendered, monkeypatch):
    root, splits = rendered
    drawn: list[int] = []
    make = registration.make_scene
    monkeypatch.setattr(registration, "make_scene", lambda seed: drawn.append(seed) or make(seed))
    assert render_split("train", root, num_scenes=SCENES) == splits["train"]
    assert drawn == []
    record_path(root / "train", 5).unlink()
    assert render_split("train", root, num_scenes=SCENES) == splits["train"]
    assert drawn == [5]


def test_interrupted_drawing_leaves_no_half_scene(tmp_path, monkeypatch):
    def fail(path: Path, *args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(KeyboardInterrupt):
        render_split("val", tmp_path, num_scenes=3)
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.json"))
    assert not list(tmp_path.rglob("*.tmp*"))
    assert len(render_split("val", tmp_path, num_scenes=3)) == 3


def test_two_processes_draw_the_same_cache(tmp_path):
    assert run_processes(render_split, *2 * [("val", tmp_path, 16)]) == [0, 0]
    folder = tmp_path / "val"
    written = [json.loads(path.read_text()) for path in sorted((folder / "records").iterdir())]
    assert len(written) == 16
    for record in written[:4]:
        drawn = _read(str(folder / record["file_name"]))[:, :, ::-1]
        assert np.array_equal(drawn, make_scene(record["image_id"]).image)
    assert not list(tmp_path.rglob("*.tmp*"))


def test_registration_draws_nothing_and_is_idempotent(tmp_path, monkeypatch):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    monkeypatch.setenv("OVSEG_CACHE", str(tmp_path))
    register_toy()
    register_toy()
    assert not list(tmp_path.iterdir())
    assert {"toy_sem_seg_train", "toy_sem_seg_val", "toy_captions_train"} <= set(DatasetCatalog.list())
    assert "toy_sem_seg_captions" not in DatasetCatalog.list()
    train, tune, val = (MetadataCatalog.get(f"toy_sem_seg_{split}") for split in ("train", "tune", "val"))
    assert tuple(train.stuff_classes) == BASE_CLASSES
    assert tuple(val.stuff_classes) == tuple(tune.stuff_classes) == CLASS_NAMES
    sets = val.evaluation_set
    assert tune.evaluation_set == sets
    assert [CLASS_NAMES[index] for index in sets["base"]] == list(BASE_CLASSES)
    assert [CLASS_NAMES[index] for index in sets["novel"]] == list(NOVEL_CLASSES)
    assert train.ignore_label == val.ignore_label == 255
    assert train.evaluator_type == val.evaluator_type == "sem_seg"


def test_errors_say_what_to_do(tmp_path):
    with pytest.raises(OvsegError, match="train, tune, val"):
        render_split("test", tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(OvsegError, match="OVSEG_CACHE"):
        render_split("val", blocked, num_scenes=1)
