"""ZegFormer beyond the recorded numbers: words, splits, configurations, checkpoints and errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from ovseg.checkpoint import load_model, load_weights, save_safetensors
from ovseg.config import load_cfg
from ovseg.errors import OvsegError
from ovseg.meta_arch import ZegFormer
from ovseg.naming import AlignedCrops, Scores, SeenAveragedMean
from ovseg.naming.aligned_crops import inclusive_boxes
from ovseg.proposals.views import Masks, Views
from tests.parity.fixture import DATA, ZegFormerParity

ROOT = Path(__file__).parents[2]
CONFIGS = [*ROOT.glob("configs/zegformer*.yaml"), ROOT / "configs/toy/zegformer_toy.yaml"]
CROPS = "MODEL.SEM_SEG_HEAD.CLIP_CLASSIFICATION"
DEFAULT_CLIP = ("MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME", "ViT-B/16")
FUSE = "MODEL.MASK_FORMER.ENSEMBLING"


@pytest.fixture(scope="module")
def tiny():
    return ZegFormerParity(DATA / "zegformer_tiny")


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.model()


@torch.no_grad()
def scores(model, request, **changes):
    return model([request | changes])[0]["sem_seg"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_configurations_build(config):
    cfg = load_cfg(config, ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    assert isinstance(model.namers[-1], AlignedCrops) == cfg.MODEL.SEM_SEG_HEAD.CLIP_CLASSIFICATION
    assert model.seen_bias == max(cfg.MODEL.MASK_FORMER.GZERO_CALIBRATE, 0)
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            assert name in MetadataCatalog.list() or Path(name).is_file() or name.startswith("toy_")


def test_the_name_in_the_originals_configurations(tiny):
    cfg = tiny.config()
    cfg.MODEL.META_ARCHITECTURE = "MaskFormer"
    assert len(build_model(cfg).namers) == 2


def test_words_of_the_configuration(tiny, model):
    """They are those of the JSON file, next to the configuration; without a split all count as seen."""
    request = tiny.request(0, split=False)
    names = request.pop("class_names")
    for seen in ([True] * 5, np.ones(5, dtype=bool), torch.ones(5, dtype=torch.bool)):
        assert torch.equal(scores(model, request), scores(model, request, class_names=names, seen=seen))
    elsewhere = tiny.model("MODEL.SEM_SEG_HEAD.TEST_CLASS_JSON", "nowhere.json")
    assert torch.equal(scores(elsewhere, request, class_names=names), scores(model, request))
    with pytest.raises(OvsegError, match=r"nowhere.json cannot be read .*give \"class_names\" in each request"):
        scores(elsewhere, request)


@pytest.mark.parametrize("content", ["{", "{}", "[]", "[1]", '["a", " "]'])
def test_bad_word_files(tiny, content, tmp_path):
    (tmp_path / "words.json").write_text(content)
    model = tiny.model("MODEL.SEM_SEG_HEAD.TEST_CLASS_JSON", tmp_path / "words.json")
    request = tiny.request(0, split=False)
    del request["class_names"]
    with pytest.raises(OvsegError, match=r"words\.json is"):
        scores(model, request)


def test_seen_words_of_a_data_set(tiny, model):
    """In evaluations, too, where requests have the words of the data set and its name."""
    request = tiny.request(0)
    flags = request.pop("seen")
    MetadataCatalog.get("zegformer_split").set(stuff_classes=tiny.names("test"), val_extra_classes=tiny.names("unseen"))
    named = request | {"meta": {"dataset_name": "zegformer_split"}}
    expected = scores(model, request, seen=flags)
    assert torch.equal(scores(model, named), expected)
    del named["class_names"]
    assert torch.equal(scores(model, named), expected)
    assert not torch.equal(scores(model, named, class_names=["sky", "grass"]), expected[1:3])
    assert model.seen_of({"meta": named["meta"], "class_names": ["grass"]}, model.words_of({"class_names": ["grass"]}))


def test_repeated_names_have_the_same_scores(tiny, model):
    """The original finds indices by name, so that only the first of two equal names is calibrated and fused."""
    request = tiny.request(0) | {"class_names": ["sky", "grass", "sky"], "seen": [True, False, True]}
    result = scores(model, request)
    torch.testing.assert_close(result[0], result[2])


@pytest.mark.parametrize(
    ("seen", "message"), [([True], "seen has 1 values for 5 words"), ([2] * 5, "give True or False for each word")]
)
def test_bad_splits(tiny, model, seen, message):
    with pytest.raises(OvsegError, match=message):
        scores(model, tiny.request(0), seen=seen)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("MODEL.MASK_FORMER.ENSEMBLING_ALL_CLS", True), "ENSEMBLING and ENSEMBLING_ALL_CLS are both True"),
        (("MODEL.SEEN_BIAS", 0.2), "GZERO_CALIBRATE and MODEL.SEEN_BIAS are the same number"),
        (("MODEL.SEM_SEG_HEAD.NAME", "OpenVocabMaskFormerHead"), "ZegFormer has its own: set it to ZegFormerHead"),
        (("MODEL.SEM_SEG_HEAD.WORDVEC", True), "WORDVEC = True has no effect .*TEXT_ENCODER to table"),
        (("MODEL.SEM_SEG_HEAD.TEMPERATURE", 0), "TEMPERATURE is 0.*: give a number above 0"),
        (("MODEL.PROMPT_ENSEMBLE_TYPE", "vild"), "PROMPT_ENSEMBLE_TYPE is 'vild'; choose one of single"),
        (("MODEL.CLIP_CLS_STYLE", "maskcrop"), "CLIP_CLS_STYLE is 'maskcrop'; choose one of cropmask, mask"),
        (("MODEL.CLIP_PIXEL_STD", [1, 0, 1]), "CLIP_PIXEL_STD is .*: give a number above 0"),
        (("MODEL.CLIP_ADAPTER.MASK_FILL", "zero"), "MASK_FILL = 'zero' has no effect .*set MODEL.CLIP_CLS_STYLE"),
        (("MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME", "ViT-L/14"), "ZegFormer reads MODEL.SEM_SEG_HEAD.CLIP_PRETRAINED"),
        (
            (*DEFAULT_CLIP, "MODEL.SEM_SEG_HEAD.CLIP_PRETRAINED", "ViT-C"),
            "SEM_SEG_HEAD.CLIP_PRETRAINED = 'ViT-C' is not a CLIP",
        ),
        (("MODEL.SEM_SEG_HEAD.TEST_CLASS_JSON", "words.txt"), "TEST_CLASS_JSON is 'words.txt': give a JSON file"),
        (("MODEL.SEM_SEG_HEAD.EMBEDDING_DIM", 600), "EMBEDDING_DIM is 600, but CLIP .* has embeddings of 512"),
        (("MODEL.META_ARCHITECTURE", "OVSeg"), "has no effect in this system: .*only ZegFormer reads it"),
    ],
)
def test_bad_configurations(tiny, opts, message):
    with pytest.raises(OvsegError, match=message):
        tiny.model(*opts)


def test_checkpoint_of_a_training(tiny, model, tmp_path):
    """It has no CLIP, and a criterion of other length; CLIP then comes from its own file."""
    training = tiny.model(CROPS, False, FUSE, False, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3)
    state = training.state_dict()
    assert not any("clip" in name for name in state)
    state["criterion.empty_weight"] = torch.ones(4)
    save_safetensors(state, tmp_path / "training.safetensors")
    clip = {name.partition("clip_model.")[2]: x for name, x in tiny.weights.items() if "clip_model." in name}
    save_safetensors(clip, tmp_path / "clip.safetensors")
    opts = (
        "MODEL.WEIGHTS",
        tmp_path / "training.safetensors",
        "MODEL.CLIP_ADAPTER.CLIP_WEIGHTS",
        tmp_path / "clip.safetensors",
    )
    again = load_model(tiny.config(*opts), complete=True).eval()
    assert torch.equal(scores(again, tiny.request(0)), scores(model, tiny.request(0)))


def test_saved_and_loaded(tiny, model, tmp_path):
    save_safetensors(model.state_dict(), tmp_path / "model.safetensors")
    again = build_model(tiny.config()).eval()
    assert not load_weights(again, tmp_path / "model.safetensors").unexpected
    assert torch.equal(scores(again, tiny.request(0)), scores(model, tiny.request(0)))


def test_training_with_crops_leaves_clip_alone(tiny):
    """The original's copy of CLIP would be trainable, without gradient; here it is frozen."""
    model = tiny.model("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5).train()
    assert not model.clip_adapter.clip_model.training
    labels = torch.zeros(58, 90, dtype=torch.int64)
    sum(model([tiny.request(0) | {"sem_seg": labels}]).values()).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in model.clip_adapter.parameters())


def test_half_precision(tiny, model):
    """The original multiplies by CLIP's text in half precision, which fails on a CPU."""
    half = tiny.model("MODEL.CLIP_ADAPTER.PRECISION", "bf16")
    torch.testing.assert_close(scores(half, tiny.request(0)), scores(model, tiny.request(0)), rtol=0.05, atol=0.05)


def test_inclusive_boxes():
    masks = torch.zeros(4, 6, 8, dtype=torch.bool)
    masks[0, 1:4, 2:7] = True
    masks[1, 2, 1:5] = True  # a row
    masks[2, 5, 7] = True
    assert inclusive_boxes(masks).tolist() == [[2, 1, 6, 3], [0, 0, 8, 6], [0, 0, 8, 6], [0, 0, 8, 6]]


@pytest.mark.parametrize("style", ["cropmask", "mask", "crop"])
def test_masks_from_elsewhere(model, style):
    """They have no logits; masks without a pixel are classified by the whole canvas."""
    namer = AlignedCrops(model.clip_adapter, style=style, pixel_mean=[0, 0, 0], pixel_std=[1, 1, 1])
    views = Views([{}], [torch.full((3, 30, 40), 2.0)], 32)
    assert views.canvas == (32, 64)
    masks = torch.zeros(2, 30, 40)
    masks[0, 5:25, 5:35] = 0.9
    logits = namer.canvas_logits(Masks(masks), views.canvas)
    assert logits.shape == (2, 32, 64)
    ((full, empty),) = (few for (few,) in namer.inputs(views, 0, logits))
    share = {"cropmask": 1.0, "mask": 20 * 30 / (32 * 64), "crop": 1.0}[style]
    assert full.mean() / 2 == pytest.approx(share, abs=0.02)
    assert empty.mean() / 2 == pytest.approx(30 * 40 / (32 * 64) if style == "crop" else 0, abs=0.02)
    (of_image,) = namer(views, [Masks(masks)], [model.words_of({"class_names": ["sky", "person"]})])
    torch.testing.assert_close(of_image.probabilities.sum(1), torch.ones(2))  # no embeddings, hence no "no object"


def test_fusion():
    own, clip = torch.tensor([[0.5, 0.2, 0.1]]), torch.tensor([[0.3, 0.1, 0.4]])
    seen = torch.tensor([True, True, False])
    fused = SeenAveragedMean()([Scores(own), Scores(clip)], None, seen)
    third = 1 / 3
    expected = [[0.5 ** (2 / 3) * 0.2**third, 0.2 ** (2 / 3) * 0.2**third, 0.1**third * 0.4 ** (2 / 3)]]
    torch.testing.assert_close(fused, torch.tensor(expected))
    for fuse, flags in ((SeenAveragedMean(all_classes=True), seen), (SeenAveragedMean(), ~seen & seen)):
        torch.testing.assert_close(fuse([Scores(own), Scores(clip)], None, flags), own**third * clip ** (2 / 3))
    with pytest.raises(OvsegError, match="needs two namers"):
        SeenAveragedMean()([Scores(own)])


def test_own_classifier_alone_needs_no_fusion(tiny, caplog):
    assert len(ZegFormer(tiny.config(CROPS, False)).namers) == 1
    assert "nothing to fuse" in caplog.text


def test_words_from_a_table(tiny, tmp_path):
    """ZegFormer with word vectors of another size, as its original's WORDVEC."""
    np.savez(tmp_path / "words.npz", **{name: np.random.default_rng(0).normal(size=20) for name in ("sky", "grass")})
    table = ("MODEL.CLIP_ADAPTER.TEXT_ENCODER", "table", "MODEL.CLIP_ADAPTER.TEXT_TABLE", tmp_path / "words.npz")
    size = ("MODEL.SEM_SEG_HEAD.EMBEDDING_DIM", 20, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2)
    with pytest.raises(OvsegError, match="CLIP_CLASSIFICATION is True, but the words have vectors of a table"):
        ZegFormer(tiny.config(*table, *size))
    model = ZegFormer(tiny.config(*table, *size, CROPS, False, FUSE, False)).eval()
    request = tiny.request(0, split=False) | {"class_names": ["sky", "grass"]}
    assert scores(model, request).isfinite().all()
    assert json.loads((tiny.folder / "classes_test.json").read_text())[1] == "sky"
