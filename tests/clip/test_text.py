from __future__ import annotations

import contextlib
import copy
import logging
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors import safe_open
from safetensors.torch import save_file

from ovseg.clip.text import TextCache, TextEmbedder, encode_text
from ovseg.errors import OvsegError

WORDS = ("cat", "dog", "bus, coach")
TEMPLATES = ("a photo of a {}.", "There is a {} in the scene")


class CountingTokenizer(SimpleTokenizer):
    """Tokenizer that counts encoded prompts."""

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
def test_parts_of_a_word_are_averaged(clip_model, tmp_path):
    """All prompts of all parts count the same, each as a unit vector (specification of ZegFormer, section 1)."""
    split = embedder(clip_model, tmp_path, separator=", ")
    features = split(["cat", "bus, coach"])
    prompts = [template.format(part) for part in ("bus", "coach") for template in TEMPLATES]
    encoded = clip_model.encode_text(SimpleTokenizer()(prompts))
    mean = (encoded / encoded.norm(dim=1, keepdim=True)).mean(0)
    torch.testing.assert_close(features[1], mean / mean.norm())
    whole = embedder(clip_model, tmp_path)(["cat", "bus, coach"])  # of another key in the cache on disk
    assert torch.equal(whole[0], features[0]) and not torch.allclose(whole[1], features[1])
    assert torch.equal(embedder(clip_model, tmp_path, separator=", ")(["bus, coach"])[0], features[1])


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
    tokens[:, longest:] = 7  # any padding
    for model in (plain, linear):
        torch.testing.assert_close(encode_text(model, tokens, longest), model.encode_text(tokens))
    assert torch.equal(encode_text(open_ended, tokens, longest), open_ended.encode_text(tokens))  # the padding counts


def test_each_word_is_encoded_once(clip_model, tmp_path):
    text = embedder(clip_model, tmp_path)
    first = text(["cat", "dog", "cat"])
    assert text.tokenizer.prompts == 1 + 2 * len(TEMPLATES)  # one text identifies the tokenizer
    assert torch.equal(first[0], first[2])
    text(["dog", "cat"])
    assert text.tokenizer.prompts == 1 + 2 * len(TEMPLATES)
    from_disk = embedder(clip_model, tmp_path)
    assert torch.equal(from_disk(["cat", "dog", "cat"]), first)
    assert from_disk.tokenizer.prompts == 1


@pytest.mark.parametrize("how", ["in place", "state", "replaced"])
def test_never_stale_after_weights_change(clip_model, tmp_path, how):
    """PyTorch's version counters show writes, except those through ``parameter.data``."""
    clip_model = copy.deepcopy(clip_model)
    text = embedder(clip_model, tmp_path)
    before = text(["cat"])
    original = clip_model.text_projection.detach().clone()

    @torch.no_grad()
    def change(value: torch.Tensor) -> None:
        if how == "in place":
            clip_model.text_projection.copy_(value)
        elif how == "state":
            clip_model.load_state_dict({"text_projection": value}, strict=False)
        else:
            clip_model.text_projection = torch.nn.Parameter(value, requires_grad=False)

    change(original + torch.eye(16))
    changed = text(["cat"])
    assert not torch.allclose(changed, before)
    torch.testing.assert_close(changed, embedder(clip_model)(["cat"]))
    change(original)
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
    assert torch.equal(text(["cat"]), own)  # an entry of other templates is not used
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


def test_unwritable_cache_is_done_without(clip_model, tmp_path, caplog):
    folder = tmp_path / "file"
    folder.write_text("not a folder")
    assert embedder(clip_model, folder)(["cat"]).shape == (1, 16)
    assert "memory only" in caplog.text


def test_long_prompts_are_refused_or_cut(clip_model):
    word = "very " * 200 + "long"
    with pytest.raises(OvsegError, match=r"tokens, CLIP reads 75: shorten the word, or set .*truncate.* to True"):
        embedder(clip_model)([word])
    assert embedder(clip_model, truncate=True)([word]).isfinite().all()


def test_usable_in_training_after_inference_mode(clip_model):
    text = embedder(clip_model)
    with torch.inference_mode():
        text(["cat"])
    scale = torch.ones(1, requires_grad=True)
    (text(["cat"]) * scale).sum().backward()
    assert scale.grad is not None


# Embeddings on disk are used only if they are not damaged and belong to the word.
def content(path: Path) -> tuple[torch.Tensor, dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("feature"), file.metadata() or {}


def damage(path: Path, other: Path, how: str) -> None:
    feature, about = content(path)
    turned = feature.flip(0)
    written = {
        "NaN": (feature * torch.nan, about),
        "zeros": (feature * 0, about),
        "length": (feature * 3, about),
        "values": (turned, about),
        "shape": (feature[:8].clone(), about),
        "dtype": (feature.double(), about),
        "no checksum": (turned, {}),
        "entry of before": (turned, None),
        "other word": content(other),
    }
    if how == "rubbish":
        path.write_bytes(b"rubbish")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif how == "tensors":
        save_file({"features": feature, "feature": turned}, path, about)
    else:
        save_file({"feature": written[how][0].contiguous()}, path, written[how][1])


@pytest.mark.parametrize(
    "how",
    [
        *("NaN", "zeros", "length", "values", "shape", "dtype", "no checksum", "entry of before", "other word"),
        *("rubbish", "empty", "cut", "tensors"),
    ],
)
def test_a_damaged_entry_is_computed_again(clip_model, tmp_path, caplog, how):
    first = embedder(clip_model, tmp_path)(WORDS)
    files = sorted(tmp_path.rglob("*.safetensors"))
    whole = {file: content(file)[0].clone() for file in files}
    for file, other in ((files[0], files[1]), (files[2], files[1])):
        damage(file, other, how)
    again = embedder(clip_model, tmp_path)
    with caplog.at_level(logging.WARNING):
        assert torch.allclose(again(WORDS), first, atol=1e-6)
    assert caplog.text.count("damaged text embedding") == 1
    for file, before in whole.items():  # entries are written again
        assert torch.allclose(content(file)[0], before, atol=1e-6)
    caplog.clear()
    assert torch.allclose(embedder(clip_model, tmp_path)(WORDS), first, atol=1e-6)
    assert not caplog.text


def test_a_word_of_lone_surrogates_is_cached(tmp_path):
    cache, unit = TextCache(tmp_path), torch.eye(4)[0]
    cache.write("key", {"\udcff": unit})
    assert torch.equal(cache.read("key", ["\udcff"], 4)["\udcff"], unit)


def test_a_failing_write_is_warned_of_once_and_does_not_end_the_cache(
    clip_model,
    tmp_path,
    monkeypatch,
    caplog,
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    text = embedder(clip_model, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("ovseg.clip.text.save_file", full)
        text(["cat"])
        text(["dog"])
    assert caplog.text.count("kept in memory only") == 1 and "disk full" in caplog.text
    text(["bus"])
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_threads_get_what_one_gets(clip_model, tmp_path):
    """Eight threads embed new words at once: with one embedder, and with one each, all with one folder."""
    words = [f"thing {n}" for n in range(40)]
    lists = [words[n : n + 12] for n in range(0, 32, 4)]
    expected = [embedder(clip_model)(part) for part in lists]
    each = [embedder(clip_model, tmp_path / "eight") for _ in lists]
    for texts in ([embedder(clip_model, tmp_path / "one")] * 8, each):
        barrier = threading.Barrier(8)

        def ask(text: TextEmbedder, part: list[str], barrier: threading.Barrier = barrier) -> torch.Tensor:
            barrier.wait()
            return text(part)

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(ask, texts, lists))
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    for folder in ("one", "eight"):
        assert len([file for file in (tmp_path / folder).rglob("*") if file.is_file()]) == 40


def test_an_embedder_can_be_copied_and_sent(clip_model, tmp_path):
    text = embedder(clip_model, tmp_path)
    text.autocast = _no_autocast  # the test's own is a closure
    first = text(["cat"])
    for again in (copy.deepcopy(text), pickle.loads(pickle.dumps(text))):
        assert torch.allclose(again(["cat", "dog"])[:1], first)


def _no_autocast(device_type: str):
    return torch.autocast(device_type, enabled=False)


def test_too_long_a_prompt_leaves_the_lock_free(clip_model):
    text = embedder(clip_model)
    with pytest.raises(OvsegError):
        text(["very " * 100])
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(text, ["cat"]).result(timeout=20).shape == (1, 16)
