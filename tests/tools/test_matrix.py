"""tools/matrix.py on a few toy scenes: weights of a pair, impossible pairs, resume, table, heat map, bad names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from safetensors.torch import load_file

from ovseg.checkpoint import load_model, save_safetensors
from ovseg.config import load_cfg
from ovseg.engine import matrix
from ovseg.errors import OvsegError
from ovseg.evaluation.cells import Cell, as_markdown, draw_heat_map
from ovseg.evaluation.runner import evaluate_all
from ovseg.toy.classes import SPLITS
from tests.scripts import load_script

ROOT = Path(__file__).parents[2]
SYSTEM = str(ROOT / "configs" / "toy" / "ovseg_toy.yaml")
tool = load_script("tools/matrix.py")
KEYS = ["DATALOADER.NUM_WORKERS", "0", "MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR"]  # and a folder, see below
COMMON = ("--images", "2", "--num-gpus", "0")


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    """Keep text embeddings from one test to the next; a validation set of four scenes."""
    KEYS.append(str(tmp_path_factory.mktemp("texts")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SPLITS, "val", (SPLITS["val"][0], 4))
        yield
    KEYS.pop()


def run(output, *arguments):
    tool.main([*arguments, "--output", str(output), *COMMON, *KEYS])
    content = json.loads((output / "matrix.json").read_text())
    return {(cell["proposer"], cell["namer"]): cell for cell in content["cells"]}


def test_pairs_and_systems(tmp_path, capsys, monkeypatch):
    arguments = ("--proposers", "MaskFormer", "GroundTruth", "--namers", "own", "crops", "--systems", SYSTEM)
    cells = run(tmp_path / "out", *arguments)
    assert list(cells) == [
        *[(proposer, namer) for proposer in ("MaskFormer", "GroundTruth") for namer in ("own", "crops")],
        ("ovseg_toy", ""),
    ]
    assert "no class embeddings" in cells["GroundTruth", "own"]["reason"]
    for pair, cell in cells.items():
        if pair != ("GroundTruth", "own"):
            assert 0 < cell["scores"]["mIoU"] < cell["scores"]["Grounding-mIoU"] <= 100
            assert {"mIoU-base", "mIoU-novel", "recall@0.5"} <= cell["scores"].keys() and cell["seconds"] > 0
    assert cells["GroundTruth", "crops"]["scores"]["recall@0.5"] == 100
    assert cells["MaskFormer", "own"]["clip_images"] == 0 < cells["GroundTruth", "crops"]["clip_images"] < 10
    assert cells["MaskFormer", "crops"]["clip_images"] == cells["ovseg_toy", ""]["clip_images"] <= 20
    table = (tmp_path / "out" / "matrix.md").read_text()
    assert "| GroundTruth | own | - [1] | - " in table and "[1] the masks of GroundTruth have no class" in table
    assert "| ovseg_toy | (system) |" in table and table in capsys.readouterr().out
    assert np.asarray(Image.open(tmp_path / "out" / "matrix.png")).std() > 10

    monkeypatch.setattr(matrix, "evaluate_all", None)  # finished pairs are read
    assert run(tmp_path / "out", *arguments) == cells
    with pytest.raises(TypeError):
        run(tmp_path / "out", *arguments, "MODEL.CLIP_ADAPTER.MASK_THR", "0.5")  # other settings: again


def test_the_masks_of_openseg_with_other_namers(tmp_path):
    """The baselines of its paper "with proposals", and the system as a row."""
    torch.manual_seed(0)
    file, weights = ROOT / "configs" / "toy" / "openseg_toy.yaml", tmp_path / "openseg.safetensors"
    state = build_model(load_cfg(file, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", *KEYS])).state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.startswith("clip_adapter.clip_")}
    save_safetensors(state, weights)
    config = tmp_path / "openseg_toy.yaml"
    config.write_text(f"_BASE_: {file}\nMODEL:\n  WEIGHTS: {weights}\n")
    arguments = ("--proposers", "RegionQueries", "--namers", "own", "crops", "pooled", "--systems", str(config))
    cells = run(tmp_path / "out", *arguments, "--parts", f"RegionQueries={config}")
    assert "no class embeddings" in cells["RegionQueries", "own"]["reason"]
    pairs = [("RegionQueries", "crops"), ("RegionQueries", "pooled"), ("openseg_toy", "")]
    recalls = [[cells[pair]["scores"][f"recall@{t}"] for t in (0.5, 0.7, 0.9)] for pair in pairs]
    assert recalls[0] == recalls[1] == recalls[2] and all(pair in cells for pair in pairs)
    images = [cells[pair]["clip_images"] for pair in pairs]
    assert images[0] > images[1] == 1 and images[2] == 0
    assert all(cells[pair]["scores"]["Grounding-mIoU"] >= 0 for pair in pairs)


def test_an_interrupted_matrix_continues(tmp_path, monkeypatch):
    arguments = ("--proposers", "GroundTruth", "--namers", "crops", "--systems", SYSTEM)
    whole = run(tmp_path / "whole", *arguments)

    class Tired:
        def __init__(self, left):
            self.left = left

        def __call__(self, cfg, model, **options):
            def hook(*_):
                self.left -= 1
                if self.left < 0:
                    raise KeyboardInterrupt

            model.register_forward_pre_hook(hook)
            return evaluate_all(cfg, model, **options)

    monkeypatch.setattr(matrix, "evaluate_all", Tired(6))  # two calls for each image: in the middle of the second job
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", *arguments)
    monkeypatch.setattr(matrix, "evaluate_all", Tired(2))
    again = run(tmp_path / "cut", *arguments)
    for pair, cell in whole.items():
        assert {**again[pair], "seconds": 0} == {**cell, "seconds": 0}


def test_the_weights_of_a_pair_are_those_of_its_parts(tmp_path):
    settings = matrix.Settings(["toy_sem_seg_val"], tmp_path, 1, 0, [*KEYS, "MODEL.DEVICE", "cpu"])
    parts = tool.PARTS
    names = {
        "proposers": {name: parts[name] for name in ("Mask2Former", "BoundaryTree")},
        "namers": {name: parts[name] for name in ("crops", "crops+prompts", "context")},
    }
    ovseg, scan = (load_file(ROOT / "weights" / "toy" / f"{name}.safetensors") for name in ("ovseg", "scan"))
    plain = load_file(ROOT / "weights" / "toy" / "clip.safetensors")
    block, text = "visual.transformer.resblocks.0.mlp.c_fc.weight", "positional_embedding"
    clip = "clip_adapter.clip_model."
    expected = {
        "crops": plain[block],
        "crops+prompts": ovseg[f"{clip}{block}"],
        "context": scan[f"{clip}{block}"],
    }
    assert not torch.equal(expected["crops"], expected["context"])
    for job in matrix.jobs_of(names["proposers"], names["namers"], [], settings):
        job.cfg.MODEL.WEIGHTS = matrix._weights(job, tmp_path, matrix._names(job))
        state = load_model(job.cfg, complete=True).state_dict()
        assert torch.equal(state[f"{clip}{block}"], expected[job.namer].float()), job.name
        assert torch.equal(state[f"{clip}{text}"], plain[text].float())
        assert (job.namer == "crops+prompts") == job.cfg.MODEL.CLIP_ADAPTER.MASK_PROMPT_FWD
        for name, tensor in scan.items() if job.proposer == "Mask2Former" else ():
            if name.startswith(("backbone.", "sem_seg_head.p")):
                assert torch.equal(state[name], tensor.float())


def test_a_pair_is_its_system_without_the_other_namer(tmp_path):
    """MaskFormer x crops+prompts equals OVSeg that trusts CLIP alone."""
    counts = tmp_path / "pairs" / "MaskFormer-crops+prompts" / matrix.COUNT_FILE
    counts.parent.mkdir(parents=True)
    counts.write_text('["toy_sem_seg_val", ["other.png"], 999]\n')  # of a run with other settings
    cells = run(tmp_path, "--proposers", "MaskFormer", "--namers", "crops+prompts")
    assert cells["MaskFormer", "crops+prompts"]["clip_images"] <= 20
    opts = ["MODEL.CLIP_ADAPTER.CLIP_ENSEMBLE_WEIGHT", -1, "OUTPUT_DIR", str(tmp_path / "system"), *KEYS]
    cfg = load_cfg(SYSTEM, [*opts, "MODEL.DEVICE", "cpu", "TEST.GROUNDING_MIOU", True])
    results = evaluate_all(cfg, load_model(cfg, complete=True), limit=2)["toy_sem_seg_val"]
    scores = cells["MaskFormer", "crops+prompts"]["scores"]
    assert scores["mIoU"] == results["sem_seg"]["mIoU"]
    assert scores["Grounding-mIoU-novel"] == results["grounding"]["Grounding-mIoU-novel"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--proposers", "Maskformer"),
            "--proposers 'Maskformer' is unknown: did you mean MaskFormer\\? choose",
        ),
        (("--namers", "crops", "pooling"), "--namers 'pooling' is unknown: did you mean pooled\\? .* context, pooled"),
        (("--namers", "own", "own"), "--namers has own twice"),
        (("--parts", "FastSAM=a.yaml"), "--parts 'FastSAM' is unknown: did you mean SAM"),
        (("--parts", "own"), "--parts own names no file: give own=CONFIG.yaml"),
        (("--namers", "--systems"), "nothing to evaluate"),
        (("--images", "0"), "--images is 0: give at least 1"),
        (("--data", "toy_sem_seg_vall"), "'toy_sem_seg_vall' is not registered: did you mean toy_sem_seg_val"),
        (("--systems", "nowhere.yaml"), "nowhere.yaml"),
        (("--systems", SYSTEM, SYSTEM), "two rows of the matrix are called ovseg_toy"),
        (
            ("--systems", "configs/toy/zegformer_toy.yaml", "--proposers", "--namers"),
            "zegformer_toy: MODEL.WEIGHTS is empty",
        ),
        (("MODEL.WEIGHTS", "gone.pth"), "there is no weight file gone.pth"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path):
    with pytest.raises(OvsegError, match=message):
        tool.main([*arguments, "--output", str(tmp_path), "--num-gpus", "0"])


def test_the_table_and_the_image_of_several_data_sets(tmp_path):
    cells = [
        Cell("A", "x", "one", {"mIoU": 10.0, "Grounding-mIoU": 20.0, "recall@0.5": 30.0}, 0.5, 3.0),
        Cell("A", "y", "one", reason="cannot be"),
        Cell("A", "x", "two", {"mIoU": 11.0, "Grounding-mIoU": float("nan"), "mIoU-base": 12.0}, 0.25),
        Cell("S", "", "two", {"mIoU": 13.0}, 0.25),
    ]
    rows = as_markdown(cells, "title", ["note"]).splitlines()
    assert (
        rows[0] == "# title"
        and "| data | proposer | namer | mIoU | base | Grounding mIoU | base | recall@0.5 | recall@0.7 | recall@0.9 |"
        in rows[4]
    )
    assert rows[6] == "| one | A | x | 10.0 | - | 20.0 | - | 30.0 | - | - | 0.500 | 3.0 |"
    assert rows[7].startswith("| one | A | y | - [1] | -") and rows[-1] == "[1] cannot be"
    assert len({row.count("|") for row in rows[4:10]}) == 1
    draw_heat_map(cells, tmp_path / "a.png", "title")
    assert Image.open(tmp_path / "a.png").size[0] > 300
