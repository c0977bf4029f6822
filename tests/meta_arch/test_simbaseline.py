"""SimBaseline beyond the recorded numbers: its fusion, its keys, and its configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from ovseg.checkpoint import load_model
from ovseg.config import load_cfg
from ovseg.errors import OvsegError
from ovseg.evaluation.dataset_settings import dataset_settings
from ovseg.naming import GeometricMean, Scores, SeenUnseenMean
from ovseg.toy import CLASS_NAMES, make_scene

CONFIGS = Path(__file__).parents[2] / "configs"
TOY = CONFIGS / "toy" / "simbaseline_toy.yaml"
CLIP = "MODEL.CLIP_ADAPTER."


@pytest.fixture
def scores():
    random = torch.Generator().manual_seed(0)
    own = torch.randn(4, 4, generator=random).softmax(-1)[:, :-1]
    return Scores(own), Scores(torch.randn(3, 3, generator=random).softmax(-1), torch.tensor([True, True, False, True]))


def test_weights_are_exchanged_for_seen_classes(scores):
    own, clip = scores[0].probabilities, scores[1].of_all(1.0)
    fused = SeenUnseenMean(0.8)(scores, seen=torch.tensor([True, False, False]))
    torch.testing.assert_close(fused[:, 0], own[:, 0] ** 0.8 * clip[:, 0] ** 0.2)
    torch.testing.assert_close(fused[:, 1:], own[:, 1:] ** 0.2 * clip[:, 1:] ** 0.8)
    unseen = SeenUnseenMean(0.8)(scores, seen=torch.zeros(3, dtype=torch.bool))
    torch.testing.assert_close(unseen, GeometricMean(0.8)(scores))
    assert torch.equal(SeenUnseenMean(0.8)(scores), GeometricMean(0.8)(scores))


def test_clip_alone(scores):
    """Weight 0 is no limit of small weights: seen classes, too, get CLIP's scores, masks without a pixel none."""
    for weight in (0.0, -0.5):
        fused = SeenUnseenMean(weight)(scores, seen=torch.ones(3, dtype=torch.bool))
        assert torch.equal(fused, scores[1].of_all(0.0))
    assert torch.equal(SeenUnseenMean(0.8)(scores[:1], seen=torch.ones(3, dtype=torch.bool)), scores[0].probabilities)


@pytest.fixture(scope="module")
def toy():
    return load_model(load_cfg(TOY, ["MODEL.DEVICE", "cpu", f"{CLIP}TEXT_CACHE_DIR", "none"]), complete=True).eval()


def test_toy_scene(toy):
    """On the weights of the toy OVSeg: most pixels are right; labels count as seen by the list of the request."""
    scene = make_scene(8)
    values = sorted(set(scene.labels.flatten().tolist()) - {255})
    words = [CLASS_NAMES[value] for value in values]
    request = {"image": torch.from_numpy(scene.image).permute(2, 0, 1), "class_names": words}
    with torch.no_grad():
        result = toy([request | {"outputs": ("sem_seg", "label_map")}])[0]
        seen = toy([request | {"seen": [True] * len(words)}])[0]["sem_seg"]
    truth = torch.from_numpy(scene.labels.astype("int64"))
    counted = truth != 255
    found = torch.tensor(values)[result["label_map"]]
    assert (found == truth)[counted].float().mean() > 0.7
    assert not torch.equal(seen, result["sem_seg"])
    with pytest.raises(OvsegError, match="seen has 1 values"):
        toy([request | {"seen": [True]}])


def test_settings_of_a_data_set(toy):
    with dataset_settings(toy, {"CLIP_ENSEMBLE_WEIGHT": 0.1, "MASK_THR": 0.6}):
        assert (toy.fuse.weight, toy.mask_namer.mask_threshold) == (0.1, 0.6)
    assert (toy.fuse.weight, toy.mask_namer.mask_threshold) == (0.7, 0.4)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        ([f"{CLIP}TEXT_TEMPLATES", "imagenet"], "TEXT_TEMPLATES = 'imagenet' has no effect.*PROMPT_LEARNER"),
        ([f"{CLIP}MASK_PROMPT_FWD", True], "MASK_PROMPT_FWD = True has no effect"),
        ([f"{CLIP}PROMPT_CHECKPOINT", "x.pth"], "PROMPT_CHECKPOINT is given, so set .*PROMPT_LEARNER to learnable"),
        ([f"{CLIP}PROMPT_LEARNER", "learnable", f"{CLIP}PROMPT_DIM", 7], "PROMPT_DIM is 7, but .* set the key to 48"),
        (["ORACLE", True], "ORACLE = True has no effect.*TEST.ORACLE"),
        (["PSEUDO", True], "PSEUDO = True has no effect"),
        (["DATASETS.SAMPLE_PER_CLASS", 3], "SAMPLE_PER_CLASS = 3 has no effect.*tune_text_prompts"),
        (["MODEL.SEM_SEG_HEAD.NAME", "ZeroPerPixelBaselineHead"], "SEM_SEG_HEAD.NAME is 'ZeroPerPixelBaselineHead'"),
        (["MODEL.META_ARCHITECTURE", "OVSeg", f"{CLIP}REGION_RESIZED", False], "REGION_RESIZED = False has no effect"),
        (["MODEL.META_ARCHITECTURE", "OVSeg", f"{CLIP}PROMPT_LEARNER", "vild"], "has no effect.*TEXT_TEMPLATES"),
        (["MODEL.META_ARCHITECTURE", "SimBaselinePerPixel"], "set it to ZeroPerPixelBaselineHead"),
        (
            [f"{CLIP}SEPERATE_ADAPTER", True, f"{CLIP}REGION_CLIP_ADAPTER.CLIP_MODEL_NAME", "ViT-Q"],
            "REGION_CLIP_ADAPTER.CLIP_MODEL_NAME = 'ViT-Q'",
        ),
    ],
)
def test_keys(opts, message):
    given = ["MODEL.DEVICE", "cpu", f"{CLIP}PROMPT_LEARNER", "imagenet", *opts]
    if "PROMPT_DIM" not in "".join(map(str, opts)):
        given = [f"{CLIP}PROMPT_DIM", 512, *given]
    with pytest.raises(OvsegError, match=message):
        build_model(load_cfg(TOY, given))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("simbaseline*.yaml")), ids=lambda path: path.stem)
def test_published_configurations_build(path):
    cfg = load_cfg(path, ["MODEL.DEVICE", "meta", "DATASETS.SAMPLE_PER_CLASS", -1])
    with torch.device("meta"):
        model = build_model(cfg)
    assert cfg.MODEL.CLIP_ADAPTER.MASK_THR == 0.5
    assert not model.seen_by_default


def test_separate_clip_moves_and_evaluates_with_the_model():
    cfg = load_cfg(
        TOY,
        [
            *("MODEL.DEVICE", "cpu", f"{CLIP}SEPERATE_ADAPTER", True, f"{CLIP}TEXT_CACHE_DIR", "none"),
            *(f"{CLIP}REGION_CLIP_ADAPTER.CLIP_MODEL_NAME", CONFIGS / "toy" / "clip.json"),
            *(f"{CLIP}REGION_CLIP_ADAPTER.CLIP_WEIGHTS", CONFIGS.parent / "weights" / "toy" / "clip.safetensors"),
        ],
    )
    model = load_model(cfg, complete=True)
    region = model.get_submodule("_region_clip_adapter")
    assert model.namers[1].clip_adapter is region is not model.clip_adapter
    model.half()
    assert region.clip_model.visual.proj.dtype == torch.float16
    model.train()
    assert not region.clip_model.training
    assert not region.non_object_embedding.requires_grad
