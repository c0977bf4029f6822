"""Folders of others stay whole, folders of models name their own files only, and nothing is fetched unasked."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ovseg import Segmenter
from ovseg.cli.words import read_words
from ovseg.errors import OvsegError
from ovseg.hub import opening
from ovseg.hub.card import UNKNOWN, ModelCard
from ovseg.hub.fetch import fetch, offline
from ovseg.hub.inside import check_clip, is_permitted
from ovseg.hub.opening import open_folder
from ovseg.hub.saving import save
from ovseg.hub.table import find, models
from ovseg.toy import make_scene
from tests.hub.conftest import write_library_cache

NAME = "MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME"


def test_folders_of_others_are_not_removed(tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "mine.txt").write_text("mine")
    (tmp_path / "files").mkdir()
    cfg = SimpleNamespace(MODEL=SimpleNamespace(PROPOSER=SimpleNamespace(NAME=""), META_ARCHITECTURE=""))
    with pytest.raises(OvsegError, match="has clip, files of something else: give another folder"):
        save(tmp_path, None, cfg, ModelCard())
    assert (tmp_path / "clip" / "mine.txt").read_text() == "mine"


def test_a_model_is_saved_to_its_own_folder_and_changed_ones_have_no_card(tmp_path):
    folder = tmp_path / "model"
    first = Segmenter.from_pretrained("toy-lseg-plus", device="cpu")
    first.save_pretrained(folder, words=["grass", "brick"])
    image = make_scene(1_000_003).image
    labels = first(image, ["grass", "brick"]).label_map
    own = Segmenter.from_pretrained(folder, device="cpu", local_files_only=True)
    own.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "clip", "config.yaml", "model.safetensors", "vocabulary.json")
    ]
    keys = {"MODEL.WEIGHTS": str(folder / "model.safetensors")}
    again = Segmenter.from_pretrained(folder, device="cpu", opts={"INPUT.MIN_SIZE_TEST": own.min_size})
    assert np.array_equal(again(image).label_map, labels)
    assert again.card == first.card and again.card.licence == "Apache-2.0"
    changed = Segmenter.from_pretrained(folder, device="cpu", opts=keys).card
    assert changed.licence == UNKNOWN and not changed.figures and changed.name == "model"
    assert read_words(None, model=str(folder)).names == ("grass", "brick")
    with pytest.raises(OvsegError, match="none is given"):
        read_words(None, model=str(tmp_path))
    with pytest.raises(OvsegError, match=r"https://a\.b/c\.pth would be downloaded, and local_files_only is set"):
        Segmenter.from_pretrained(folder, local_files_only=True, opts=["MODEL.WEIGHTS", "https://a.b/c.pth"])


@pytest.mark.parametrize(
    ("key", "value", "permitted"),
    [
        ("MODEL.PROPOSER.SAM.MODEL", "other/repo", False),
        ("MODEL.PROPOSER.SAM.MODEL", "./sam", True),
        ("MODEL.PROPOSER.SAM.MODEL", "./../sam", False),
        ("MODEL.OVSEGMENTOR.TEXT_ENCODER.CONFIG", "other/repo", False),
        ("MODEL.OVSEGMENTOR.TEXT_ENCODER.CONFIG", "bert-base-uncased", True),
        ("MODEL.CLIP_ADAPTER.TEXT_TABLE", "x.json", False),
        ("MODEL.CLIP_ADAPTER.CLIP_WEIGHTS", "x.pt", False),
        ("MODEL.CLIP_ADAPTER.CLIP_WEIGHTS", "openai", True),
        ("MODEL.NAMER.REGIONS", "photo", True),
        (NAME, "ViT-L/14", True),
        (NAME, "ViT-L/14@336px", True),
        (NAME, "other/clip", False),
    ],
)
def test_keys_of_a_folder(tmp_path, key, value, permitted):
    assert is_permitted(key, value) == permitted
    text = json.dumps({"MODEL.WEIGHTS": "./model.safetensors", key: value})
    content: dict = {}
    for name, given in json.loads(text).items():
        *sections, last = name.split(".")
        node = content
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = given
    (tmp_path / "config.yaml").write_text(json.dumps(content))
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "sam").mkdir()
    if permitted:
        open_folder(tmp_path, "x")
    else:
        with pytest.raises(OvsegError, match="outside of the folder: do not use this model"):
            open_folder(tmp_path, "x")


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("text_cfg", "hf_tokenizer_name", "other/repo", "hf_tokenizer_name in .* outside"),
        ("text_cfg", "hf_model_name", "./../x", "hf_model_name in .* outside"),
        ("text_cfg", "hf_model_name", "packaged:../x", "hf_model_name in .* outside"),
        ("vision_cfg", "timm_model_name", "hf-hub:other/repo", "timm_model_name in .* outside"),
        ("text_cfg", "tokenizer_kwargs", {"trust_remote_code": True}, "trust_remote_code, which runs code"),
        ("text_cfg", "hf_tokenizer_name", "./tokenizer", None),
        ("text_cfg", "hf_tokenizer_name", "packaged:all-minilm-l6-v2", None),
    ],
)
def test_names_in_the_configuration_of_clip(tmp_path, part, key, value, message):
    (tmp_path / "clip.json").write_text(json.dumps({"model_cfg": {part: {key: value}}}))
    if message is None:
        check_clip(tmp_path / "clip.json")
        return
    with pytest.raises(OvsegError, match=message):
        check_clip(tmp_path / "clip.json")


def test_nothing_is_downloaded_offline(hub):
    from huggingface_hub import constants, snapshot_download

    before = os.environ.get("HF_HUB_OFFLINE")
    with pytest.raises(Exception, match=r"(?i)offline|cannot find|outgoing"), offline():
        snapshot_download("org/model", endpoint=hub.url)
    assert hub.asked == 0 and not constants.HF_HUB_OFFLINE and os.environ.get("HF_HUB_OFFLINE") == before


def test_the_cache_of_the_library_is_verified(hub, tmp_path):
    snapshot = write_library_cache(tmp_path, {"config.json": b"{}"})
    known = {"config.json": hashlib.sha256(b"{}").hexdigest()}
    assert fetch("org/model", ["config.json"], network=False, sha256=known) == snapshot
    with pytest.raises(OvsegError, match=r"config.json of org/model has the sha256 .* 1111111111111111"):
        fetch("org/model", ["config.json"], network=False, sha256={"config.json": "1" * 64})
    place = tmp_path / "cache" / "hub" / "org--model"
    place.mkdir(parents=True)
    (place / "revisions.json").write_text(json.dumps({"main": "e" * 40}))  # another commit was recorded
    with pytest.raises(OvsegError, match="is not on this machine"):
        fetch("org/model", ["config.json"], network=False)


@pytest.mark.parametrize("device", ["gpu", "cuda:7"])
def test_auto_checks_the_device(device):
    with pytest.raises(OvsegError, match="--device"):
        Segmenter.from_pretrained("auto", device=device)


def test_extras_are_checked_before_files_are_fetched(monkeypatch):
    monkeypatch.setattr(opening, "fetch", lambda *_, **__: pytest.fail("a download"))
    monkeypatch.setattr(opening, "version", lambda _: "4.57.1")
    with pytest.raises(OvsegError, match=r"sam-l-clip-l needs transformers 5\.0, and 4\.57\.1 is installed: run `pip"):
        opening.open_row(find("sam-l-clip-l"))
    given = []
    monkeypatch.setattr(opening, "choose", lambda kind, memory, extras: given.append(extras) or find("dense-clip-b"))
    opening._automatic("cpu")
    assert given == [False]


def test_sizes_of_the_hub_are_not_rounded():
    sizes = [file.size for row in models().values() for file in row.files if file.hub]
    assert not [size for size in sizes if size is not None and size % 1_000_000 == 0]


def test_a_load_with_local_files_only_is_offline(hub, monkeypatch):
    from huggingface_hub import constants

    seen = []
    monkeypatch.setattr(
        Segmenter, "from_config", lambda *_, **__: seen.append(constants.HF_HUB_OFFLINE) or SimpleNamespace()
    )
    Segmenter.from_pretrained("toy-scan", local_files_only=True)
    Segmenter.from_pretrained("toy-scan")
    assert seen == [True, False]


def test_a_wheel_has_no_other_weights(tmp_path, monkeypatch):
    import runpy

    import setuptools
    from setuptools.command.build_py import build_py

    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda cmdclass: given.update(cmdclass))
    runpy.run_path(str(Path(__file__).parents[2] / "setup.py"))
    monkeypatch.setattr(build_py, "run", lambda self: None)
    monkeypatch.chdir(tmp_path)
    for name in ("weights/toy/scan.safetensors", "weights/SCAN.pth", "weights/toy/x.pth", "configs/a/b.yaml"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("")
    command = given["build_py"](setuptools.Distribution())
    command.build_lib, command.editable_mode = str(tmp_path / "built"), False
    command.run()
    built = {path.relative_to(tmp_path / "built").as_posix() for path in Path("built").resolve().rglob("*.*")}
    assert built == {"ovseg/weights/toy/scan.safetensors", "ovseg/configs/a/b.yaml"}
