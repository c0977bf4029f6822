"""tools/benchmark.py on the tiny model, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ovseg.engine.timing import STAGES
from ovseg.errors import OvsegError
from tests.scripts import load_script
from tests.tiny_model import make_tiny_model

tool = load_script("tools/benchmark.py")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return str(make_tiny_model(tmp_path_factory.mktemp("tiny"))[0])


def test_stages_of_every_batch_as_table_and_json(config, tmp_path, capsys):
    earlier = tmp_path / "earlier.json"
    once = ["--precision", "fp32", "--device", "cpu", "--warm-up", "0", "--repeat", "1", "--processor-time"]
    tool.main(["--config", config, *once, "--json", str(earlier)], run=tool.measure)
    (first,) = json.loads(earlier.read_text())
    opts = ["--opts", "MODEL.CLIP_ADAPTER.MASK_THR", "0.999999"]  # no mask has a pixel: no crops
    argv = ["--config", config, "--compare", config, str(earlier), *once, "--batch", "1", "2"]
    tool.main([*argv, "--json", str(tmp_path / "now.json"), *opts], run=tool.measure)
    results = json.loads((tmp_path / "now.json").read_text())
    assert [(figures["config"], figures["batch"]) for figures in results] == [("tiny", 1)] * 2 + [("tiny", 2)] * 2
    assert set(first["seconds"]) == {*STAGES, "rest"} - {"whole image in CLIP", "calibration"}  # of SCAN
    assert {"backbone", "pixel decoder", "decoder", "masks", "crops", "CLIP", "render"} <= {
        stage for stage, seconds in first["seconds"].items() if seconds > 0
    }
    assert results[0]["seconds"]["CLIP"] < first["seconds"]["CLIP"]
    for figures in (first, *results):
        assert figures["images/s"] == pytest.approx(figures["batch"] / sum(figures["seconds"].values()))
        assert figures["input"] == [64, 96] and figures["peak memory, GB"] > 0.1 and figures["text"] > 0
    shown = capsys.readouterr().out
    assert "tiny (earlier)" in shown and "batch of 2" in shown and " x " in shown


def test_medians_of_the_runs_after_warm_up(config, monkeypatch):
    seconds = iter([9.0, 1.0, 5.0, 2.0])  # the first warms up

    monkeypatch.setattr(tool, "time_stages", lambda model, clock: _Run(next(seconds)))
    args = tool.parse(["--config", config, "--device", "cpu", "--repeat", "3"])
    figures = tool.measure(args, config, "cpu", "fp32", 2)
    assert figures["seconds"] == {"backbone": 2.0}
    assert figures["images/s"] == 1.0


class _Run:
    """Stands in for a timed run."""

    def __init__(self, seconds: float):
        self.seconds = {"backbone": seconds}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def test_weights_of_ones_own_keep_their_masks(config, tmp_path):
    weights = config.replace("tiny.yaml", "tiny.safetensors")
    args = tool.parse(["--config", config, "--device", "cpu", "--opts", "MODEL.WEIGHTS", weights])
    trained, requests = tool.build(args, config, "cpu", "fp32", 2)
    assert "predict" not in vars(trained.proposer)
    assert len(requests) == 2 and requests[0]["image"].shape == (3, 64, 96)
    random, _ = tool.build(tool.parse(["--config", config, "--device", "cpu"]), config, "cpu", "fp32", 1)
    with torch.no_grad():
        masks, masks_of_trained = (
            model.proposer(model.views(requests[:1]))[0].probabilities for model in (random, trained)
        )
        assert not torch.allclose(masks_of_trained, masks)
    assert (masks > 0.5).flatten(1).float().mean(1).sub(0.1).abs().max() < 0.25  # areas of ellipses
    assert (masks.flatten(1).amax(1) > 0.9).all()


def test_ellipses_have_the_areas_that_were_drawn():
    masks = tool.ellipses(100, 160, 240) > 0
    areas = masks.flatten(1).float().mean(1)
    assert tool.ELLIPSE_AREAS[0] * 0.3 < areas.min() and areas.max() < tool.ELLIPSE_AREAS[1] * 1.05
    assert areas.max() > 10 * areas.min()
    assert torch.equal(tool.ellipses(100, 160, 240) > 0, masks)


def test_what_cannot_work(config, tmp_path):
    wrong = tmp_path / "wrong.json"
    for content in ("{", "[1]", "3", '{"config": 1}'):
        wrong.write_text(content)
        with pytest.raises(OvsegError, match=r"wrong\.json is not a file of --json"):
            tool.main(["--config", config, "--compare", str(wrong)], run=None)
    with pytest.raises(OvsegError, match=r"cannot read .*gone\.json"):
        tool.main(["--config", config, "--compare", str(tmp_path / "gone.json")], run=None)
    with pytest.raises(SystemExit):
        tool.main(["--config", config, "--batch", "0"], run=None)


def test_a_model_without_masks(tmp_path):
    argv = ["--config", "configs/toy/dense_clip_toy.yaml", "--device", "cpu", "--precision", "fp32", "--warm-up", "0"]
    tool.main([*argv, "--repeat", "1", "--json", str(tmp_path / "dense.json")], run=tool.measure)
    (figures,) = json.loads((tmp_path / "dense.json").read_text())
    assert list(figures["seconds"]) == ["rest"] and figures["text"] > 0


def test_commits_are_measured_by_their_own_benchmark(config, monkeypatch, capsys):
    calls = []

    def run(command, **options):
        calls.append(command)
        if "--json" in command:  # the benchmark of the commit
            figures = {**own, "config": "tiny"}
            Path(command[command.index("--json") + 1]).write_text(json.dumps([figures]))
        if "worktree" in command and "add" in command:
            Path(command[-2]).mkdir(parents=True)
        return SimpleNamespace(returncode=0, stderr="")

    once = ["--precision", "fp32", "--device", "cpu", "--warm-up", "0", "--repeat", "1"]
    own = tool.measure(tool.parse(["--config", config, *once]), config, "cpu", "fp32", 1)
    monkeypatch.setattr(tool.subprocess, "run", run)
    tool.main(["--config", config, "--compare", "abc123", *once], run=lambda *_: own)
    assert "tiny (abc123)" in " ".join(capsys.readouterr().out.split()) and calls[-1][3:5] == ["worktree", "remove"]
    (benchmark,) = (command for command in calls if "--json" in command)
    assert benchmark[1].endswith("tools/benchmark.py") and benchmark[benchmark.index("--config") + 1] == config


def test_the_benchmark_of_a_commit_that_fails(config, tmp_path):
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "benchmark.py").write_text("import sys; sys.exit('unrecognized arguments')")
    args = tool.parse(["--config", config, "--device", "cpu"])
    with pytest.raises(OvsegError, match=r"benchmark of abc123 failed \(unrecognized arguments\): leave out options"):
        tool.of_commit(args, tmp_path, "abc123", "cpu", "fp32", 1)
