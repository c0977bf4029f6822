"""tools/benchmark_growth.py on the tiny model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from ovseg.errors import OvsegError
from tests.scripts import REPO, load_script
from tests.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPO / "tools")  # as when it is run
        return load_script("tools/benchmark_growth.py")


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    config, weights = make_tiny_model(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    options = ["--input", str(folder / "image.png"), "--repeat", "1", "--opts", "MODEL.WEIGHTS", str(weights)]
    return ["--config", str(config), *options]


@pytest.mark.parametrize("axis", ["words", "masks", "side", "batch"])
def test_seconds_and_exponents_of_an_axis(tool, command, axis, capsys):
    values = ["40", "80"] if axis == "side" else ["2", "4"]
    tool.main([*command, "--axis", axis, "--values", *values])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    header, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert header == [axis, *values]
    seconds = {name: [float(cell.split()[0]) for cell in cells] for name, *cells in rows}
    assert ("words encoded" in seconds) == (axis == "words")
    assert {"backbone", "CLIP", "segmentation", "explained segmentation", "drawing"} <= {*seconds}
    stages = [values for name, values in seconds.items() if name in (*tool.STAGES, "rest")]
    for column, whole in enumerate(seconds["segmentation"]):
        assert 0 < sum(values[column] for values in stages) <= whole + 1e-3
    first, second = seconds["segmentation"]
    exponent = float({name: cells[-1] for name, *cells in rows}["segmentation"].split("(")[1][:-1])
    growth = {"words": 2, "masks": 2, "side": 4, "batch": 2}[axis]
    calls = second / first * (2 if axis == "batch" else 1)
    assert exponent == pytest.approx(math.log(calls, growth), abs=0.1)


def test_exponents(tool):
    assert tool.exponents([1, 1, 2, 32], [1, 3, 6, 24]) == pytest.approx([0, 1, 2])
    assert [math.isnan(slope) for slope in tool.exponents([0, 1, 2], [1, 2, 3])] == [True, False]


def test_words_of_all_runs_differ(tool):
    draws = [tool.words_of(5000, draw) for draw in range(3)]
    assert len({word for words in draws for word in words}) == 15_000
    with pytest.raises(OvsegError, match="lower --repeat or --values"):
        tool.words_of(5000, 5)


def test_masks_are_queries_of_random_weights(tool, command):
    request = {"image": torch.zeros(3, 64, 96), "outputs": ("soft_proposals",)}
    with torch.no_grad():
        (answer,) = tool.segmenter_of(tool.parse(command), 7).model([request])
    assert len(answer["soft_proposals"]) == 7
    assert 0.005 < (answer["soft_proposals"] > 0.5).float().mean() < 0.3  # ellipses
    with pytest.raises(OvsegError, match="photo has no network that proposes masks: leave the axis masks out"):
        tool.segmenter_of(tool.parse(["--config", "photo"]), 7)


@pytest.mark.parametrize("wrong", [["--values", "1"], ["--axis", "side", "--values", "3", "2"], ["--repeat", "0"]])
def test_what_cannot_work(tool, wrong):
    with pytest.raises(SystemExit):
        tool.parse(["--config", "photo", *wrong])
