from __future__ import annotations

import contextlib

import pytest
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer

from ovseg.clip.text import TextEmbedder, encode_text
from ovseg.errors import OvsegError

TEMPLATES = ("a photo of a {}.", "There is a {} in the scene")


class CountingTokenizer(SimpleTokenizer):
    """Counts the prompts that had to be encoded."""

    prompts = 0

    def __call__(self, texts, context_length=None):
        self.prompts += len(texts)
        return super().__call__(texts, context_length)


@pytest.fixture(scope="module")
def clip_model():
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 16, "patch_size": 16}
    return CLIP(16, vision, {"width": 16, "heads": 1, "layers": 1}).eval().requires_grad_(False)


def embedder(clip_model, cache_dir=None, **kwargs) -> TextEmbedder:
    def full_precision(device_type):
        return contextlib.nullcontext()

    options = {"autocast": full_precision, "cache_dir": cache_dir} | kwargs
    return TextEmbedder(clip_model, CountingTokenizer(), TEMPLATES, **options)


def test_average_of_unit_prompt_embeddings(clip_model):
    features = embedder(clip_model)(["cat", "bus, coach"])
    prompts = [template.format("bus, coach") for template in TEMPLATES]
    encoded = clip_model.encode_text(SimpleTokenizer()(prompts))
    mean = (encoded / encoded.norm(dim=1, keepdim=True)).mean(0)
    torch.testing.assert_close(features[1], mean / mean.norm())


@torch.no_grad()
def test_padding_behind_prompts_is_left_out():
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 16, "patch_size": 16}
    plain, linear, open_ended = (
        CLIP(16, vision, {"width": 32, "heads": 2, "layers": 3, **options}).eval()
        for options in ({}, {"proj_bias": True}, {"no_causal_mask": True})
    )
    tokens = SimpleTokenizer()(["a", "a photo of many small houses by the sea", "two cats"])
    longest = int((tokens != 0).sum(1).max())
    assert longest < 20
    tokens[:, longest:] = 7  # whatever the padding is
    for model in (plain, linear):
        torch.testing.assert_close(encode_text(model, tokens, longest), model.encode_text(tokens))
    assert torch.equal(encode_text(open_ended, tokens, longest), open_ended.encode_text(tokens))  # the padding counts


def test_each_word_is_encoded_once(clip_model, tmp_path):
    text = embedder(clip_model, tmp_path)
    first = text(["cat", "dog", "cat"])
    assert text.tokenizer.prompts == 1 + 2 * len(TEMPLATES)  # one text tells which tokenizer it is
    assert torch.equal(first[0], first[2])
    text(["dog", "cat"])
    assert text.tokenizer.prompts == 1 + 2 * len(TEMPLATES)
    from_disk = embedder(clip_model, tmp_path)
    assert torch.equal(from_disk(["cat", "dog", "cat"]), first)
    assert from_disk.tokenizer.prompts == 1


@pytest.mark.parametrize("through_data", [False, True])
def test_never_stale_after_weights_change(clip_model, tmp_path, through_data):
    text = embedder(clip_model, tmp_path)
    before = text(["cat"])
    weight = clip_model.text_projection
    original = weight.detach().clone()
    try:
        weight.data.add_(torch.eye(16)) if through_data else weight.copy_(original + torch.eye(16))
        changed = text(["cat"])
        assert not torch.allclose(changed, before)
        torch.testing.assert_close(changed, embedder(clip_model)(["cat"]))
    finally:
        weight.copy_(original)
    assert torch.equal(text(["cat"]), before)


def test_other_templates_are_other_entries(clip_model, tmp_path):
    first = embedder(clip_model, tmp_path)(["cat"])
    other = embedder(clip_model, tmp_path)
    other.templates = TEMPLATES[:1]
    assert not torch.allclose(other(["cat"]), first)


def test_templates_of_a_call_are_those_of_an_embedder(clip_model, tmp_path):
    text = embedder(clip_model, tmp_path)
    own, other = text(["cat"]), text(["cat"], ["{}"])
    alone = embedder(clip_model)
    alone.templates = ("{}",)
    assert torch.equal(alone(["cat"]), other) and not torch.equal(own, other)
    assert torch.equal(text(["cat"]), own)  # no entry of another set is taken
    again = embedder(clip_model, tmp_path)
    assert torch.equal(again(["cat"], ("{}",)), other) and again.tokenizer.prompts == 1


@pytest.mark.parametrize("change", ["activation", "heads", "tokens"])
def test_the_same_weights_in_another_tower_are_other_entries(clip_model, tmp_path, change):
    """CLIPs of one name with and without QuickGELU have tensors of the same names and sizes."""
    first = embedder(clip_model, tmp_path)(["CAT"])
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 16, "patch_size": 16}
    text = {"width": 16, "heads": 2 if change == "heads" else 1, "layers": 1}
    other = CLIP(16, vision, text, quick_gelu=change == "activation").eval().requires_grad_(False)
    other.load_state_dict(clip_model.state_dict())
    seen = embedder(other, tmp_path)
    if change == "tokens":
        seen.tokenizer.clean_fn = str.swapcase  # CLIP's makes lower case
    assert not torch.equal(seen(["CAT"]), first)
    expected = embedder(other)
    expected.tokenizer = seen.tokenizer
    assert torch.equal(seen(["CAT"]), expected(["CAT"]))


def test_memory_is_bounded(clip_model, monkeypatch):
    monkeypatch.setattr("ovseg.clip.text.WORDS_IN_MEMORY", 3)
    text = embedder(clip_model)
    features = text(["a", "b", "c", "d", "e"])
    assert len(features) == 5
    assert len(text._memory) == 3


def test_damaged_cache_is_ignored(clip_model, tmp_path, caplog):
    first = embedder(clip_model, tmp_path)(["cat"])
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(b"rubbish")
    assert torch.equal(embedder(clip_model, tmp_path)(["cat"]), first)
    assert "damaged" in caplog.text


def test_unwritable_cache_is_done_without(clip_model, tmp_path, caplog):
    folder = tmp_path / "file"
    folder.write_text("not a folder")
    assert embedder(clip_model, folder)(["cat"]).shape == (1, 16)
    assert "memory only" in caplog.text


def test_long_prompts_are_refused_or_cut(clip_model):
    word = "very " * 200 + "long"
    with pytest.raises(OvsegError, match=r"tokens, CLIP reads 75: shorten the word, or set .*TRUNCATE_PROMPTS"):
        embedder(clip_model)([word])
    assert embedder(clip_model, truncate=True)([word]).isfinite().all()


def test_usable_in_training_after_inference_mode(clip_model):
    text = embedder(clip_model)
    with torch.inference_mode():
        text(["cat"])
    scale = torch.ones(1, requires_grad=True)
    (text(["cat"]) * scale).sum().backward()
    assert scale.grad is not None
