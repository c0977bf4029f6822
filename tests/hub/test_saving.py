"""``save_pretrained`` and ``from_pretrained``: equal label maps in another process, offline, from another folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from ovseg import Segmenter
from ovseg.checkpoint.packaged import has_packaged
from ovseg.config import get_cfg
from ovseg.errors import OvsegError
from ovseg.toy import CLASS_NAMES, make_scene
from tests.tiny_clip import tiny_cfg
from tests.tiny_sam import tiny_sam_folder

REPO = Path(__file__).parents[2]
TOYS = ["ovseg", "scan", "openseg", "lseg_plus", "ovsegmentor", "simbaseline", "dense_clip"]
SEED = 1_000_003
WORDS = [*CLASS_NAMES[:20], ("rock", "stone wall")]

LOAD = """
import sys
import numpy as np
from ovseg import Segmenter
from ovseg.toy import make_scene
image = make_scene(int(sys.argv[1])).image
for folder in sys.argv[2:]:
    segmenter = Segmenter.from_pretrained(folder, device="cpu")
    result = segmenter(image)
    np.savez(folder + ".npz", labels=result.label_map, names=np.array(result.names))
"""


def segmenters(folder: Path):
    """Yield (name, segmenter)."""
    for name in TOYS:
        if name == "ovsegmentor":
            pytest.importorskip("transformers")
        yield name, Segmenter.from_config(REPO / "configs" / "toy" / f"{name}_toy.yaml", device="cpu")
    if has_packaged("efficientnet-lite0") and has_packaged("all-minilm-l6-v2"):
        yield "photo", Segmenter.from_config("photo", device="cpu")
    (folder / "parts").mkdir()
    cfg, sam = tiny_cfg(folder / "parts", MASK_PROMPT_DEPTH=0), tiny_sam_folder(folder / "parts", "sam")
    clip = {"CLIP_MODEL_NAME": cfg.MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME, "CLIP_WEIGHTS": "none"}
    keys = {"PROPOSER": {"SAM": {"MODEL": str(sam), "POINTS_PER_SIDE": 4, "IOU_THRESHOLD": 0.0}}, "CLIP_ADAPTER": clip}
    keys["PROPOSER"]["SAM"]["STABILITY_THRESHOLD"] = 0.0
    yield "sam", Segmenter.from_config("sam_vitB_clip_vitB16", opts={"MODEL": keys}, device="cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders and label maps of all systems, and the files that another process has made of the folders."""
    folder = tmp_path_factory.mktemp("saved")
    maps = {}
    for name, segmenter in segmenters(folder):
        maps[name] = segmenter(make_scene(SEED).image, WORDS).label_map
        segmenter.save_pretrained(folder / name, words=WORDS, card={"licence": "Apache-2.0", "name": name})
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPO), "OVSEG_CACHE": str(elsewhere / "cache")}
    for path in (folder / "parts").rglob("*"):  # the other process finds none of the files that the model was made of
        path.rename(path.with_name(f"{path.name}.gone")) if path.is_file() else None
    command = [sys.executable, "-c", LOAD, str(SEED), *(str(folder / name) for name in maps)]
    run = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return folder, maps


@pytest.mark.parametrize("name", [*TOYS, "photo", "sam"])
def test_another_process_has_equal_label_maps(saved, name):
    folder, maps = saved
    if name not in maps:
        pytest.skip("packages of the photograph model are not installed")
    with np.load(folder / f"{name}.npz") as other:
        assert np.array_equal(other["labels"], maps[name])
        assert list(other["names"]) == [word if isinstance(word, str) else word[0] for word in WORDS]
    assert len(np.unique(maps[name])) > 1


def test_the_folder_has_what_it_must(saved):
    folder, _ = saved
    files = sorted(path.name for path in (folder / "ovseg").iterdir())
    assert files == ["README.md", "clip", "config.yaml", "model.safetensors", "vocabulary.json"]
    front = yaml.safe_load((folder / "ovseg" / "README.md").read_text().split("---")[1])
    assert front["license"] == "apache-2.0" and front["library_name"] == "ovseg"
    text = (folder / "ovseg" / "config.yaml").read_text()
    assert "./model.safetensors" in text and str(folder) not in text and str(REPO) not in text
    assert len(text.splitlines()) < 120  # keys that differ from the defaults
    assert json.loads((folder / "ovseg" / "vocabulary.json").read_text())["synonyms"][-1] == ["rock", "stone wall"]


def test_the_configuration_is_that_of_the_model(saved):
    folder, _ = saved
    for name in ("ovseg", "ovsegmentor", "simbaseline"):
        before = Segmenter.from_config(REPO / "configs" / "toy" / f"{name}_toy.yaml", device="cpu").config
        after = get_cfg()
        after.merge_from_file(folder / name / "config.yaml")
        for section in ("MASK_FORMER", "SEM_SEG_HEAD", "SWIN", "RESNETS", "RENDERING", "FUSION", "OPENSEG"):
            assert after.MODEL[section] == before.MODEL[section]
        assert after.INPUT.MIN_SIZE_TEST == before.INPUT.MIN_SIZE_TEST


def test_a_saved_model_is_saved_again(saved, tmp_path):
    folder, maps = saved
    segmenter = Segmenter.from_pretrained(folder / "lseg_plus", device="cpu")
    assert segmenter.card.name == "lseg_plus" and segmenter.name == "lseg_plus"
    for _ in range(2):  # the second replaces the first
        segmenter.save_pretrained(tmp_path / "again")
    again = Segmenter.from_pretrained(tmp_path / "again", device="cpu")
    assert np.array_equal(again(make_scene(SEED).image).label_map, maps["lseg_plus"])
    assert again.card == segmenter.card and again.vocabulary == segmenter.vocabulary


def damaged(folder: Path, name: str, text: str | None) -> None:
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.yaml", None, "has no config.yaml: give a folder that save_pretrained has written completely"),
        ("config.yaml", "_BASE_: ../x.yaml", r"is not of save_pretrained, it has '_BASE_': name files of the folder"),
        ("config.yaml", "SOLVER: {MAX_ITER: 1}", r"it has 'SOLVER': use Segmenter.from_config\("),
        ("config.yaml", "MODEL: [", "config.yaml"),
        ("config.yaml", "MODEL: {WEIGHTS: /etc/passwd}", "does not name ./model.safetensors as MODEL.WEIGHTS"),
        ("model.safetensors", None, "lacks model.safetensors: copy or download the whole folder again"),
        ("model.safetensors", "", "model.safetensors"),
        ("vocabulary.json", "{}", "is not a vocabulary.json of this package"),
        ("clip/clip.json", None, "lacks clip/clip.json"),
    ],
)
def test_damaged_folders(saved, tmp_path, name, text, message):
    folder = tmp_path / "model"
    _link(saved[0] / "lseg_plus", folder)
    damaged(folder, name, text)
    with pytest.raises(OvsegError, match=message):
        Segmenter.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("value", ["../clip.json", "/etc/clip.json", "hf-hub:org/clip", "https://host/clip.json"])
def test_keys_that_lead_out_of_the_folder_are_refused(saved, tmp_path, value):
    folder = tmp_path / "model"
    _link(saved[0] / "lseg_plus", folder)
    config = (folder / "config.yaml").read_text().replace("./clip/clip.json", value)
    (folder / "config.yaml").write_text(config)
    with pytest.raises(OvsegError, match=r"MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME in .* outside of the folder"):
        Segmenter.from_pretrained(folder, device="cpu")


def _link(source: Path, target: Path) -> None:
    """Copy the small files of a folder."""
    for path in source.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("toy-ovsegg", r"there is no model 'toy-ovsegg': did you mean toy-ovseg or "),
        ("", r"there is no model ''"),
        ("org/name", "there is no folder org/name: write hf-hub:org/name for the model of this name on the hub"),
        ("./absent", "there is no folder ./absent: give one that save_pretrained has written"),
        ("hf-hub:name", "'name' is not a name on the Hugging Face hub: give ORGANISATION/NAME"),
        ("hf-hub:org/name@v1", "org/name is not on this machine, and HF_HUB_OFFLINE is set"),
        ("sam-l-clip-l", "facebook/sam-vit-large is not on this machine, and HF_HUB_OFFLINE is set"),
        (
            "scan-vitl",
            r"scan-vitl \(SCAN.pth, CC-BY-NC-4.0\) cannot be fetched from here: get it from the project page",
        ),
    ],
)
def test_wrong_names(source, message):
    with pytest.raises(OvsegError, match=message):
        Segmenter.from_pretrained(source, device="cpu")


def test_other_wrong_input(saved, tmp_path):
    file = saved[0] / "lseg_plus" / "model.safetensors"
    with pytest.raises(OvsegError, match=r"model.safetensors is a file: give the folder of save_pretrained"):
        Segmenter.from_pretrained(file)
    with pytest.raises(OvsegError, match="revision is 'v1', but 'photo' is not on the hub: leave it out"):
        Segmenter.from_pretrained("photo", revision="v1")
    segmenter = Segmenter.from_pretrained(file.parent, device="cpu")
    with pytest.raises(OvsegError, match="card has 'license': give a mapping with name, system, licence"):
        segmenter.save_pretrained(tmp_path / "x", card={"license": "MIT"})
    with pytest.raises(OvsegError, match="figures of the card is 'good': give a mapping"):
        segmenter.save_pretrained(tmp_path / "x", card={"figures": "good"})
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(OvsegError, match=r"has README.md of something else: give another folder"):
        segmenter.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    with pytest.raises(OvsegError, match="is a file: give a folder to save_pretrained"):
        segmenter.save_pretrained(file)
    segmenter.vocabulary = None
    with pytest.raises(OvsegError, match="this model has no words of its own: give some"):
        segmenter(make_scene(SEED).image)
