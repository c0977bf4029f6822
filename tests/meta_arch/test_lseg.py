"""LSeg and LSeg+: outputs, training, and input that does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from detectron2.modeling import build_model
from torch import nn

from ovseg.checkpoint import load_model, load_weights, save_safetensors
from ovseg.clip.model import build_clip, find_clip
from ovseg.config import load_cfg
from ovseg.errors import OvsegError
from ovseg.evaluation.tta import MultiScale, augmented_model
from ovseg.meta_arch.lseg import BACKBONES, Backbone, build_lseg

ROOT = Path(__file__).parents[2]
TOY_CLIP = ROOT / "configs" / "toy" / "clip.json"
OPTIONS = ("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.CLIP_ADAPTER.TEXT_CACHE_DIR", "none")
ARCH = {
    "vit": {"patch": 16, "grid": 4, "width": 16, "depth": 4, "heads": 2, "hooks": [0, 1, 2, 3]},
    "reassemble_channels": [4, 6, 8, 8],
    "features": 8,
    "out_channels": 16,
    "clip_text": {"embed_dim": 16, "context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
    "ignore_index": 255,
}
CREATE = timm.create_model
NAMES = ["grass", ("cat", "kitten"), "traffic light"]


def plus(*opts):
    file = ROOT / "configs" / "toy" / "lseg_plus_toy.yaml"
    settings = (*OPTIONS, "MODEL.CLIP_ADAPTER.CLIP_WEIGHTS", "none", "MODEL.LSEG_PLUS.HEAD_DIM", 64)
    torch.manual_seed(0)
    return build_model(load_cfg(file, [*settings, *opts]))


@pytest.fixture(scope="module", params=["LSeg", "LSegPlus"])
def model(request):
    torch.manual_seed(0)
    return (build_lseg(ARCH) if request.param == "LSeg" else plus()).eval()


def request(height=48, width=70, **extra):
    torch.manual_seed(1)
    return {"image": torch.randint(256, (3, height, width), dtype=torch.uint8), "class_names": NAMES, **extra}


def segment(model, *requests):
    with torch.no_grad():
        return model.eval()(list(requests))


def test_outputs(model):
    outputs = ("sem_seg", "label_map")
    first, second = segment(model, request(outputs=outputs, height=96, width=140), request(33, 40))
    assert first["sem_seg"].shape == (3, 96, 140) and first["sem_seg"].dtype == torch.float32
    assert torch.equal(first["label_map"], first["sem_seg"].argmax(0))
    assert torch.equal(first["score_map"], first["sem_seg"].amax(0))
    assert list(second) == ["sem_seg"] and second["sem_seg"].shape == (3, 33, 40)


def test_a_score_is_that_of_the_best_synonym(model):
    whole = segment(model, request())[0]["sem_seg"]
    parts = [segment(model, request(class_names=[name]))[0]["sem_seg"][0] for name in ("cat", "kitten")]
    best = torch.maximum(*parts)  # of the enlarged maps, which may be less than the enlarged map of the best
    assert (whole[1] > best - 1e-3).all()
    assert (whole[1] - best).mean() < 0.2 * (parts[0] - parts[1]).abs().mean()


def test_scores_do_not_depend_on_other_words(model):
    assert model.scores_are_independent
    assert not build_lseg(ARCH | {"arch_option": 1}).scores_are_independent
    whole = segment(model, request())[0]["sem_seg"]
    alone = segment(model, request(class_names=["traffic light"]))[0]["sem_seg"]
    torch.testing.assert_close(whole[2:], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (31, 2), (65, 33)])
def test_small_images(model, size):
    scores = segment(model, request(*size))[0]["sem_seg"]
    assert scores.shape == (3, *size) and torch.isfinite(scores).all()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"class_names": []}, "class_names"),
        ({"class_names": [""]}, "class_names"),
        ({"class_names": "cat"}, "class_names"),
        ({"class_names": ["cat " * 100]}, "tokens, CLIP reads .* set MODEL.CLIP_ADAPTER.TRUNCATE_PROMPTS"),
        ({"outputs": ("proposals",)}, "this model has no masks, hence no proposals"),
        ({"templates": ["no place"]}, "templates"),
        ({"seen": [True]}, "seen has 1 values for 3 words"),  # also without a bias
        ({"seen": True}, "seen is True: give a list"),
    ],
)
def test_bad_requests(model, extra, message):
    with pytest.raises(OvsegError, match=message):
        segment(model, request(**extra))


def test_templates_of_a_request(model):
    plain, prompted = (
        segment(model, request(**extra))[0]["sem_seg"] for extra in ({}, {"templates": ["a photo of {}"]})
    )
    assert not torch.equal(plain, prompted)


def test_training(model):
    """All parameters that count as trained get gradients, CLIP none; batches without a label have a loss of 0."""
    model.train().zero_grad()
    labels = torch.randint(3, (64, 96))
    labels[:20] = 255
    batch = [request(64, 96, sem_seg=labels), request(64, 64, sem_seg=labels[:, :64])]
    losses = model(batch)
    assert list(losses) == ["loss_pixel"]
    losses["loss_pixel"].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad), name
    assert all(not p.requires_grad for name, p in model.named_parameters() if name.startswith("clip"))
    nothing = model([request(64, 96, sem_seg=torch.full((64, 96), 255))])["loss_pixel"]
    nothing.backward()
    assert nothing == 0
    with pytest.raises(OvsegError, match="a label is 7: give 0 to 2"):
        model([request(64, 96, sem_seg=torch.full((64, 96), 7))])


def test_training_reduces_the_loss():
    model = plus().train()
    labels = torch.zeros(64, 64, dtype=torch.int64)
    labels[:, 32:] = 1
    image = torch.zeros(3, 64, 64)
    image[:, :, 32:] = 200
    sample = {"image": image, "sem_seg": labels, "class_names": ["red circle", "sand"]}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = model([sample, sample])["loss_pixel"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_temperature():
    model = plus("MODEL.LSEG_PLUS.TAU_INIT", 0.05)
    assert model.scorer.log_scale.exp().item() == pytest.approx(20)
    with torch.no_grad():
        model.scorer.log_scale.fill_(100.0)
    assert segment(model, request())[0]["sem_seg"].abs().max() <= 100.01  # 1 / TAU_MIN
    image, labels = torch.rand(3, 64, 64) * 255, torch.zeros(64, 64, dtype=torch.long)
    sample = {"image": image, "sem_seg": labels, "class_names": ["red circle", "sand"]}
    sum(model.train()([sample, sample]).values()).backward()
    assert model.scorer.log_scale.exp().item() == pytest.approx(100) and model.scorer.log_scale.grad != 0
    assert not plus("MODEL.LSEG_PLUS.TAU_LEARNED", False).scorer.log_scale.requires_grad


@pytest.mark.parametrize("cosine", [True, False])
def test_vectors_of_words(cosine, tmp_path):
    """With a table and plain dot products, the model is SPNet; words that the table lacks are refused."""
    np.savez(tmp_path / "words.npz", names=["grass", "cat"], vectors=np.eye(2, 24, dtype=np.float32) * 3)
    table = ("TEXT_ENCODER", "table", "TEXT_TABLE", str(tmp_path / "words.npz"), "TABLE_COSINE", cosine)
    keys = [f"MODEL.CLIP_ADAPTER.{item}" if index % 2 == 0 else item for index, item in enumerate(table)]
    model = plus(*keys)
    assert model.scorer.log_scale.requires_grad == cosine
    asked = request(class_names=["grass", "cat"])
    scores = segment(model, asked)[0]["sem_seg"]
    embeddings, _ = model.scorer.embeddings(model.views([asked]))
    first = embeddings[0, :, 0, 0]
    expected = first[:2] / (0.07 * first.norm()) if cosine else 3 * first[:2]
    torch.testing.assert_close(scores[:, 0, 0], expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(OvsegError, match="has no vector of the word 'dog'"):
        segment(model, request(class_names=["dog"]))


def test_a_checkpoint_has_all_that_is_needed(tmp_path):
    """Neither the image tower nor the weights of CLIP are needed to load LSeg+ from its own checkpoint."""
    model = plus()
    assert not any(".visual." in name for name in model.state_dict())
    save_safetensors(model.state_dict(), tmp_path / "model.safetensors")
    cfg = load_cfg(
        ROOT / "configs" / "toy" / "lseg_plus_toy.yaml",
        [*OPTIONS, "MODEL.LSEG_PLUS.HEAD_DIM", 64, "MODEL.WEIGHTS", str(tmp_path / "model.safetensors")],
    )
    cfg.MODEL.CLIP_ADAPTER.CLIP_WEIGHTS = ""  # clip.json names none
    again = load_model(cfg, complete=True)
    assert torch.equal(*(segment(m, request())[0]["sem_seg"] for m in (model, again)))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("MODEL.LSEG_PLUS.HEAD_DIM", 48), "multiple of 32"),
        (("MODEL.SEM_SEG_HEAD.IN_FEATURES", "[res4]"), "stride 4"),
        (("MODEL.SEM_SEG_HEAD.IN_FEATURES", "[res2, res9]"), "IN_FEATURES"),
        (("MODEL.LSEG_PLUS.TAU_INIT", 0), "TAU_INIT"),
        (("MODEL.NAMER.NAME", "[MaskedCrops]"), "a system has its own parts"),
        (("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "nothing"), "timm does not have"),
    ],
)
def test_bad_configurations(opts, message):
    with pytest.raises(OvsegError, match=message):
        plus(*opts)


def test_timm_backbone_in_the_model():
    opts = ("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "resnet18")
    assert segment(plus(*opts), request())[0]["sem_seg"].shape == (3, 48, 70)


# --- LSeg ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vit": None}, "wrong value"),
        ({"features": -1}, "wrong value"),
        ({"out_channels": 8}, "out_channels is 8, but the text embeddings have 16"),
        ({"reassemble_channels": [4, 4]}, "four of each"),
        ({"vit": ARCH["vit"] | {"hooks": [0, 1, 2, 9]}}, "hooks from 0 to 3"),
        ({"vit": ARCH["vit"] | {"heads": 0}}, "wrong value"),
        ({"clip_text": ARCH["clip_text"] | {"activation": "relu"}}, "give quick_gelu or gelu"),
        ({"vit": ARCH["vit"] | {"patch": 14}}, "patches of 16 or 32"),
        ({"vit": ARCH["vit"] | {"readout": "mean"}}, "choose project, add or ignore"),
        ({"arch_option": 3}, "no spatial block"),
        ({"arch_option": 1, "activation": "gelu"}, "no spatial block"),
        ({"logit_scale": 100.0}, "logit_scale is 100"),
    ],
)
def test_bad_architectures(changes, message):
    with pytest.raises(OvsegError, match=message):
        build_lseg(ARCH | changes)
    with pytest.raises(OvsegError, match="lacks 'vit'"):
        build_lseg({})


def test_patches_of_32_pixels():
    model = build_lseg(ARCH | {"vit": ARCH["vit"] | {"patch": 32}})
    assert [model.scorer.pretrained.act_postprocess1["4"].stride, "4" in model.scorer.pretrained.act_postprocess4] == [
        (8, 8),
        False,
    ]
    assert segment(model, request(96, 33))[0]["sem_seg"].shape == (3, 96, 33)


def tiny_lseg(monkeypatch, *opts):
    """Return an LSeg of a configuration with tiny networks."""
    sizes = {"img_size": 64, "embed_dim": 16, "depth": 12, "num_heads": 2}
    monkeypatch.setitem(
        BACKBONES, "clip_vitl16_384", Backbone("vit_tiny_patch16_224", "ViT-B/32", (2, 5, 8, 11), (4, 6, 8, 8))
    )
    monkeypatch.setitem(BACKBONES, "clip_resnet101", Backbone("resnet10t", "ViT-B/32"))
    monkeypatch.setattr(timm, "create_model", lambda name, **o: CREATE(name, **o, **(sizes if "vit" in name else {})))
    clip = ("MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME", str(TOY_CLIP), "MODEL.CLIP_ADAPTER.CLIP_WEIGHTS", "none")
    file = ROOT / "configs" / "lseg_vitL16_384.yaml"
    return build_model(load_cfg(file, [*OPTIONS, *clip, "MODEL.LSEG.NUM_FEATURES", 8, *opts]))


def test_lseg_of_a_configuration(monkeypatch, tmp_path):
    model = tiny_lseg(monkeypatch).eval()
    assert segment(model, request())[0]["sem_seg"].shape == (3, 48, 70)
    # what a request without words gets: the first data set of the configuration
    assert len(segment(model, {"image": request()["image"]})[0]["sem_seg"]) == 150
    assert {"clip_pretrained", "pretrained", "scratch"} == {name.split(".")[0] for name in model.state_dict()}

    torch.save({"state_dict": {f"net.{name}": x for name, x in model.state_dict().items()}}, tmp_path / "a.ckpt")
    other = tiny_lseg(monkeypatch, "MODEL.WEIGHTS", str(tmp_path / "a.ckpt")).eval()
    report = load_weights(other, tmp_path / "a.ckpt", complete=True)
    assert not report.missing and not report.unexpected
    assert torch.equal(*(segment(m, request())[0]["sem_seg"] for m in (model, other)))


def test_training_starts_from_a_vit_of_timm(monkeypatch, tmp_path):
    model = tiny_lseg(monkeypatch)
    vit = {name: torch.full_like(x, 0.5) for name, x in model.scorer.pretrained.model.state_dict().items()}
    save_safetensors(vit, tmp_path / "vit.safetensors")
    report = load_weights(model, tmp_path / "vit.safetensors")
    assert len(report.loaded) == len(vit)
    assert all((p == 0.5).all() for p in model.scorer.pretrained.model.parameters())


def test_the_zero_shot_variant(monkeypatch):
    model = tiny_lseg(monkeypatch, "MODEL.LSEG.BACKBONE", "clip_resnet101")
    assert isinstance(model.scorer.pretrained.layer1, nn.Sequential)
    result = segment(model, request(class_names=["others", "cat"], outputs=("sem_seg", "label_map")))[0]
    assert result["sem_seg"].shape == (2, 48, 70)
    assert set(result["label_map"].unique().tolist()) <= {0, 1}


@pytest.mark.parametrize(("key", "value"), [("TEXT_TEMPLATES", "imagenet"), ("TEXT_ENCODER", "table")])
def test_keys_without_an_effect(monkeypatch, key, value):
    with pytest.raises(OvsegError, match=f"{key} = '{value}' has no effect .* without a prompt"):
        table = ("MODEL.CLIP_ADAPTER.TEXT_TABLE", "words.npz") if value == "table" else ()
        tiny_lseg(monkeypatch, f"MODEL.CLIP_ADAPTER.{key}", value, *table)


@pytest.mark.parametrize(
    ("key", "value"),
    [("BACKBONE", "vit"), ("READOUT", "none"), ("ARCH_OPTION", 3), ("BLOCK_DEPTH", -1), ("ACTIVATION", "gelu")],
)
def test_bad_options(key, value):
    with pytest.raises(OvsegError, match=f"MODEL.LSEG.{key}"):
        load_cfg(ROOT / "configs" / "lseg_vitL16_384.yaml", [f"MODEL.LSEG.{key}", value])


def test_the_image_tower_of_clip_is_kept_but_not_run(monkeypatch):
    model = tiny_lseg(monkeypatch)
    clip, _ = build_clip(find_clip(str(TOY_CLIP), "none"))
    assert model.scorer.clip_pretrained.state_dict().keys() == clip.state_dict().keys()
    model.scorer.clip_pretrained.visual.forward = None
    segment(model, request())


# --- multi-scale evaluation ------------------------------------------------------------------------------------


class Brightness(nn.Module):
    """Model whose scores of three words are the red, green and blue of each pixel; it records the sizes of images."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, requests):
        self.sizes += [tuple(item["image"].shape[1:]) for item in requests]
        return [{"sem_seg": item["image"].float()} for item in requests]


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (30, 30), (100, 90), (7, 200), (1, 1)])
def test_multi_scale_returns_a_mean(size):
    """Scores that are a linear function of the pixels come back, up to what resizing changes."""
    height, width = size
    rows, columns = torch.linspace(0, 255, height), torch.linspace(0, 255, width)
    image = torch.stack((rows[:, None].expand(size), columns.expand(size), torch.full(size, 9.0)))
    inner = Brightness()
    model = MultiScale(inner, 64, 32, (0.25, 0.5, 1.0, 1.5), flip=True)
    result = model([{"image": image, "class_names": NAMES, "outputs": ("sem_seg", "label_map")}])[0]
    torch.testing.assert_close(result["sem_seg"], image, rtol=0, atol=0.1 if min(size) > 7 else 300)
    assert torch.equal(result["label_map"], result["sem_seg"].argmax(0))
    assert set(inner.sizes) == {(32, 32)}


def test_multi_scale_of_a_configuration():
    cfg = load_cfg(ROOT / "configs" / "lseg_vitL16_384.yaml", ["TEST.MULTI_SCALE.ENABLED", True])
    model = augmented_model(cfg, Brightness())
    assert (model.base_size, model.crop_size, model.flip) == (520, 480, True)
    assert model.scales == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    cfg.TEST.AUG.ENABLED = True
    with pytest.raises(OvsegError, match="mirror images of its own"):
        augmented_model(cfg, Brightness())
    for key, value in (("SCALES", []), ("SCALES", [0]), ("CROP_SIZE", 0)):
        with pytest.raises(OvsegError, match=f"TEST.MULTI_SCALE.{key}"):
            load_cfg(ROOT / "configs" / "toy.yaml", [f"TEST.MULTI_SCALE.{key}", value])
