"""The similarity of images and captions, and the contrastive loss (equations 2 to 4)."""

import math

import pytest
import torch

from ovseg.grounding import best_word, grounding_loss, image_caption_similarity, region_word_cosine

torch.manual_seed(5)
REGIONS = torch.randn(4, 6, 8, dtype=torch.float64)
WORDS = torch.randn(4, 3, 8, dtype=torch.float64)
COUNTS = torch.tensor([3, 1, 2, 3])


def loss_of(regions, words, counts, tau=0.07, usable=None):
    return grounding_loss(image_caption_similarity(regions, words, counts, tau), tau, usable)


@pytest.mark.parametrize(("batch", "loss"), [(2, 1.386), (16, 5.545), (64, 8.318), (256, 11.090), (1024, 13.863)])
def test_loss_without_signal(batch, loss):
    """The specification's section 9: 2 ln B."""
    assert grounding_loss(torch.full((batch, batch), 0.3), 0.07).item() == pytest.approx(loss, abs=1e-3)


def test_loss_of_identical_images_and_captions():
    regions, words = REGIONS[:1].expand(4, -1, -1), WORDS[:1].expand(4, -1, -1)
    assert loss_of(regions, words, COUNTS[:1].expand(4)).item() == pytest.approx(2 * math.log(4), abs=1e-12)
    similarity = image_caption_similarity(regions, WORDS, COUNTS, 0.07)  # captions differ
    assert torch.equal(similarity, similarity[:1].expand(4, -1))
    one_direction = -(similarity / 0.07).log_softmax(0).diagonal().mean()
    assert one_direction.item() == pytest.approx(math.log(4), abs=1e-12)


@pytest.mark.parametrize(
    ("matched", "tau", "batch", "loss"),
    [
        (0.3, 0.07, 16, 1.243),
        (0.3, 0.07, 1024, 8.181),
        (0.5, 0.07, 16, 0.097),
        (0.5, 0.07, 1024, 2.952),
        (0.3, 0.02, 1024, 0.091),
    ],
)
def test_loss_of_matched_pairs(matched, tau, batch, loss):
    """The specification's section 9: pairs have the similarity ``matched``, all others 0.1."""
    similarity = torch.full((batch, batch), 0.1).fill_diagonal_(matched)
    assert grounding_loss(similarity, tau).item() == pytest.approx(loss, abs=1e-3)


@pytest.mark.parametrize(
    ("tau", "loss", "spread", "mean"), [(1, 5.544, 0.005, 0.002), (0.07, 5.555, 0.03, 0.022), (0.01, 5.838, 0.2, 0.094)]
)
def test_loss_of_random_regions_and_words(tau, loss, spread, mean):
    """The specification's section 9: 16 images of 128 regions, 8 words, 640 dimensions; and the mean of G."""
    torch.manual_seed(0)
    regions, words, counts = torch.randn(16, 128, 640), torch.randn(16, 8, 640), torch.full((16,), 8)
    similarity = image_caption_similarity(regions, words, counts, tau)
    assert similarity.mean().item() == pytest.approx(mean, abs=2e-3)
    assert grounding_loss(similarity, tau).item() == pytest.approx(loss, abs=spread)


def test_order_of_regions_and_of_the_batch_is_free():
    expected = loss_of(REGIONS, WORDS, COUNTS)
    batch, regions = torch.randperm(4), torch.randperm(6)
    shuffled = loss_of(REGIONS[batch][:, regions], WORDS[batch], COUNTS[batch])
    torch.testing.assert_close(shuffled, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("filling", [0.0, 7.0, math.nan, math.inf])
def test_entries_beyond_the_words_have_no_influence(filling):
    padded = torch.cat((WORDS, torch.zeros(4, 2, 8)), 1)
    padded[torch.arange(5) >= COUNTS[:, None]] = filling
    regions = REGIONS.clone().requires_grad_()
    loss = loss_of(regions, padded, COUNTS)
    loss.backward()
    torch.testing.assert_close(loss.detach(), loss_of(REGIONS, WORDS, COUNTS), rtol=0, atol=1e-12)
    assert regions.grad.isfinite().all()


def test_caption_without_words_leaves_the_batch():
    counts = torch.tensor([3, 0, 2, 3])
    similarity = image_caption_similarity(REGIONS, WORDS, counts, 0.07)
    assert similarity[:, 1].eq(0).all() and similarity.isfinite().all()
    kept = torch.tensor([0, 2, 3])
    expected = loss_of(REGIONS[kept], WORDS[kept], counts[kept])
    torch.testing.assert_close(grounding_loss(similarity, 0.07, counts > 0), expected)


def test_no_usable_caption():
    regions, tau = REGIONS.clone().requires_grad_(), torch.tensor(0.07, requires_grad=True)
    counts = torch.zeros(4, dtype=torch.int64)
    loss = loss_of(regions, torch.zeros(4, 0, 8).double(), counts, tau, counts > 0)
    loss.backward()
    assert loss == 0 and regions.grad.eq(0).all() and tau.grad == 0


def test_similarity_is_a_weighted_mean_of_cosines():
    similarity = image_caption_similarity(REGIONS, WORDS, COUNTS, 0.07)
    cosines = region_word_cosine(REGIONS[2], WORDS[1, :1])[:, 0]
    torch.testing.assert_close(similarity[2, 1], ((cosines / 0.07).softmax(0) * cosines).sum())
    assert similarity.abs().max() <= 1


def test_zero_vectors_have_finite_cosines_and_gradients():
    regions = torch.zeros(2, 3, requires_grad=True)
    cosines = region_word_cosine(regions, torch.eye(3))
    cosines.sum().backward()
    assert cosines.eq(0).all() and regions.grad.isfinite().all()


def test_best_word_of_each_category():
    scores = torch.tensor([[1.0, 5.0, -2.0, -3.0]])
    assert best_word(scores, torch.tensor([2, 2, 0, 0]), 4).tolist() == [[-2.0, -math.inf, 5.0, -math.inf]]
