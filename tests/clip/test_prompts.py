"""Learned prompts: their input of the text tower, training, caching, and files."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model

from ovseg.checkpoint import load_weights, save_safetensors, save_torch
from ovseg.clip.adapter import ClipAdapter
from ovseg.config import load_cfg
from ovseg.errors import OvsegError
from tests.tiny_clip import TINY, tiny_cfg
from tests.tiny_model import make_tiny_model

WORDS = ["cat", "traffic light"]
WIDTH = TINY["text_cfg"]["width"]


@pytest.fixture
def adapter_of(tmp_path):
    """Return a function that makes an adapter with learned prompts of a shape."""

    def make(*shape, **keys):
        cfg = tiny_cfg(tmp_path, **{"PROMPT_DIM": WIDTH, "PROMPT_SHAPE": list(shape)} | keys)
        torch.manual_seed(0)
        return ClipAdapter(cfg, text="learnable", mask_prompt_depth=None)

    return make


def test_the_vectors_of_a_template_give_its_embedding(adapter_of):
    """With the embeddings of "a photo of" before the word, the result is that of the template with a final dot."""
    adapter = adapter_of(3, 0)
    table = adapter.clip_model.token_embedding.weight
    with torch.no_grad():
        adapter.prompt_learner.prefix_prompt.copy_(table[adapter.text.tokenizer.encode("a photo of")])
        learned, written = adapter.text(WORDS), adapter.text(WORDS, ["a photo of {}."])
    torch.testing.assert_close(learned, written)


def test_names_in_the_state(adapter_of):
    names = {name for name in adapter_of(2, 1).state_dict() if "prompt_learner" in name}
    signals = {f"{signal}_signal" for signal in ("start", "dot", "end", "pad")}
    assert names == {f"prompt_learner.{name}" for name in (*signals, "prefix_prompt", "suffix_prompt")}
    assert "prompt_learner.suffix_prompt" not in adapter_of(2, 0).state_dict()


def test_gradients_reach_the_vectors_and_nothing_else(adapter_of):
    adapter = adapter_of(2, 1)
    adapter.text(WORDS).sum().backward()
    learner = adapter.prompt_learner
    assert learner.prefix_prompt.grad.any() and learner.suffix_prompt.grad.any()
    assert not any(p.requires_grad for p in adapter.clip_model.parameters())


def test_changed_vectors_change_cached_embeddings(adapter_of):
    adapter = adapter_of(2, 1)
    with torch.no_grad():
        first, again = adapter.text(WORDS), adapter.text(WORDS)
        adapter.prompt_learner.prefix_prompt += 1
        changed = adapter.text(WORDS)
    assert torch.equal(first, again)
    assert not torch.allclose(first, changed)
    torch.testing.assert_close(changed, adapter.text(WORDS).detach())  # with gradients, not from the cache


def test_long_words(adapter_of):
    adapter = adapter_of(2, 1)
    long = "cat " * (adapter.prompt_learner.room + 1)
    with pytest.raises(OvsegError, match=r"tokens, the learned prompts leave room for \d+: shorten"):
        adapter.text([long])
    truncating = adapter_of(2, 1, TRUNCATE_PROMPTS=True)
    with torch.no_grad():
        assert truncating.text([long]).isfinite().all()


@pytest.mark.parametrize("save", [save_torch, save_safetensors])
def test_prompt_checkpoint(adapter_of, tmp_path, save):
    """Tensors are found by what follows prompt_learner; they are frozen; other shapes and files are refused."""
    adapter = adapter_of(2, 1)
    state = {f"clip_adapter.{name}": x for name, x in adapter.state_dict().items() if "prompt_learner" in name}
    state = {name: tensor + 1 if "prompt" in name.rpartition(".")[2] else tensor for name, tensor in state.items()}
    path = tmp_path / "prompts.pth"
    if save is save_torch:
        save({"model": state, "iteration": 3}, path)
    else:
        path = path.with_suffix(".safetensors")
        save(state, path)
    loaded = adapter_of(2, 1, PROMPT_CHECKPOINT=str(path)).prompt_learner
    assert torch.equal(loaded.prefix_prompt, state["clip_adapter.prompt_learner.prefix_prompt"])
    assert not loaded.trains
    with pytest.raises(OvsegError, match=r"prefix_prompt of shape \[2, .*set MODEL.CLIP_ADAPTER.PROMPT_SHAPE"):
        adapter_of(3, 1, PROMPT_CHECKPOINT=str(path))
    with pytest.raises(OvsegError, match=r"suffix_prompt, which MODEL.CLIP_ADAPTER.PROMPT_SHAPE"):
        adapter_of(2, 0, PROMPT_CHECKPOINT=str(path))
    save_safetensors({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(OvsegError, match=r"has no prompt_learner.prefix_prompt: give a file of tools"):
        adapter_of(2, 1, PROMPT_CHECKPOINT=str(tmp_path / "other.safetensors"))
    with pytest.raises(OvsegError, match=r"gone.pth does not exist: check MODEL.CLIP_ADAPTER.PROMPT_CHECKPOINT"):
        adapter_of(2, 1, PROMPT_CHECKPOINT=str(tmp_path / "gone.pth"))


def test_wrong_sizes(adapter_of):
    with pytest.raises(OvsegError, match=r"PROMPT_DIM is 7, but the text tower.*set the key to"):
        adapter_of(2, 1, PROMPT_DIM=7)
    with pytest.raises(OvsegError, match=r"PROMPT_SHAPE is \[0, 0\]: give two numbers"):
        adapter_of(0, 0)


def test_marks_come_from_the_table_of_a_checkpoint(tmp_path):
    """Weights without learned prompts, such as OVSeg's, give the marks of the table, not those of random weights."""
    config, weights = make_tiny_model(tmp_path)
    settings = {
        "MODEL.META_ARCHITECTURE": "SimBaseline",
        "MODEL.CLIP_ADAPTER.PROMPT_LEARNER": "learnable",
        "MODEL.CLIP_ADAPTER.PROMPT_DIM": 16,
        "MODEL.CLIP_ADAPTER.MASK_PROMPT_DEPTH": 3,  # the default
        "MODEL.CLIP_ADAPTER.MASK_PROMPT_FWD": False,
    }
    model = build_model(load_cfg(config, settings))
    load_weights(model, weights)
    learner, table = model.clip_adapter.prompt_learner, model.clip_adapter.clip_model.token_embedding.weight
    for signal, token in learner.signal_tokens.items():
        assert torch.equal(getattr(learner, signal), table[token : token + 1])
