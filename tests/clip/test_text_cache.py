"""Remembered text embeddings are believed only when they are whole, and of the word that is asked."""

from __future__ import annotations

import copy
import logging
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from ovseg.clip.text_cache import TextCache
from safetensors import safe_open
from safetensors.torch import save_file

from ovseg.clip.text import TextEmbedder
from ovseg.errors import OvsegError
from tests.clip.test_text import clip_model, embedder  # noqa: F401 - a fixture

WORDS = ("cat", "dog", "bus, coach")


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
def test_a_damaged_entry_is_computed_again(clip_model, tmp_path, caplog, how):  # noqa: F811
    first = embedder(clip_model, tmp_path)(WORDS)
    files = sorted(tmp_path.rglob("*.safetensors"))
    whole = {file: content(file)[0].clone() for file in files}
    for file, other in ((files[0], files[1]), (files[2], files[1])):
        damage(file, other, how)
    again = embedder(clip_model, tmp_path)
    with caplog.at_level(logging.WARNING):
        assert torch.allclose(again(WORDS), first, atol=1e-6)
    assert caplog.text.count("damaged text embedding") == 1
    for file, before in whole.items():  # entries are written anew
        assert torch.allclose(content(file)[0], before, atol=1e-6)
    caplog.clear()
    assert torch.allclose(embedder(clip_model, tmp_path)(WORDS), first, atol=1e-6)
    assert not caplog.text


def test_a_word_of_lone_surrogates_is_remembered(tmp_path):
    cache, unit = TextCache(tmp_path), torch.eye(4)[0]
    cache.write("key", {"\udcff": unit})
    assert torch.equal(cache.read("key", ["\udcff"], 4)["\udcff"], unit)


def test_a_failing_write_is_warned_of_once_and_does_not_end_the_cache(
    clip_model,  # noqa: F811
    tmp_path,
    monkeypatch,
    caplog,
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    text = embedder(clip_model, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("ovseg.clip.text_cache.save_file", full)
        text(["cat"])
        text(["dog"])
    assert caplog.text.count("kept in memory only") == 1 and "disk full" in caplog.text
    text(["bus"])
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_threads_get_what_one_gets(clip_model, tmp_path):  # noqa: F811
    """Eight threads ask for new words at once: with one embedder, and with one for each, all with one folder."""
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


def test_an_embedder_can_be_copied_and_sent(clip_model, tmp_path):  # noqa: F811
    text = embedder(clip_model, tmp_path)
    text.autocast = _no_autocast  # the test's own is a closure
    first = text(["cat"])
    for again in (copy.deepcopy(text), pickle.loads(pickle.dumps(text))):
        assert torch.allclose(again(["cat", "dog"])[:1], first)


def _no_autocast(device_type: str):
    return torch.autocast(device_type, enabled=False)


def test_too_long_a_prompt_leaves_the_lock_free(clip_model):  # noqa: F811
    text = embedder(clip_model)
    with pytest.raises(OvsegError):
        text(["very " * 100])
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(text, ["cat"]).result(timeout=20).shape == (1, 16)
