"""The Dice loss of class-agnostic masks, pooling, and pseudo-masks."""

import math

import pytest
import torch

from ovseg.errors import OvsegError
from ovseg.proposals.class_agnostic import best_match_dice_loss, dice
from ovseg.proposals.pooling import pool_regions
from ovseg.proposals.pseudo_labels import pseudo_masks

torch.manual_seed(3)
LOGITS = torch.randn(2, 5, 6, 7, dtype=torch.float64)
LABELS = [torch.rand(3, 6, 7) > 0.6, torch.rand(2, 6, 7) > 0.3]


@pytest.mark.parametrize(
    ("form", "losses"), [("vnet", (0.962, 0.833, 0.714, 0.455)), ("linear", (0.980, 0.909, 0.833, 0.625))]
)
def test_dice_of_a_constant_mask(form, losses):
    """The specification's section 9: a mask of 0.5 everywhere, labels that cover 1, 5, 10 and 30 % of the image."""
    for percent, expected in zip((1, 5, 10, 30), losses, strict=True):
        label = torch.zeros(1, 10, 10, dtype=torch.bool)
        label.view(-1)[:percent] = True
        assert 1 - dice(torch.full((1, 10, 10), 0.5), label, form=form).item() == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("deviation", [0, 1, 5, 25])
@pytest.mark.parametrize("form", ["vnet", "linear"])
def test_loss_of_random_masks_is_about_three_quarters(form, deviation):
    """The specification's section 9: 0.74 to 0.85 for 128 random proposals and random boxes."""
    torch.manual_seed(0)
    labels = torch.zeros(6, 40, 40, dtype=torch.bool)
    for label in labels:
        (top, left), (height, width) = torch.randint(0, 24, (2,)), torch.randint(6, 17, (2,))
        label[top : top + height, left : left + width] = True
    loss = best_match_dice_loss(deviation * torch.randn(1, 128, 40, 40), [labels], form=form)
    assert 0.7 < loss < 0.95


def test_masks_that_are_best_for_no_label_have_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    best_match_dice_loss(logits, LABELS).backward()
    for index, labels in enumerate(LABELS):
        winners = set(dice(LOGITS[index].sigmoid(), labels).argmax(0).tolist())
        moved = {query for query in range(5) if logits.grad[index, query].abs().sum() > 0}
        assert moved == winners and len(winners) < 5


def test_one_mask_may_be_best_for_several_labels():
    logits = torch.tensor([[[[9.0, 9.0, -9.0]], [[-9.0, -9.0, 9.0]]]])
    labels = torch.tensor([[[True, False, False]], [[False, True, False]]])
    assert best_match_dice_loss(logits, [labels]).item() == pytest.approx(1 / 3, abs=1e-3)


def test_order_of_masks_labels_and_images_is_free():
    expected = best_match_dice_loss(LOGITS, LABELS)
    shuffled = best_match_dice_loss(LOGITS[:, torch.randperm(5)].flip(0), [LABELS[1].flip(0), LABELS[0]])
    torch.testing.assert_close(shuffled, expected, rtol=0, atol=1e-12)


def test_images_without_labels_do_not_count():
    none = torch.zeros(0, 6, 7, dtype=torch.bool)
    alone = best_match_dice_loss(LOGITS[:1], LABELS[:1])
    torch.testing.assert_close(best_match_dice_loss(LOGITS, [LABELS[0], none]), alone)
    logits = LOGITS.clone().requires_grad_()
    loss = best_match_dice_loss(logits, [none, none])
    loss.backward()
    assert loss == 0 and logits.grad.abs().sum() == 0


def test_padding_enters_no_sum():
    valid = torch.zeros(2, 6, 7, dtype=torch.bool)
    valid[:, :5, :4] = True
    expected = best_match_dice_loss(LOGITS[..., :5, :4], [labels[..., :5, :4] for labels in LABELS])
    torch.testing.assert_close(best_match_dice_loss(LOGITS, LABELS, valid), expected)
    assert dice(torch.ones(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.bool)) == 0


def test_unknown_form():
    with pytest.raises(OvsegError, match=r"'cubic'.*vnet, linear"):
        dice(torch.ones(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool), form="cubic")


def test_pooling_of_an_empty_mask():
    masks = torch.zeros(1, 2, 3, 3, requires_grad=True)
    features = torch.randn(1, 4, 3, 3)
    means = pool_regions(masks, features, mean=True)
    assert means.eq(0).all()
    means.sum().backward()
    assert masks.grad.isfinite().all()


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def image_of(*masks: tuple[range, float], length: int = 20) -> torch.Tensor:
    """Return the logits of masks (n, 1, length), each with a probability in a range of pixels."""
    logits = torch.full((len(masks), 1, length), -9.0, dtype=torch.float64)
    for of_mask, (pixels, probability) in zip(logits, masks, strict=True):
        of_mask[0, pixels] = logit(probability)
    return logits


def test_pseudo_masks_are_confident_distinct_and_ordered():
    logits = image_of(
        (range(4), 0.8),
        (range(10, 20), 0.95),
        (range(5, 9), 0.7),  # not sure enough
        (range(10, 19), 0.9),  # nearly the second
        (range(0), 0.9),  # nothing
        (range(11, 19), 0.85),  # IoU 0.8 with the second, which is not more than 0.8
    )
    before = logits.clone()
    found = pseudo_masks(logits)
    assert torch.equal(found, (logits > 0)[[1, 5, 0]])
    assert found.dtype == torch.bool and torch.equal(logits, before)
    assert torch.equal(pseudo_masks(logits, max_masks=1), (logits > 0)[[1]])
    assert torch.equal(pseudo_masks(logits, max_iou=0.79), (logits > 0)[[1, 0]])
    assert pseudo_masks(logits, min_confidence=0.96).shape == (0, 1, 20)


def test_equally_confident_pseudo_masks_keep_their_order():
    logits = image_of((range(8, 12), 0.9), (range(4), 0.9), (range(14, 18), 0.9))
    assert torch.equal(pseudo_masks(logits), logits > 0)


def test_area_of_pseudo_masks_counts_valid_pixels():
    logits = image_of((range(2), 0.9), (range(6, 16), 0.9), (range(15, 20), 0.9))
    valid = torch.arange(20)[None] < 10
    assert torch.equal(pseudo_masks(logits, valid, min_area=0.2), ((logits > 0) & valid)[[0, 1]])
    assert torch.equal(pseudo_masks(logits, valid, min_area=0.21), ((logits > 0) & valid)[[1]])
    assert pseudo_masks(logits, torch.zeros_like(valid)).shape == (0, 1, 20)


def test_pseudo_masks_of_no_proposal_and_of_half_precision():
    assert pseudo_masks(torch.zeros(0, 3, 4)).shape == (0, 3, 4)
    logits = torch.randn(6, 12, 12) * 4
    assert torch.equal(
        pseudo_masks(logits.half(), min_confidence=0), pseudo_masks(logits.half().float(), min_confidence=0)
    )


def test_threshold_of_pseudo_masks():
    logits = image_of((range(8), 0.9), (range(10, 18), 0.6))
    assert len(pseudo_masks(logits, min_confidence=0.5)) == 2
    assert len(pseudo_masks(logits, threshold=0.7, min_confidence=0.5)) == 1
