"""``MODEL.SEEN_BIAS``, which is subtracted from the scores of pixels, in every rendering and per pixel."""

from __future__ import annotations

import pytest
import torch

from ovseg.meta_arch.per_pixel import PerPixel
from ovseg.meta_arch.pixel_scores import RENDERINGS, AreaWeightedSum, ClassWinner, MaskSum
from ovseg.proposals.views import Part
from ovseg.vocabulary import Vocabulary

WORDS = Vocabulary.from_class_names(["a", "b", "c"])
BOTH = ("sem_seg", "label_map")
BIAS = torch.tensor([0.25, 0.0, 0.25])
KINDS = {"mask_sum": MaskSum(2), "class_winner": ClassWinner(0.5, 2), "area_weighted_sum": AreaWeightedSum(2)}


def scene():
    torch.manual_seed(0)
    masks = torch.rand(6, 20, 30)
    masks[:, :, :5] = 0  # no mask is here
    return torch.rand(6, 3).softmax(1), masks


@pytest.mark.parametrize("size", [(20, 30), (41, 63), (10, 12)])
@pytest.mark.parametrize("kind", RENDERINGS)
def test_renderings(kind, size):
    scores, masks = scene()
    plain = KINDS[kind](scores, masks, WORDS, size, BOTH)
    result = KINDS[kind](scores, masks, WORDS, size, BOTH, BIAS)
    torch.testing.assert_close(result["sem_seg"], plain["sem_seg"] - BIAS[:, None, None])
    assert torch.equal(result["label_map"], result["sem_seg"].argmax(0))
    assert (result["label_map"] != plain["label_map"]).any()
    zero = KINDS[kind](scores, masks, WORDS, size, BOTH, torch.zeros(3))
    torch.testing.assert_close(zero["sem_seg"], plain["sem_seg"])


@pytest.mark.parametrize("kind", RENDERINGS)
def test_pixels_without_a_mask_have_no_score(kind):
    scores, masks = scene()
    result = KINDS[kind](scores, masks, WORDS, (20, 30), ("label_map",), torch.full((3,), 0.25))
    assert not result["score_map"][:, :5].any()
    assert (result["score_map"][:, 6:] != 0).float().mean() > 0.8


class Scorer(Part):
    """Scorer that returns the same map for every image."""

    def forward(self, views, words):
        torch.manual_seed(0)
        return [torch.rand(3, 4, 5) for _ in words]


def test_per_pixel():
    request = {"image": torch.zeros(3, 8, 10), "class_names": ["a", "b", "c"], "seen": [1, 0, 1], "outputs": BOTH}
    plain, biased = (PerPixel(scorer=Scorer(), seen_bias=bias).eval()([request])[0] for bias in (0.0, 0.25))
    torch.testing.assert_close(biased["sem_seg"], plain["sem_seg"] - BIAS[:, None, None])
    assert torch.equal(biased["label_map"], biased["sem_seg"].argmax(0))
