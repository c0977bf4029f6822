"""Fusions of scores, the maximum over synonyms, and the weights of CLIP that the systems use by default."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from ovseg.clip import adapter
from ovseg.config import load_cfg
from ovseg.errors import OvsegError
from ovseg.naming import GeometricMean, ObjectNormalizedMean, Scores, SeenUnseenMean, SingleNamer
from ovseg.naming.scores import best_synonym, normalise_over_classes, recalled_from_void
from ovseg.vocabulary import Vocabulary

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def scores() -> tuple[Scores, Scores]:
    """Scores of 6 masks and 3 classes: all by embeddings, with "no object", and 4 of them by CLIP."""
    random = torch.Generator().manual_seed(0)
    own = torch.randn(6, 4, generator=random).softmax(-1)[:, :-1]
    seen = torch.tensor([True, False, True, True, False, True])
    return Scores(own), Scores(torch.randn(4, 3, generator=random).softmax(-1), seen)


def test_scores_of_masks_that_were_not_seen():
    scores = Scores(torch.tensor([[0.2, 0.8]]), torch.tensor([False, True]))
    assert torch.equal(scores.of_all(unseen=0.5), torch.tensor([[0.5, 0.5], [0.2, 0.8]]))
    assert Scores(scores.probabilities).of_all(unseen=0.5) is scores.probabilities


def test_the_maximum_over_the_synonyms_of_a_class():
    words = Vocabulary.from_class_names([("sky", "water"), "striped cat", ["a", "b"]])
    logits = torch.tensor([[1.0, 3.0, 2.0, 5.0, 4.0, 9.0], [3.0, 1.0, 2.0, 4.0, 5.0, -9.0]])
    assert best_synonym(logits, words).tolist() == [[3, 2, 5, 9], [3, 2, 5, -9]]
    plain = Vocabulary.from_class_names(["sky", "cat"])
    assert torch.equal(best_synonym(logits[:, :3], plain), logits[:, :3])


def test_a_single_namer(scores):
    own, clip = scores
    assert torch.equal(SingleNamer()([clip])[clip.seen], clip.probabilities)
    assert not SingleNamer()([clip])[~clip.seen].any()
    with pytest.raises(OvsegError, match=r"two namers: set MODEL\.FUSION\.NAME to GeometricMean"):
        SingleNamer()([own, clip])


def test_geometric_mean(scores):
    own, clip = scores
    fused = GeometricMean(0.7)([own, clip])
    torch.testing.assert_close(fused[clip.seen], own.probabilities[clip.seen] ** 0.3 * clip.probabilities**0.7)
    torch.testing.assert_close(fused[~clip.seen], own.probabilities[~clip.seen] ** 0.3)
    assert torch.equal(GeometricMean(0.0)([own, clip]), clip.of_all(unseen=0.0))


@pytest.mark.parametrize(
    ("variant", "dataset", "log"),
    [
        ("auto", "ade20k_full_sem_seg_val", True),
        ("auto", "pascal_context_459_sem_seg_val", True),
        ("auto", "ade20k_sem_seg_val", False),
        ("auto", None, False),
        ("log", None, True),
        ("plain", "ade20k_full_sem_seg_val", False),
    ],
)
def test_variants_of_scans_fusion(scores, variant, dataset, log):
    own, clip = scores
    fused = ObjectNormalizedMean(0.7, variant)([own, clip], dataset)
    assert torch.allclose(fused.sum(1), own.probabilities.sum(1), atol=1e-6) == log
    assert torch.equal(fused, GeometricMean(0.7)([own, clip])) != log
    alone = ObjectNormalizedMean(0.0, variant)([own, clip], dataset)
    assert torch.equal(alone[clip.seen], clip.probabilities)  # never with CLIP alone
    assert torch.equal(ObjectNormalizedMean(0.7, variant)([own], dataset), own.probabilities)  # nor without CLIP


def test_the_log_variant_is_the_originals_formula():
    """Compare with the steps of the specification of SCAN, section 9, step 5, in float64."""
    torch.manual_seed(0)
    own = torch.randn(20, 8).softmax(-1)[:, :-1]
    fused = own**0.3 * torch.rand(20, 7) ** 0.7
    void = 1 - own.double().sum(-1, keepdim=True)
    scores_ = fused.double().log().softmax(-1) * (1 - void)
    expected = (torch.cat((scores_, void), dim=1) + 1e-8).log().softmax(-1)[:, :-1]
    torch.testing.assert_close(normalise_over_classes(fused, own), expected.float())
    nothing = normalise_over_classes(torch.zeros(1, 7), own[:1])  # NaN in the original
    assert nothing.isfinite().all() and nothing.max() < 1e-5


class Found(Exception):
    """Raised in place of building CLIP."""


@pytest.mark.parametrize(
    ("config", "architecture", "default"),
    [
        ("scan_vitL.yaml", "SCAN", "datacomp_xl_s13b_b90k"),
        ("scan_vitL_demo.yaml", "SCANDEMO", "datacomp_xl_s13b_b90k"),
        ("ovseg_swinB_vitL_bs32_120k.yaml", "OVSeg", "openai"),
        ("ovseg_swinB_vitL_demo.yaml", "OVSegDEMO", "openai"),
    ],
)
def test_default_weights_of_clip(monkeypatch, config, architecture, default):
    found = []

    def find_clip(name, weights="", *, default="openai"):
        found.append((weights, default))
        raise Found

    monkeypatch.setattr(adapter, "find_clip", find_clip)
    cfg = load_cfg(CONFIGS / config, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    assert architecture == cfg.MODEL.META_ARCHITECTURE
    with pytest.raises(Found):
        build_model(cfg)
    assert found == [("", default)]


def test_the_other_namer_takes_from_void():
    own = torch.tensor([[0.2, 0.2], [0.5, 0.1], [0.0, 0.0], [0.3, 0.7]])  # void 0.6, 0.4, 1, 0
    other = torch.tensor([[0.9, 0.1], [0.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    expected = torch.tensor([[0.335, 0.335], [0.5, 0.1], [0.0, 0.0], [0.3, 0.7]])  # 1 - 0.6 x (1 - 0.45) = 0.67
    torch.testing.assert_close(recalled_from_void(own, other, 0.5), expected)
    seen = torch.tensor([True, False, True, True])  # the second row has no scores
    scores = [Scores(own), Scores(other[seen], seen)]
    fused = GeometricMean(0.5, void_by_other=0.5)(scores)
    rows = [[0.335**0.5 * 0.9**0.5, 0.335**0.5 * 0.1**0.5], [0.5**0.5, 0.1**0.5], [0, 0], [0.15**0.5, 0.35**0.5]]
    torch.testing.assert_close(fused, torch.tensor(rows))
    log = ObjectNormalizedMean(0.5, "log", void_by_other=0.5)(scores)
    torch.testing.assert_close(log[0].sum(), torch.tensor(0.67), rtol=0, atol=1e-6)
    assert torch.equal(log, normalise_over_classes(fused, recalled_from_void(own, scores[1].of_all(0.0), 0.5)))
    assert torch.equal(GeometricMean(0.5, 0.0)(scores), GeometricMean(0.5)(scores))
    simbaseline = SeenUnseenMean(0.5, void_by_other=0.5)
    same = simbaseline(scores, seen=torch.tensor([True, False]))  # its weights are equal at 0.5
    torch.testing.assert_close(same, fused)  # powers of numbers and of tensors may round differently
