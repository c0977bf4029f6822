"""``ovseg export``: the toy OVSeg in ONNX Runtime, without PyTorch, has the label maps of the segmenter."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ovseg import Segmenter
from ovseg.cli import app
from ovseg.errors import OvsegError
from ovseg.export import formats, writing
from ovseg.export.graphs import Axis, Graph, Input
from ovseg.export.plan import Plan
from ovseg.export.runtime import Runtime
from ovseg.io.shipped import shipped
from ovseg.toy.scene import make_scene
from ovseg.vocabulary import Vocabulary

pytest.importorskip("onnx"), pytest.importorskip("onnxscript"), pytest.importorskip("onnxruntime")
CONFIG = str(shipped("configs/toy/ovseg_toy.yaml"))
WORDS = "grass, sand, water; red circle, red disc; blue star; yellow heart"
BACKGROUND = "brick, stone"
SEED = 1_000_003


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "ovseg"
    line = ["export", "--model", CONFIG, "--words", WORDS, "--background", BACKGROUND, "--output", str(folder)]
    assert app.main(line) == 0
    return folder


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.from_config(CONFIG, device="cpu")


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.from_string(WORDS).with_background(BACKGROUND.split(", "))


def test_label_maps_are_those_of_the_segmenter(exported, segmenter, vocabulary):
    runtime = Runtime(exported, threads=1)
    for seed in (SEED, SEED + 1):
        image = make_scene(seed).image
        ours, theirs = runtime(image), segmenter(image, vocabulary).label_map
        assert (ours == theirs).mean() > 0.999 and len(np.unique(theirs)) > 1
    with pytest.raises(ValueError, match="has a graph of masks"):
        runtime(image, np.ones((1, 8, 8)))
    with pytest.raises(ValueError, match="give uint8"):
        runtime(image[:, :, 0])


def test_the_folder_runs_without_pytorch(exported, segmenter, vocabulary, tmp_path):
    image = make_scene(SEED).image
    Image.fromarray(image).save(tmp_path / "image.png")
    run = (
        "import sys, runpy; sys.modules.update(torch=None, ovseg=None, detectron2=None); "
        f"sys.argv = ['runtime.py', {str(exported)!r}, 'image.png', 'labels.png']; "
        f"runpy.run_path({str(exported / 'runtime.py')!r}, run_name='__main__')"
    )
    subprocess.run([sys.executable, "-c", run], check=True, cwd=tmp_path)
    labels = np.asarray(Image.open(tmp_path / "labels.png")).astype(int) - 1
    assert (labels == segmenter(image, vocabulary).label_map).mean() > 0.999


def test_what_the_folder_states(exported):
    about = json.loads((exported / "export.json").read_text())
    assert [graph["name"] for graph in about["graphs"]] == ["masks", "crops"]
    assert all(graph["max_abs_difference"] <= writing.TOLERANCE for graph in about["graphs"])
    assert about["graphs"][0]["inputs"] == {"image": {"shape": [1, 3, "32*h", "32*w"], "dtype": "float32"}}
    assert about["words"]["names"] == ["grass", "red circle", "blue star", "yellow heart"]
    assert about["recipe"]["fusion"]["weight"] == 0.3 and about["recipe"]["crops"]["prompts"]
    assert np.load(exported / about["text"]).shape == (len(about["words"]["texts"]) + 1, 128)
    assert not [path for path in exported.parent.iterdir() if path != exported]


def test_folders_of_others_are_refused(exported, segmenter, vocabulary, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(OvsegError, match="has files of something else"):
        writing.export(segmenter, vocabulary, tmp_path)
    with pytest.raises(OvsegError, match="has the export of ovseg_toy as onnx"):
        writing.export(segmenter, vocabulary, exported, format="torch-export")


def layer(name="layer", module=None):
    """A graph of one layer, which is quick to export."""
    module = torch.nn.Linear(64, 512) if module is None else module
    return Graph(name, module, {"crops": Input((Axis("n", (3, 1)), 64))}, ("features",), "a layer")


def test_nothing_is_kept_of_a_graph_that_differs(segmenter, vocabulary, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "TOLERANCE", -1.0)
    monkeypatch.setattr(writing, "plan_of", lambda model, size: Plan((layer(),), {}))
    with pytest.raises(OvsegError, match="the graph layer differs from the model by"):
        writing.export(segmenter, vocabulary, tmp_path / "out", format="torch-export", size=(64, 64))
    assert not [path for path in tmp_path.rglob("*") if path.name != ".lock" and path.is_file()]


def test_large_weights_get_a_file_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "LARGEST_FILE", 0)
    graph = layer()
    with torch.no_grad():
        checked = writing.check(graph, formats.write_onnx(graph, tmp_path, 18), 0)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert checked.difference <= writing.TOLERANCE
    assert sizes.pop("layer.onnx") < 64 * 512 < sum(sizes.values()) and all(name.startswith("layer.") for name in sizes)
    with torch.no_grad():
        writing.check(graph, formats.quantise(graph, tmp_path), 0, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["layer.onnx"]


class Unused(torch.nn.Linear):
    """Has weights and a buffer that it does not call."""

    def __init__(self):
        super().__init__(64, 512)
        self.other = torch.nn.Linear(512, 512)
        self.register_buffer("mask", torch.ones(512, 512), persistent=False)


def test_weights_that_are_not_used_are_left_out(tmp_path):
    graph = layer(module=Unused())
    with torch.no_grad():
        checked = writing.check(graph, formats.write_program(graph, tmp_path, 18), 0)
    assert checked.difference == 0
    assert torch.export.load(tmp_path / "layer.pt2").state_dict.keys() == {"weight", "bias"}
    assert (tmp_path / "layer.pt2").stat().st_size < 2 * 4 * 64 * 512


class Unit(torch.nn.Linear):
    def forward(self, crops):
        return torch.nn.functional.normalize(super().forward(crops), dim=-1)


def test_eight_bit_weights(tmp_path):
    graph = layer("crops", Unit(64, 512))
    with torch.no_grad():
        formats.write_onnx(graph, tmp_path, 18)
        before = (tmp_path / "crops.onnx").stat().st_size
        run = formats.quantise(graph, tmp_path)
        difference = writing.check(graph, run, 0, writing.INT8_TOLERANCE).difference
    assert 0 < difference < writing.INT8_TOLERANCE and [path.name for path in tmp_path.iterdir()] == ["crops.onnx"]
    assert (tmp_path / "crops.onnx").stat().st_size < before / 2


def test_missing_packages_are_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else find(name))
    with pytest.raises(OvsegError, match=r"needs onnx, onnxscript, onnxruntime: run `pip install 'ovseg\[export\]'`"):
        writing.check_packages("onnx")
    writing.check_packages("torch-export")
