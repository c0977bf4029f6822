"""The ``ovseg`` command: wrong arguments in one sentence each, what it imports, what it passes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovseg.cli import app, doctor, segment_inputs, train
from ovseg.cli.words import read_words
from ovseg.environment import packages
from ovseg.environment.requirements import MissingPackage, require_detectron2
from ovseg.errors import OvsegError
from ovseg.io.shipped import shipped

ROOT = Path(__file__).parents[2]
SEGMENT = "segment a.png --words cat"
WRONG = {
    "nope": "no such command 'nope'",
    "segment": "missing argument 'INPUT...'",
    "segment a.png": "--words or --label-set is needed, and none is given",
    f"{SEGMENT} --label-set coco": "and both are given",
    "segment a.png --words cat,,sofa": "has a blank word",
    "segment a.png --words missing.txt": "there is no vocabulary file missing.txt",
    "segment a.png --words twice.txt": "'cat' comes twice in twice.txt",
    "segment a.png --words cat,cat": "'cat' comes twice in --words",
    "segment a.png --label-set nothing": "there is no label set 'nothing'",
    f"{SEGMENT} --granularity 2": "'--granularity': it should be less than or equal to 1",
    f"{SEGMENT} --granularity x": "'--granularity': it should be a valid number",
    f"{SEGMENT} --batch-size 0": "'--batch-size': it should be greater than or equal to 1",
    f"{SEGMENT} --drawing bmp": "'bmp' is not one of",
    f"{SEGMENT} --set NOTHING": "'NOTHING' is not KEY=VALUE",
    f"{SEGMENT} --set =3": "'=3' is not KEY=VALUE",
    f"{SEGMENT} --background a,,b": "--background 'a,,b' has a blank word",
    f"{SEGMENT} --nothing": "no such option: --nothing",
    "segment a.png --words": "option '--words' requires an argument",
    "segment missing.png --words cat": "missing.png: there is no such file or folder",
    "segment empty --words cat": "the folder holds no images",
    "segment *.nothing --words cat": "no image matches this pattern",
    "segment https://a.b/c.png --words cat": "is a web address, and nothing is downloaded",
    f"{SEGMENT} --output a.png": "would overwrite the input a.png",
    f"{SEGMENT} --output twice.txt": "exists and is not a folder",
    "export": "--words or --label-set is needed, and none is given",
    "export --words cat --format tflite": "'tflite' is not one of 'onnx', 'torch-export'",
    "export --words cat --size 640": "--size '640' is not HxW",
    "export --words cat --size 8x640": "give height and width from 32 to 8192",
    "export --words cat --size 64x64 --dynamic": "--size and --dynamic exclude each other",
    "export --words cat --int8 --format torch-export": "--int8 is for --format onnx, not torch-export",
    "export --words cat --opset 7": "'--opset': it should be greater than or equal to 18",
    "export --words cat --output twice.txt": "twice.txt is a file",
    "export --words cat --output filled": "filled has files of something else",
    "export --words cat --model missing.yaml": "missing.yaml",
    "train": "--config-file is missing",
    "train --config-file missing.yaml": "there is no configuration file missing.yaml",
    "train --num-gpus x": "invalid int value: 'x'",
    "evaluate --nothing": "unrecognized arguments: --nothing",
    "check": "missing argument 'NAME|YAML'",
    "check missing.yaml": "there is no data set file missing.yaml",
    "check a.yaml --limit 0": "'--limit': it should be greater than or equal to 1",
    "install-detectron2 --source conda": "'conda' is not one of 'pypi', 'git'",
    "install-detectron2 --source git --sdist a": "--sdist is the source of --source pypi",
}


@pytest.fixture
def files(here):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(here / "a.png")
    (here / "twice.txt").write_text("cat\ncat\n")
    (here / "empty").mkdir()
    (here / "filled").mkdir()
    (here / "filled" / "a.txt").touch()
    return here


def run(*words: str) -> int:
    try:
        return app.main(list(words))
    except SystemExit as ended:
        return ended.code


@pytest.mark.parametrize("line", WRONG)
def test_wrong_arguments_are_one_sentence(files, capsys, line):
    assert run(*line.split(" ")) == 2
    error = capsys.readouterr().err
    assert WRONG[line] in error and error.startswith("error: ") and error.count("\n") == 1


def test_help_and_version(capsys):
    assert run("--version") == 0
    assert run() == 2 and run("--help") == 0
    assert "install-detectron2" in capsys.readouterr().out
    assert run("train", "--help") == 0 and "--num-gpus" in capsys.readouterr().out


def test_arguments_arrive(files, monkeypatch):
    given = {}
    monkeypatch.setattr(segment_inputs, "segment_inputs", lambda inputs, words, **rest: given.update(rest) or 0)
    assert run(*f"{SEGMENT} --granularity 0.5 --min-score 0.2 --set SEED=3 --model toy --device cpu".split()) == 0
    assert given["opts"] == ["TEST.BACKGROUND_THRESHOLD", 0.2, "MODEL.RENDERING.GRANULARITY", 0.5, "SEED", "3"]
    assert given["config_file"] == "toy" and given["device"] == "cpu" and not given["is_photo"]


def test_train_and_evaluate_share_the_parser_of_train_net(monkeypatch):
    given = []
    monkeypatch.setattr(train, "read_cfg", lambda args, opts: given.append((args, opts)))
    monkeypatch.setattr(train, "launch_all", lambda cfg, args: None)
    run(*["train", "--config-file", "toy", "--num-gpus", "0", "SOLVER.MAX_ITER", "3", "--resume"])
    run(*["evaluate", "MODEL.WEIGHTS=a.pth", "--config-file", "toy"])
    (first, opts), (second, others) = given
    assert (first.eval_only, first.resume, first.num_gpus, opts) == (False, True, 0, ["SOLVER.MAX_ITER", "3"])
    assert second.eval_only and others == ["MODEL.WEIGHTS=a.pth"]


def test_words(files):
    (files / "words.txt").write_text("cat: kitten\nsofa\n")
    assert read_words("words.txt").names == ("cat", "sofa")
    assert read_words("cat, kitten; sofa").synonyms == (("cat", "kitten"), ("sofa",))
    assert read_words("cat, sofa", background="wall, floor").background == ("wall", "floor")
    assert read_words("U.S. flag").names == ("U.S. flag",)
    assert len(read_words(None, "pascal_voc_20")) == 20
    with pytest.raises(OvsegError, match="is not UTF-8"):
        (files / "words.txt").write_bytes(b"\xff\xfe")
        read_words("words.txt")


# ---- doctor


@pytest.mark.parametrize(
    ("answers", "ended", "expected"),
    [
        ({"torch": "no module torch", "detectron2": "no module torch"}, "", "PyTorch: no module torch"),
        ({"detectron2": "no module detectron2"}, "", "run `ovseg install-detectron2`"),
        ({"detectron2": "does not import: libtorch.so"}, "", "`pip uninstall detectron2`, then"),
        ({"opencv": "does not import: libGL.so.1"}, "", "opencv-python-headless"),
        ({}, "ended with status -11", "after detectron2: reinstall what comes next"),
    ],
)
def test_doctor_names_problems_and_remedies(monkeypatch, capsys, answers, ended, expected):
    whole = {"torch": {"version": "2.9", "cuda": None, "devices": [], "threads": 2}}
    whole["detectron2"] = {"version": "0.6", "kind": "pure Python", "place": "/x"}
    monkeypatch.setattr(doctor, "probe", lambda: (whole | answers, ended))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert run("doctor") == 1
    assert expected in capsys.readouterr().out


def test_doctor_without_problems(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "probe", lambda: ({}, ""))
    monkeypatch.setattr(doctor, "installed_packages", lambda: packages.Packages({"numpy": "2.1"}))
    assert run("doctor") == 0
    output = capsys.readouterr().out
    assert "numpy 2.1" in output and output.endswith("no problems found\n")


def test_requirements_that_do_not_fit():
    found = packages.installed_packages(
        ["numpy<1", "no-such-package>=2", "pytest>=1", 'tabulate>=0; extra == "a"', 'no-such-thing; extra == "b"']
    )
    assert [problem.partition(":")[0].split(", and")[0].split(" is ")[0] for problem in found.problems[:2]] == [
        "numpy",
        "no-such-package",
    ]
    assert [(extra.name, bool(extra.lacks)) for extra in found.extras] == [("a", False), ("b", True)]


def test_known_conflicts(monkeypatch):
    versions = {"opencv-python": "4.10", "opencv-python-headless": "4.10", "transformers": "4.50.1"}
    monkeypatch.setattr(packages, "version_of", versions.get)
    both, old = packages.conflicts()
    assert "pip uninstall opencv-python`" in both and "Segment Anything needs 5" in old


# ---- without Detectron2, and installed


def test_import_without_detectron2(monkeypatch):
    code = """
import sys
sys.modules["detectron2"] = None  # as if it were not installed
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "detectron2" else find(name, package)
import ovseg
assert ovseg.Vocabulary.of(["cat"]).names == ("cat",) and ovseg.Segmentation and "Segmenter" in dir(ovseg)
try:
    ovseg.Segmenter
except ovseg.OvsegError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "Detectron2 is not installed, which every model needs: run `ovseg install-detectron2`\n", done


def test_a_broken_detectron2(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2.layers", None)
    with pytest.raises(MissingPackage, match=r"does not import .* `ovseg install-detectron2`"):
        require_detectron2()
    assert issubclass(MissingPackage, OvsegError) and issubclass(MissingPackage, ImportError)


def test_folders_that_come_with_the_package():
    assert (shipped("configs") / "photo.yaml").is_file() and (shipped("weights") / "toy").is_dir()
    manifest = (ROOT / "MANIFEST.in").read_text().split()
    assert {"configs", "weights/toy/*.safetensors", "ovseg"} <= set(manifest) and "weights" not in manifest
