"""Vectors of words from a file in place of CLIP's text tower."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from ovseg.clip.adapter import ClipAdapter
from ovseg.clip.table import TableText
from ovseg.config.limits import check_config
from ovseg.errors import OvsegError
from ovseg.naming import QueryEmbedding
from ovseg.vocabulary import Vocabulary
from tests.tiny_clip import tiny_cfg

VECTORS = {"sky": [3.0, 4.0, 0.0], "red car": [0.0, 0.0, 2.0], "file": [1.0, 1.0, 1.0]}


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "words.npz"
    np.savez(path, names=list(VECTORS), vectors=np.array(list(VECTORS.values())))
    return path


def test_rows(table, tmp_path):
    assert TableText(table, unit=False)(["red car", "sky", "sky"]).tolist() == [[0, 0, 2], [3, 4, 0], [3, 4, 0]]
    unit = TableText(table)
    torch.testing.assert_close(unit(["sky"], ["a photo of a {}."]), torch.tensor([[0.6, 0.8, 0]]))
    assert (unit.dim, unit(["sky"]).dtype) == (3, torch.float32)
    by_word = tmp_path / "by_word.npz"
    np.savez(by_word, **{name: np.array(VECTORS[name], np.float16) for name in ("sky", "red car")})
    assert torch.equal(TableText(by_word)(["sky", "red car"]), unit(["sky", "red car"]))


def test_a_word_that_is_missing(table):
    with pytest.raises(OvsegError, match=r"words.npz .* has no vector of the word 'red cars'; it has 'red car': add"):
        TableText(table)(["sky", "red cars"])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "holds 0 vectors"),
        ({"names": ["a"], "vectors": np.ones((2, 3))}, "2 vectors for 1 names"),
        ({"names": ["a", "a"], "vectors": np.ones((2, 3))}, "'a' has more than one vector"),
        ({"names": [1], "vectors": np.ones((1, 3))}, "1 vectors for 1 names"),
        ({"a": np.ones(3), "b": np.ones(4)}, "'b' has float64 of shape .4., not"),
        ({"a": np.array([1, np.nan])}, "'a' has float64"),
        ({"a": np.array(["x"])}, "'a' has <U1"),
        ({"a": np.zeros(3)}, "the vector of 'a' is zero"),
    ],
)
def test_bad_tables(arrays, message, tmp_path):
    np.savez(tmp_path / "words.npz", **arrays)
    with pytest.raises(OvsegError, match=f"words.npz .* is not a table of words: .*{message}"):
        TableText(tmp_path / "words.npz")


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(OvsegError, match=r"cannot be read \(No such file"):
        TableText(tmp_path / "words.npz")
    (tmp_path / "words.npz").write_text("sky 1 2 3")
    with pytest.raises(OvsegError, match="is not an npz file"):
        TableText(tmp_path / "words.npz")


def adapter(tmp_path, table, cosine):
    return ClipAdapter(tiny_cfg(tmp_path, TEXT_ENCODER="table", TEXT_TABLE=str(table), TABLE_COSINE=cosine)).eval()


@pytest.mark.parametrize("cosine", [True, False])
def test_queries(tmp_path, table, cosine):
    """The namer of queries, and any head that is trained with the table, works with the vectors as with CLIP's."""
    clip_adapter = adapter(tmp_path, table, cosine)
    assert clip_adapter.embed_dim == 3
    embeddings = torch.tensor([[1.0, 2.0, 2.0]])
    logits = QueryEmbedding(clip_adapter).class_logits(Vocabulary.from_class_names(["sky", "red car"]))(embeddings)
    expected = [100 * 11 / 15, 100 * 2 / 3] if cosine else [11.0, 4.0]
    assert logits[0, :2].tolist() == pytest.approx(expected)
    logits[0, 2].backward()  # "no object" is trained
    assert clip_adapter.non_object_embedding.grad.any()


def test_a_word_of_a_model_that_is_missing(tmp_path, table):
    with pytest.raises(OvsegError, match=r"\(MODEL.CLIP_ADAPTER.TEXT_TABLE\) has no vector of the word 'grass'"):
        adapter(tmp_path, table, True).text_matrix(["grass"])


def test_crops_are_not_compared_with_other_vectors(tmp_path, table):
    model = build_model(tiny_cfg(tmp_path, TEXT_ENCODER="table", TEXT_TABLE=str(table))).eval()
    request = {"image": torch.zeros(3, 20, 20), "class_names": ["sky"]}
    with pytest.raises(OvsegError, match=r"have 3 numbers, but features of the image 16: set .*TEXT_ENCODER to clip"):
        model.name_masks(request, torch.ones(1, 20, 20))


@pytest.mark.parametrize(("encoder", "path"), [("table", ""), ("clip", "words.npz")])
def test_key_and_file_belong_together(tmp_path, encoder, path):
    cfg = tiny_cfg(tmp_path, TEXT_ENCODER=encoder, TEXT_TABLE=path)
    with pytest.raises(OvsegError, match="TEXT_TABLE is"):
        check_config(cfg)
