"""Paths in a configuration count from its file; those of the command line from the working folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from ovseg.config import load_cfg
from ovseg.config.files import find_config
from ovseg.config.per_dataset import settings_of
from ovseg.errors import OvsegError

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def folders(here) -> Path:
    """A configuration in ``a``, its base in ``b``, files next to both and in the working folder."""
    for name in ("a/own.pth", "b/clip.json", "b/sub/clip.pt", "here.pth", "both.pth", "a/both.pth", "a/mine.yaml"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).touch()
    (here / "b" / "base.yaml").write_text(
        "MODEL: {WEIGHTS: own.pth, CLIP_ADAPTER: {CLIP_MODEL_NAME: clip.json, CLIP_WEIGHTS: sub/clip.pt}}\n"
        "TEST: {PER_DATASET: {../a/mine.yaml: {MASK_THR: 0.2}, ade20k_sem_seg_val: {MASK_THR: 0.1}}}\n"
    )
    return here


def config(folder: Path, text: str) -> Path:
    path = folder / "a" / "config.yaml"
    path.write_text(f"_BASE_: ../b/base.yaml\n{text}\n")
    return path


def test_each_file_counts_from_its_own_folder(folders):
    cfg = load_cfg(config(folders, "DATASETS: {TEST: [mine.yaml, ade20k_sem_seg_val], TRAIN: '(\"mine.yaml\",)'}"))
    assert cfg.MODEL.WEIGHTS == "own.pth"  # neither next to base.yaml nor here
    assert str(folders / "b" / "clip.json") == cfg.MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME
    assert str(folders / "b" / "sub" / "clip.pt") == cfg.MODEL.CLIP_ADAPTER.CLIP_WEIGHTS
    assert list(cfg.DATASETS.TEST) == [str(folders / "a" / "mine.yaml"), "ade20k_sem_seg_val"]
    assert list(cfg.DATASETS.TRAIN) == [str(folders / "a" / "mine.yaml")]
    assert settings_of(cfg, str(folders / "a" / "mine.yaml")) == {"MASK_THR": 0.2}
    assert settings_of(cfg, "a/mine.yaml") == {"MASK_THR": 0.2} and settings_of(cfg, "b/mine.yaml") == {}


def test_image_text_pairs_count_from_the_file(folders):
    (folders / "a/pairs.csv").touch()
    cfg = load_cfg(config(folders, "DATASETS: {IMAGE_TEXT: {ROOT: ../b/sub, FILE: pairs.csv}}"))
    assert str(folders / "b/sub") == cfg.DATASETS.IMAGE_TEXT.ROOT
    assert str(folders / "a/pairs.csv") == cfg.DATASETS.IMAGE_TEXT.FILE
    cfg = load_cfg(config(folders, "DATASETS: {IMAGE_TEXT: {ROOT: /absent, FILE: '../b/x-{0..3}.tar'}}"))
    assert cfg.DATASETS.IMAGE_TEXT.ROOT == "/absent"
    assert str(folders / "b/x-{0..3}.tar") == cfg.DATASETS.IMAGE_TEXT.FILE


@pytest.mark.parametrize("text", ["DATASETS: {{IMAGE_TEXT: {{FILE: '{}'}}}}", "data: {{train: {{meta_file: '{}'}}}}"])
@pytest.mark.parametrize("pattern", ["[sh]/x-{0..3}.tar", "[sh]/x-*.tar", "[sh]/{x,y}-0.tar"])
def test_patterns_of_shards_count_from_the_file(folders, text, pattern):
    path = folders / "a" / "shards.yaml"
    path.write_text(text.format(pattern))
    for place, expected in (("absent", pattern), ("[sh]", pattern), ("a/[sh]", str(folders / "a" / pattern))):
        (folders / place).mkdir()
        (folders / place / "x-0.tar").touch()
        found = load_cfg(path).DATASETS.IMAGE_TEXT.FILE
        assert os.path.abspath(found) == os.path.abspath(expected), "the working folder, where none is next to the file"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("own.pth", "a/own.pth"),
        ("both.pth", "a/both.pth"),  # the file's folder comes first
        ("here.pth", "here.pth"),  # then the working folder
        ("../b/clip.json", "b/clip.json"),
        ("./absent.pth", "a/absent.pth"),
        ("absent.pth", None),
        ("a", None),  # a folder
        ("detectron2://DeepLab/R-103.pkl", None),
        ("openai", None),
        ("ViT-L/14", None),
        ("", None),
        ("/nowhere/a.pth", None),
    ],
)
def test_one_path(folders, value, expected):
    cfg = load_cfg(config(folders, f"MODEL: {{WEIGHTS: '{value}'}}"))
    assert (value if expected is None else str(folders / expected)) == cfg.MODEL.WEIGHTS


def test_the_command_line_counts_from_the_working_folder(folders):
    path = config(folders, "MODEL: {WEIGHTS: own.pth}")
    assert load_cfg(path, ["MODEL.WEIGHTS", "both.pth"]).MODEL.WEIGHTS == "both.pth"


def values(file: str | Path) -> dict:
    """A configuration as plain values."""
    return yaml.safe_load(load_cfg(file).dump())


@pytest.mark.parametrize("name", ["ovseg_toy", "scan_toy", "lseg_plus_toy"])
def test_what_is_written_down_is_read_anywhere(here, name, monkeypatch):
    cfg = load_cfg(CONFIGS / "toy" / f"{name}.yaml")
    files = [cfg.MODEL.WEIGHTS, cfg.MODEL.CLIP_ADAPTER.CLIP_WEIGHTS, cfg.MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME]
    assert all(os.path.isabs(file) and os.path.isfile(file) for file in files)
    (here / "run").mkdir()
    (here / "run" / "config.yaml").write_text(cfg.dump())
    assert values("run/config.yaml") == values(CONFIGS / "toy" / f"{name}.yaml")
    monkeypatch.chdir(CONFIGS / "toy")
    assert values(f"{name}.yaml") == values(CONFIGS / "toy" / f"{name}.yaml")


def test_configurations_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("toy") == str(CONFIGS / "toy.yaml")
    assert values("toy") == values(CONFIGS / "toy" / "ovseg_toy.yaml")
    assert find_config("photo") == str(CONFIGS / "photo.yaml")
    assert find_config("toy/scan_toy") == find_config("configs/toy/scan_toy.yaml") == str(CONFIGS / "toy/scan_toy.yaml")
    for other in ("toy.yaml", "./toy", "data/nothing", "configs/nothing.yaml", "configs/../README.md"):
        assert find_config(other) == other
    (tmp_path / "toy").write_text("SEED: 7")
    assert load_cfg("toy").SEED == 7  # a file of the working folder wins
    with pytest.raises(OvsegError, match=r"'nothing of this name', nor one .* give a YAML file, or one of .*photo|toy"):
        load_cfg("nothing of this name")
