"""Dense CLIP: its scores and their refinement, its requests, and its configuration files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F

from ovseg.checkpoint import load_model
from ovseg.clip.dense import LAST, resize_whole
from ovseg.config import load_cfg
from ovseg.errors import OvsegError
from ovseg.evaluation.tta import SlidingWindow
from ovseg.meta_arch.per_pixel import PerPixel
from ovseg.naming.dense import ABSENT, denoise, refine, smooth
from ovseg.segmenter import Segmenter
from ovseg.vocabulary import Vocabulary
from ovseg.vocabulary.templates import get_templates
from tests.tiny_clip import CONVOLUTIONAL, RESNET, TINY, convolutional_cfg, tiny_cfg

FILES = (
    "maskclip_vitB16",
    "maskclip_vitB16_context59",
    "dense_clip_R50",
    "dense_clip_R50x16",
    "dense_clip_convnext",
    "dense_clip_convnext_proposals",
    "toy/dense_clip_toy",
)
WORDS = ["cat", ["sky", "clouds"], "guitar"]


def cfg_of(folder, **dense):
    cfg = tiny_cfg(folder)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.PROPOSER.NAME = "DenseCLIP", "MaskFormer"
    cfg.MODEL.NAMER.NAME = ["QueryEmbedding", "MaskedCrops"]
    for key, value in dense.items():
        cfg.MODEL.DENSE[key] = value
    return cfg


def model_of(folder, **dense) -> PerPixel:
    torch.manual_seed(0)
    return load_model(cfg_of(folder, **dense), complete=True).eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_of(tmp_path_factory.mktemp("clip"))


def request(*size: int, **of_request) -> dict:
    image = torch.rand(3, *(size or (40, 64)), generator=torch.Generator().manual_seed(1)) * 255
    return {"image": image, "class_names": WORDS} | of_request


@torch.inference_mode()
def test_scores_are_cosines_at_each_place(model):
    asked = request()
    found = model([asked])[0]["sem_seg"]
    tower, clip = model.scorer.tower, model.scorer.clip_adapter
    pixels = resize_whole(asked["image"], 64, clip.pixel_mean, clip.pixel_std, 8)
    features = F.normalize(tower.places(tower.maps(pixels)[LAST][0]), dim=0)
    cosines = torch.einsum("kd,dhw->khw", clip.text(["cat", "sky", "clouds", "guitar"]), features)
    expected = torch.stack((cosines[0], cosines[1:3].amax(0), cosines[3]))
    expected = F.interpolate(expected[None], (40, 64), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.abs().max() <= 1


@torch.inference_mode()
def test_requests(model):
    """Images of any size, several at once; a single word; outputs."""
    both = model([request(37, 53, height=20, width=30), request(16, 90, class_names=["cat"], add_others=True)])
    assert both[0]["sem_seg"].shape == (3, 20, 30)
    assert both[1]["sem_seg"].shape == (2, 16, 90)
    asked = request(outputs=("sem_seg", "label_map"))
    result = model([asked])[0]
    assert torch.equal(result["label_map"], result["sem_seg"].argmax(0))
    with pytest.raises(OvsegError, match="this model has no masks, hence no proposals"):
        model([request(outputs=("proposals",))])
    with pytest.raises(OvsegError, match="DenseScores has nothing to train"):
        model.train()([asked])
    model.eval()


@torch.inference_mode()
def test_large_images_by_windows(model):
    result = SlidingWindow(model, 32, 0.5)([request(100, 80, outputs=("label_map",))])[0]
    assert result["label_map"].shape == (100, 80)


def test_words_that_are_probable_nowhere_are_left_out():
    scores = torch.tensor([[[0.30, 0.20]], [[0.25, 0.26]], [[0.20, 0.2499]]])  # (3, 1, 2)
    highest = (100 * scores).softmax(0).flatten(1).amax(1)
    threshold = float(highest.sort().values[:2].mean())  # between the lowest and the next
    kept = denoise(scores, threshold)
    assert (kept[2] == ABSENT).all()
    assert torch.equal(kept[:2], scores[:2])
    assert refine(scores, None, 0, 0) is scores


def test_uncertain_places_take_the_words_of_similar_ones():
    scores = torch.tensor([[[0.3, 0.2, 0.25]], [[0.2, 0.3, 0.25]]])  # the third place is uncertain
    keys = torch.tensor([[[1.0, 0.0, 2.0]], [[0.0, 1.0, 0.0]]])  # its key is like that of the first
    result = smooth(scores, keys, 0.9)
    probabilities = (100 * scores).softmax(0)
    assert torch.equal(result[:, :, :2], probabilities[:, :, :2])
    channels = F.normalize(keys.flatten(1), dim=1)  # over the places, as the original does
    expected = probabilities.flatten(1) @ (channels.T @ channels)
    torch.testing.assert_close(result[:, 0, 2], expected[:, 2])
    assert result[0, 0, 2] > result[1, 0, 2]
    torch.testing.assert_close(smooth(scores, keys, 1.0).flatten(1), expected)


@torch.inference_mode()
def test_refinement_by_configuration(tmp_path, model):
    refined = model_of(tmp_path, KS_THRESH=1.0, PD_THRESH=0.9)
    asked = request()
    found = refined([asked])[0]["sem_seg"]
    assert found.shape == (3, 40, 64)
    assert found.isfinite().all()
    assert not torch.equal(found, model([asked])[0]["sem_seg"])


@pytest.mark.parametrize("mode", ["value_no_residual", "last_tokens"])
@torch.inference_mode()
def test_modes(tmp_path, model, mode):
    asked = request()
    assert not torch.allclose(model_of(tmp_path, MODE=mode)([asked])[0]["sem_seg"], model([asked])[0]["sem_seg"])


@pytest.mark.parametrize("tower", [TINY, RESNET, CONVOLUTIONAL])
@torch.inference_mode()
def test_half_precision(tmp_path, tower):
    cfg = cfg_of(tmp_path)
    (tmp_path / "clip.json").write_text(json.dumps(tower))
    found = []
    for cfg.MODEL.CLIP_ADAPTER.PRECISION in ("fp32", "bf16"):
        torch.manual_seed(0)
        found.append(load_model(cfg).eval()([request(64, 96)])[0]["sem_seg"])
    assert found[1].dtype == torch.float32
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0.05)


def test_settings_that_do_not_fit(tmp_path):
    with pytest.raises(OvsegError, match=r"MODEL\.DENSE\.MODE is mask_attention, which is for masks: set value, or"):
        model_of(tmp_path, MODE="mask_attention")
    cfg = cfg_of(tmp_path, KS_THRESH=0.5)
    convolutional_cfg(tmp_path)  # another CLIP in the same file
    with pytest.raises(OvsegError, match=r"MODEL\.DENSE\.KS_THRESH is above 0, but .* has no attention"):
        load_model(cfg)
    cfg.MODEL.META_ARCHITECTURE = "OVSeg"
    with pytest.raises(OvsegError, match=r"MODEL\.DENSE\.KS_THRESH = 0\.5 has no effect .* only DenseCLIP reads it"):
        load_model(cfg)


def test_vectors_of_words_do_not_fit(tmp_path):
    np.savez(tmp_path / "words.npz", cat=np.ones(5))
    cfg = cfg_of(tmp_path)
    cfg.merge_from_list(["MODEL.CLIP_ADAPTER.TEXT_ENCODER", "table"])
    cfg.MODEL.CLIP_ADAPTER.TEXT_TABLE = str(tmp_path / "words.npz")
    with pytest.raises(OvsegError, match="TEXT_TABLE have 5 numbers, but features of the image"):
        load_model(cfg).eval()([{"image": torch.zeros(3, 32, 32), "class_names": ["cat"]}])


def test_templates():
    templates = get_templates("maskclip")
    assert len(set(templates)) == 85
    assert templates[:80] == get_templates("imagenet")
    assert templates[80] == "there is a {} in the scene."


@pytest.mark.parametrize("name", FILES)
def test_configuration_files(name):
    cfg = load_cfg(f"configs/{name}.yaml", ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    assert any(key.startswith("clip_adapter.clip_model.visual.") for key in model.state_dict())


def test_the_python_interface():
    segmenter = Segmenter.from_config("configs/toy/dense_clip_toy.yaml", device="cpu")
    result = segmenter(torch.randint(256, (60, 80, 3), dtype=torch.uint8).numpy(), ["grass", "red circle"])
    assert result.label_map.shape == (60, 80)
    words = Vocabulary.from_class_names(["grass", "red circle"])
    assert set(result.label_map.flatten().tolist()) <= set(range(len(words)))
