"""The configurations of OpenSeg: sizes of the full models, settings of the paper, names of data sets."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

from ovseg.config import load_cfg
from ovseg.engine.solver import GradientClip, build_lr_scheduler, build_optimizer
from ovseg.errors import OvsegError
from ovseg.evaluation.runner import check_evaluation
from ovseg.proposals.region_queries import PositionTable

ROOT = Path(__file__).parents[2] / "configs"
CONFIGS = sorted(path.stem for path in ROOT.glob("openseg_*.yaml"))


def config(name):
    return load_cfg(ROOT / f"{name}.yaml", ["MODEL.DEVICE", "meta", "MODEL.WEIGHTS", ""])


@functools.cache
def built(name):
    """Return the full-size model of a configuration, without values."""
    with torch.device("meta"):
        return build_model(config(name))


def millions(module):
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.mark.parametrize("name", CONFIGS)
def test_data_sets(name):
    cfg = config(name)
    assert set(cfg.DATASETS.TRAIN + cfg.DATASETS.TEST) <= set(MetadataCatalog.list())
    assert "coco" in cfg.DATASETS.TRAIN[0] and len(cfg.DATASETS.TRAIN) == 1 + name.endswith("locnarr")


@pytest.mark.parametrize("name", ["openseg_R101", "openseg_effnetB7", "openseg_teacher_effb7"])
def test_they_build(name):
    model = built(name)
    proposer, (namer,) = model.proposer, model.namers
    assert (proposer.num_proposals, proposer.size_divisibility, proposer.logit_scale) == (128, 640, 640**-0.5)
    assert namer.clip_adapter.embed_dim == 768 and not hasattr(namer.clip_adapter.clip_model, "visual")
    assert not any(parameter.requires_grad for parameter in namer.clip_adapter.parameters())
    assert all(parameter.requires_grad for parameter in proposer.parameters()), "the whole backbone trains"
    norms = [part for part in proposer.trunk.backbone.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(norm, nn.SyncBatchNorm) for norm in norms), "from batch 32 on"


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("openseg_R101_coco", "openseg_R101"),
        ("openseg_R101_coco_locnarr", "openseg_R101"),
        ("openseg_R101_small_batch", "openseg_R101"),
        ("openseg_effb7_coco", "openseg_effnetB7"),
        ("openseg_effb7_coco_locnarr", "openseg_effnetB7"),
    ],
)
def test_the_others_have_these_models(name, model):
    assert config(name).MODEL == config(model).MODEL
    if name.endswith("coco"):
        assert config(name) == config(model)


@pytest.mark.parametrize(
    ("name", "backbone", "channels", "pyramid"),
    [
        ("openseg_R101", 42.5, (256, 512, 1024, 2048), 17.2),
        ("openseg_effnetB7", 62.1, (48, 80, 224, 640), 15.4),
    ],
)
def test_sizes(name, backbone, channels, pyramid):
    """Sections 2.2 to 2.6 of the specification; sizes of the pyramid by its layers' shapes, 640 channels and GN."""
    model = built(name)
    proposer, (namer,) = model.proposer, model.namers
    shapes = proposer.trunk.backbone.output_shape()
    assert tuple(shape.channels for shape in shapes.values()) == channels
    assert tuple(shape.stride for shape in shapes.values()) == (4, 8, 16, 32)
    assert millions(proposer.trunk.backbone) == pytest.approx(backbone, abs=0.05)
    assert millions(proposer.trunk.pyramid) == pytest.approx(pyramid, abs=0.05)
    assert millions(proposer.mask_branch) == pytest.approx(11.5, abs=0.05)
    assert namer.semantic_branch[-1].weight.shape == (768, 640, 1, 1)  # a layer that the mask branch lacks
    assert sum(millions(layer) for layer in list(namer.semantic_branch)[:-1]) == pytest.approx(11.5, abs=0.05)
    assert proposer.position.table.shape == (640, 160, 160)
    assert proposer.queries.shape == (128, 640)
    block = 4 * (640 + 1) * 640 + 2 * 640 * 2048 + 2048 + 640 + 2 * 2 * 640  # attention, feed-forward, two norms
    assert millions(proposer.blocks) == pytest.approx(3 * block / 1e6)


def test_sizes_of_positions():
    with torch.device("meta"):
        full, separable = (PositionTable(640, 160, form) for form in ("full", "separable"))
    assert millions(full) == pytest.approx(16.4, abs=0.05) and millions(separable) == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("name", ["openseg_R101_coco", "openseg_effb7_coco"])
@pytest.mark.parametrize("narratives", [False, True])
def test_recipe_of_the_paper(name, narratives):
    seven, cfg = "effb7" in name, config(f"{name}_locnarr" if narratives else name)
    solver, own = cfg.SOLVER, cfg.MODEL.OPENSEG
    assert (1024, 60000 if narratives else 30000) == (solver.IMS_PER_BATCH, solver.MAX_ITER)
    assert not narratives or tuple(cfg.DATASETS.TRAIN_WEIGHTS) == (0.5, 0.5)
    assert (own.SEG_LOSS_WEIGHT, own.GROUNDING_LOSS_WEIGHT, own.GROUNDING_SYNC) == (1.0, 1.0, False)
    assert (own.TAU_INIT, own.TAU_MIN, own.DICE_FORM, own.NORM) == (0.07, 0.01, "vnet", "GN")
    caption = cfg.INPUT.CAPTION
    assert (caption.KEEP_PROB, caption.POS, caption.FORM, caption.MAX_WORDS) == (0.75, "noun+adj", "word", 32)
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (640, 640)
    assert cfg.MODEL.PIXEL_MEAN[0] == (128 if seven else 123.675) and cfg.MODEL.PIXEL_STD[0] == (
        128 if seven else 58.395
    )
    assert cfg.MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME == "ViT-L-14-336"
    assert list(cfg.MODEL.CLIP_ADAPTER.PREDEFINED_PROMPT_TEMPLATES) == ["{}"]
    optimizer = build_optimizer(cfg, built("openseg_effnetB7" if seven else "openseg_R101"))
    assert isinstance(optimizer, torch.optim.SGD) and not optimizer._optimizer_step_pre_hooks
    for group in optimizer.param_groups:
        assert (group["lr"], group["momentum"], group["nesterov"]) == (0.08, 0.9, False)
        assert group["weight_decay"] in (1e-5, 0)
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays["log_scale"] == 0 and decays["queries"] == 1e-5
    rates = [rate(cfg, optimizer, step) for step in (0, 500, 1000, solver.MAX_ITER // 2, solver.MAX_ITER)]
    assert rates == pytest.approx([8e-5, 0.04, 0.08, 0.04, 0], rel=0.01, abs=1e-9)


def rate(cfg, optimizer, step):
    """Return the learning rate after some steps, without making them."""
    return cfg.SOLVER.BASE_LR * build_lr_scheduler(cfg, optimizer)._multiplier(step / cfg.SOLVER.MAX_ITER)


def test_recall_of_masks_that_are_not_there_is_refused_before_a_training():
    cfg = load_cfg(ROOT / "toy" / "openseg_toy.yaml", ["MODEL.OPENSEG.TEST_PROPOSALS", "none"])
    with pytest.raises(OvsegError, match=r"TEST\.PROPOSAL_RECALL is True, but this model has no masks"):
        check_evaluation(cfg)


def test_a_teacher_trains_masks_alone():
    cfg, model = config("openseg_teacher_effb7"), built("openseg_teacher_effb7")
    assert (cfg.MODEL.OPENSEG.GROUNDING_LOSS_WEIGHT, cfg.SOLVER.MAX_ITER) == (0, 30000)
    trained = {group["name"] for group in build_optimizer(cfg, model).param_groups}
    assert "queries" in trained and not any("semantic_branch" in name or "log_scale" in name for name in trained)


def test_small_batch():
    cfg = config("openseg_R101_small_batch")
    optimizer = build_optimizer(cfg, built("openseg_R101"))
    assert isinstance(optimizer, torch.optim.AdamW) and cfg.SOLVER.IMS_PER_BATCH == 64
    rates = {
        group["name"]: group["initial_lr"] if "initial_lr" in group else group["lr"] for group in optimizer.param_groups
    }
    assert rates["queries"] == 1e-4 and rates["backbone.stem.conv1.weight"] == pytest.approx(1e-5)
    (clip,) = optimizer._optimizer_step_pre_hooks.values()
    assert isinstance(clip, GradientClip) and (clip.clip_type, clip.bound) == ("full_model", 5.0)
    text = (ROOT / "openseg_R101_small_batch.yaml").read_text(encoding="utf-8")
    assert "not the\n# paper's recipe" in text
