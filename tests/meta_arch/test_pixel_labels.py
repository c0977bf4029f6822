"""The best class of each pixel is that of the scores of all classes, however it is computed."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ovseg.meta_arch import mask_sums, pixel_labels
from ovseg.meta_arch.mask_sums import render_labels, render_scores, resized_labels
from ovseg.meta_arch.pixel_labels import best_classes, enlarged_labels, summed_labels

SIZES = [(30, 40), (61, 77), (20, 33), (17, 160)]  # of results, from maps of 30 x 40
BOUND = 1e-6  # of the scores around a pixel, within which rounding differs


def assert_best(labels: Tensor, best: Tensor, scores: Tensor, around: Tensor) -> None:
    """Labels are the argmax of scores (K, H, W), and scores the maximum, up to rounding of the scores around."""
    bound = BOUND * F.interpolate(around[None, None], labels.shape, mode="bilinear")[0, 0]
    assert labels.dtype == torch.int64 and best.dtype == torch.float32
    assert ((best - scores.max(0).values).abs() <= bound).all()
    assert (scores.gather(0, labels[None])[0] >= scores.max(0).values - bound).all()


@pytest.fixture
def _blocks(monkeypatch):
    """Blocks and strips of few pixels, so that small maps have several."""
    monkeypatch.setattr(pixel_labels, "BLOCK", 1)
    monkeypatch.setattr(pixel_labels, "STRIP", 1)
    monkeypatch.setattr(pixel_labels, "MOST_CLASSES", 64)


def masks_and_weights(kind: str, classes: int, masks: int = 20) -> tuple[Tensor, Tensor]:
    """Return weights (n, K) and maps (n, 30, 40) of a kind, many of them with equal or nearly equal scores."""
    torch.manual_seed(0)
    weights = torch.rand(masks, classes).softmax(1)
    maps = torch.rand(masks, 30, 40)
    if kind == "regions":  # of masks that do not overlap, with soft edges
        rough = F.interpolate(torch.randn(1, masks, 4, 5), (30, 40), mode="bilinear")[0]
        maps = (30 * rough).softmax(0)
    elif kind == "binary":
        maps = (maps > 0.9).float()
    elif kind == "equal classes":
        weights = weights[:, :1].expand(-1, classes).contiguous()
    elif kind == "nearly equal classes":
        weights = weights[:, :1] * (1 + 1e-7 * torch.randint(-3, 4, weights.shape))
    elif kind == "zeros":
        maps[:, :, :25], weights[:10] = 0, 0
    elif kind == "negative":
        weights = weights - weights.mean()
    elif kind == "large and small":
        maps = 10 ** (12 * maps - 6)
    elif kind == "gradients":  # a class between two others wins where none of its neighbours has it
        maps = torch.stack([torch.linspace(0, 1, 40).expand(30, 40) ** (n + 1) for n in range(masks)])
    return weights, maps


def enlarged(scores: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    best, labels = scores.max(0)
    return enlarged_labels(labels, best, lambda places: scores.flatten(1)[:, places].T.contiguous(), size)


KINDS = (
    "noise", "regions", "binary", "equal classes", "nearly equal classes", "zeros", "negative", "large and small",
    "gradients",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.usefixtures("_blocks")
def test_labels_are_the_argmax(kind, biased):
    weights, maps = masks_and_weights(kind, 150)
    bias = torch.rand(150) * weights.abs().max() if biased else None
    few = torch.einsum("nk,nhw->khw", weights, maps)
    around = torch.einsum("nk,nhw->khw", weights.abs(), maps.abs()).amax(0) + (bias.max() if biased else 0)
    for size, mode in itertools.product(SIZES, ("bilinear", "nearest")):
        if mode == "nearest":
            around = around.amax().expand(30, 40)
        scores = render_scores(weights, maps, size, 64, bias, mode)
        assert_best(*render_labels(weights, maps, size, 64, bias, mode), scores, around)
        if not biased and mode == "bilinear":
            scores = F.interpolate(few[None], size, mode="bilinear")[0]
            assert_best(*resized_labels(few, size, 64), scores, around)
            assert_best(*enlarged(few, size), scores, around)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_compute_what_chunks_of_classes_do(kind):
    weights, maps = masks_and_weights(kind, 150)
    labels, best = summed_labels(weights, maps, None)
    chunks = mask_sums.scores_in_chunks(weights, maps, (30, 40), 64, None, "bilinear")
    expected_labels, expected = best_classes(chunks, (30, 40), maps.device)
    torch.testing.assert_close(best, expected, rtol=BOUND, atol=1e-7)
    if kind in ("regions", "zeros", "equal classes"):
        assert torch.equal(labels, expected_labels)


@pytest.mark.parametrize("size", [(30, 40), (61, 77)])
@pytest.mark.usefixtures("_blocks")
def test_equal_classes_have_the_lowest_index(size):
    """Words with the same text have the same scores; the order of numbers of other classes does not matter."""
    weights, maps = masks_and_weights("regions", 150)
    weights[:, 77], weights[:, 149] = weights[:, 12], weights[:, 0]
    labels, _ = render_labels(weights, maps, size, 64)
    assert not ((labels == 77) | (labels == 149)).any()
    same, _ = render_labels(weights[:, :1].repeat(1, 150), maps, size, 64)
    assert not same.any()


def test_scores_of_uncovered_pixels_are_exactly_zero():
    """Zero means that no mask covers a pixel (Segmentation.from_maps)."""
    weights, maps = masks_and_weights("zeros", 150)
    for size in SIZES:
        labels, best = render_labels(weights, maps, size, 64)
        zero = render_scores(weights, maps, size, 64).max(0).values == 0
        assert zero.any() and torch.equal(best == 0, zero) and not labels[zero].any()


def test_scores_between_places_of_one_class_are_equal_to_the_bit():
    torch.manual_seed(0)
    scores = torch.rand(40, 12, 15)
    scores[7, :, :9] += 1
    labels, best = enlarged(scores, (83, 101))
    whole = F.interpolate(scores[None], (83, 101), mode="bilinear")[0]
    assert (labels[:, :50] == 7).all()
    assert torch.equal(best[:, :50], whole[7, :, :50])


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_maps_of_few_places(shape):
    torch.manual_seed(0)
    scores = torch.rand(30, *shape)
    expected = F.interpolate(scores[None], (40, 50), mode="bilinear")[0]
    assert_best(*resized_labels(scores, (40, 50), 64), expected, torch.ones(shape))


def test_not_a_number_keeps_labels_in_range():
    weights, maps = masks_and_weights("noise", 150)
    maps[0, 3, 4] = torch.nan
    for size in SIZES:
        labels, _ = render_labels(weights, maps, size, 64)
        assert labels.min() >= 0 and labels.max() < 150


def test_other_types_and_gradients_take_chunks_of_classes():
    weights, maps = masks_and_weights("noise", 150)
    labels, best = render_labels(weights.double(), maps.double(), (61, 77), 64)
    assert best.dtype == torch.float64 and labels.shape == (61, 77)
    weights.requires_grad_()
    render_labels(weights, maps, (61, 77), 64)[1].sum().backward()
    assert weights.grad is not None
