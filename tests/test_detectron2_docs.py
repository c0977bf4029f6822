"""docs/detectron2.md, run as it stands on two images; and what Detectron2 says to those who have not read it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from detectron2.config import get_cfg as detectron2_get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from torch import nn

from ovseg.config import load_cfg
from ovseg.errors import OvsegError
from ovseg.toy.registration import WORLD, render_split

REPO = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (REPO / "docs" / "detectron2.md").read_text(encoding="utf-8"), re.DOTALL)
TOY = str(REPO / "configs" / "toy" / "ovseg_toy.yaml")


@pytest.fixture
def two_images(tmp_path, monkeypatch):
    """The repository's files in a folder of our own, with toy data sets of two images."""
    for name in ("configs", "weights", "docs"):
        (tmp_path / name).symlink_to(REPO / name)
    monkeypatch.chdir(tmp_path)
    WORLD.register()
    for split in ("train", "val"):
        name = f"toy_sem_seg_{split}"
        records = render_split(split, tmp_path / "toy", 2)
        monkeypatch.setitem(DatasetCatalog.data, name, lambda records=records: records)


def test_the_page_runs(two_images, capsys):
    names: dict = {"__name__": "docs"}
    for block in BLOCKS:
        exec(block, names)  # our own page
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] in MetadataCatalog.get("toy_sem_seg_val").stuff_classes
    assert names["scores"].shape[0] == len(MetadataCatalog.get("toy_sem_seg_val").stuff_classes)
    assert float(names["results"]["sem_seg"]["mIoU"]) > 20
    assert Path("output/detectron2/model_final.pth").is_file()
    # Detectron2's own mapper gives a label map in place of instances
    model, sample = names["trainer"].model, dict(next(iter(names["loader"]))[0])
    sample["sem_seg"] = names["model"].clip_adapter.pixel_mean.new_full(sample["image"].shape[1:], 255).long()
    sample["sem_seg"][:40] = 3
    losses = model.train()([sample])
    assert all(loss.isfinite() for loss in losses.values())
    del sample["sem_seg"]
    with pytest.raises(OvsegError, match="neither instances nor sem_seg"):
        model([sample])


def test_keys_that_detectron2_does_not_know():
    cfg = detectron2_get_cfg()
    with pytest.raises(KeyError, match=r"is a key of ovseg.*ovseg\.config\.get_cfg\(\)"):
        cfg.merge_from_file(TOY)
    with pytest.raises(AssertionError, match=r"MODEL\.CLIP_ADAPTER\.MASK_THR is a key of ovseg"):
        cfg.merge_from_list(["MODEL.CLIP_ADAPTER.MASK_THR", 0.5])
    with pytest.raises(AssertionError, match=r"Non-existent key: MODEL\.NOTHING"):
        cfg.merge_from_list(["MODEL.NOTHING", 0.5])
    cfg.MODEL.META_ARCHITECTURE = "OVSeg"
    with pytest.raises(OvsegError, match=r"make it by ovseg\.config\.get_cfg\(\)"):
        build_model(cfg)


def test_clipping_that_detectron2_does_not_know():
    cfg = load_cfg(TOY)
    model = nn.Linear(1, 1)
    with pytest.raises(OvsegError, match=r"full_model is unknown to Detectron2.*ovseg\.engine\.solver"):
        build_optimizer(cfg, model)
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "other"
    with pytest.raises(ValueError, match="'other' is not a valid GradientClipType"):
        build_optimizer(cfg, model)
