"""Parts of Mask2Former beyond the recorded numbers: other sizes, optional parts, errors, and points."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn
from torch.nn import functional as F

from ovseg.config import get_cfg
from ovseg.errors import OvsegError
from ovseg.proposals import OpenVocabMaskFormerHead, OpenVocaMask2FormerHead
from ovseg.proposals.criterion import MaskClassificationCriterion
from ovseg.proposals.mask2former import inside
from ovseg.proposals.mask_comparison import EveryPixel, RandomPoints, pairwise_cross_entropy
from ovseg.proposals.matcher import match
from ovseg.proposals.transformer import attend

SHAPES = {f"res{i}": ShapeSpec(channels=8 * 2 ** (i - 2), stride=2**i) for i in range(2, 6)}


def config(*opts):
    cfg = get_cfg()
    model, head, former = cfg.MODEL, cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    head.NAME, head.PIXEL_DECODER_NAME = "OpenVocaMask2FormerHead", "MSDeformAttnPixelDecoder"
    head.IN_FEATURES, head.NORM, head.NUM_CLASSES = list(SHAPES), "GN", 3
    head.CONVS_DIM, head.MASK_DIM, head.EMBEDDING_DIM, head.TRANSFORMER_ENC_LAYERS = 32, 16, 12, 2
    former.HIDDEN_DIM, former.NHEADS, former.DIM_FEEDFORWARD, former.DROPOUT = 32, 4, 16, 0.0
    former.NUM_OBJECT_QUERIES, former.DEC_LAYERS = 5, 4
    former.TRANSFORMER_IN_FEATURE = "multi_scale_pixel_decoder"
    model.MASK_FORMER.TRAIN_NUM_POINTS = 32
    cfg.merge_from_list(list(opts))
    return cfg


def head(*opts):
    torch.manual_seed(0)
    return OpenVocaMask2FormerHead(config(*opts), SHAPES)


def features(height=64, width=96, batch=2):
    torch.manual_seed(1)
    sizes = {name: (-(-height // s.stride), -(-width // s.stride)) for name, s in SHAPES.items()}
    return {name: torch.randn(batch, SHAPES[name].channels, *size) for name, size in sizes.items()}


@pytest.mark.parametrize("pre_norm", [False, True])
def test_head(pre_norm):
    model = head("MODEL.MASK_FORMER.PRE_NORM", pre_norm)
    predictions = model(features())
    assert len(predictions) == 5
    for embeddings, masks in predictions:
        assert embeddings.shape == (2, 5, 12)
        assert masks.shape == (2, 5, 16, 24)
    sum((a.square().mean() + b.square().mean()) for a, b in predictions).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    (final,) = model.eval()(features())  # masks between the layers are computed in another way
    torch.testing.assert_close(final, predictions[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(33, 70), (4, 4), (1, 200)])
def test_any_size(size):
    ((_, masks),) = head().eval()(features(*size))
    assert masks.shape == (2, 5, -(-size[0] // 4), -(-size[1] // 4))
    assert masks.isfinite().all()


@pytest.mark.parametrize("encoded", [["res5"], ["res4", "res5"], ["res5", "res2", "res3", "res4"]])
def test_other_levels(encoded):
    model = head("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES", encoded)
    mask_features, maps = model.pixel_decoder(features())
    assert mask_features.shape == (2, 16, 16, 24)
    assert [x.shape[-2:] for x in maps] == [(2, 3), (4, 6), (8, 12)]
    assert len(model(features())) == 5


def test_projections_are_there_when_wanted():
    assert "predictor.input_proj.0.weight" not in head().state_dict()
    for opts in (("ENFORCE_INPUT_PROJ", True), ("HIDDEN_DIM", 16)):
        model = head(f"MODEL.MASK_FORMER.{opts[0]}", opts[1])
        assert model.state_dict()["predictor.input_proj.2.weight"].shape[1:] == (32, 1, 1)
        model(features())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SEM_SEG_HEAD.PIXEL_DECODER_NAME", "BasePixelDecoder", "needs 'MSDeformAttnPixelDecoder'"),
        ("MASK_FORMER.TRANSFORMER_IN_FEATURE", "res5", "needs 'multi_scale_pixel_decoder'"),
        ("MASK_FORMER.ENC_LAYERS", 3, r"ENC_LAYERS is 3, but OpenVocaMask2FormerHead needs 0"),
        ("SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES", ["res3"], "must be the coarsest of .*res2, res3"),
        ("SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES", ["res9"], "must be the coarsest of"),
        ("SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES", [], "must be the coarsest of"),
    ],
)
def test_mistakes_are_told(key, value, message):
    with pytest.raises(OvsegError, match=message):
        head(f"MODEL.{key}", value)


def test_too_few_levels():
    opts = ("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res4", "res5"])
    with pytest.raises(OvsegError, match="IN_FEATURES must have 3 features or more"):
        head(*opts, "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES", ["res4", "res5"])


def test_maskformers_transformer_can_read_the_deformable_encoder():
    cfg = config("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "transformer_encoder")
    (prediction,) = OpenVocabMaskFormerHead(cfg, SHAPES).eval()(features())
    assert prediction[1].shape == (2, 5, 16, 24)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    model = head().eval()
    (exact,) = model(features())
    with torch.autocast("cpu", dtype=dtype):
        mask_features, maps = model.pixel_decoder({name: x.to(dtype) for name, x in features().items()})
        ((embeddings, masks),) = model(features())
    assert all(x.dtype == torch.float32 for x in (mask_features, *maps))  # half precision is too coarse for coordinates
    assert embeddings.dtype == masks.dtype == dtype
    assert (embeddings - exact[0]).abs().max() < 0.1 * exact[0].abs().max()


def test_attention_stays_inside_the_masks():
    logits = torch.tensor([[[[1.0, -1.0], [0.0, -2.0]], [[-1.0, -1.0], [-1.0, -1.0]]]])
    assert inside(logits).tolist() == [[[True, False, True, False], [True] * 4]]  # everywhere for an empty mask


def test_masked_attention_equals_the_librarys():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    nn.init.normal_(attention.in_proj_bias)
    query, key, value = torch.randn(2, 5, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    allowed = torch.rand(2, 5, 7) > 0.5
    allowed[..., 0] = True
    expected = attention(query, key, value, attn_mask=~allowed.repeat_interleave(4, 0))[0]
    torch.testing.assert_close(attend(attention, query, key, value, allowed), expected)


def test_pairwise_cross_entropy():
    logits, truth = torch.randn(3, 50), torch.rand(2, 50)  # points between pixels are neither 0 nor 1
    cost = pairwise_cross_entropy(logits, truth)
    for q in range(3):
        for n in range(2):
            torch.testing.assert_close(cost[q, n], F.binary_cross_entropy_with_logits(logits[q], truth[n]))


def truth_and_predictions():
    """Return truth and predictions of two images: the first has two masks, its halves, the second none."""
    truth = torch.zeros(2, 16, 16, dtype=torch.bool)
    truth[0, :, :8] = truth[1, :, 8:] = True
    masks = torch.full((2, 3, 8, 8), -20.0)
    masks[0, 2, :, :4] = masks[0, 0, :, 4:] = 20.0
    logits = torch.full((2, 3, 4), -20.0)
    logits[0, 2, 1] = logits[0, 0, 0] = logits[0, 1, 3] = 20.0
    logits[1, :, 3] = 20.0
    classes = [torch.tensor([1, 0]), torch.zeros(0, dtype=torch.int64)]
    return logits, masks, classes, [truth, truth[:0]]


def test_perfect_predictions_are_matched_and_cost_little():
    logits, masks, classes, truth = truth_and_predictions()
    points = RandomPoints(64, 3.0, 0.0)
    weights = {"mask_weight": 5.0, "dice_weight": 5.0, "class_weight": 2.0}
    first, second = match(logits, masks, classes, truth, comparison=points, **weights)
    assert dict(zip(*(part.tolist() for part in first), strict=True)) == {2: 0, 0: 1}
    assert len(second[0]) == 0
    criterion = MaskClassificationCriterion(3, 0.1, 5.0, 5.0, class_weight=2.0, comparison=points)
    losses = criterion([(logits, masks)], classes, truth)
    assert losses["loss_ce"] < 1e-3
    # between the pixels of the halves there is a slope
    assert losses["loss_mask"] < 1.5
    assert losses["loss_dice"] < 0.5


def test_weights_of_the_losses():
    logits, masks, classes, truth = truth_and_predictions()
    logits, masks = torch.randn_like(logits), torch.randn_like(masks)

    def losses(*weights, class_weight):
        torch.manual_seed(0)
        criterion = MaskClassificationCriterion(3, 0.1, *weights, class_weight=class_weight, comparison=points)
        return criterion([(logits, masks)], classes, truth)

    points = RandomPoints(16, 3.0, 0.75)
    # scaled together, they do not change the matching
    once, twice = losses(1.0, 1.0, class_weight=1.0), losses(2.0, 2.0, class_weight=2.0)
    for name, loss in once.items():
        torch.testing.assert_close(twice[name], 2 * loss)


def test_uncertain_points_are_sought():
    masks = torch.linspace(-9, 9, 64).expand(1, 64, 64)
    torch.manual_seed(0)
    uncertain, _ = RandomPoints(256, 3.0, 1.0).for_loss(masks, torch.zeros(1, 64, 64))
    uniform, _ = RandomPoints(256, 3.0, 0.0).for_loss(masks, torch.zeros(1, 64, 64))
    assert uncertain.abs().max() < 4 < uniform.abs().max()


def test_batch_without_any_mask():
    logits, masks, classes, truth = truth_and_predictions()
    masks.requires_grad_()
    criterion = MaskClassificationCriterion(3, 0.1, 5.0, 5.0, comparison=RandomPoints(16, 3.0, 0.75))
    losses = criterion([(logits, masks)], [classes[1]] * 2, [truth[1]] * 2)
    assert losses["loss_mask"] == losses["loss_dice"] == 0
    sum(losses.values()).backward()


@pytest.mark.parametrize("importance", [0.75, 1.0])
def test_a_dropped_prediction_uses_up_its_random_numbers(importance):
    logits, masks, classes, truth = truth_and_predictions()

    def next_number(drop):
        points = RandomPoints(16, 2.5, importance)
        criterion = MaskClassificationCriterion(3, 0.1, 5.0, 5.0, comparison=points, drop_last_auxiliary=drop)
        torch.manual_seed(0)
        losses = criterion([(logits, masks)] * 3, classes, truth)
        return losses, torch.rand(())

    kept, after_kept = next_number(False)
    dropped, after_dropped = next_number(True)
    assert after_kept == after_dropped
    assert set(kept) - set(dropped) == {"loss_ce_1", "loss_mask_1", "loss_dice_1"}
    assert all(kept[name] == loss for name, loss in dropped.items())


def test_a_single_prediction_is_never_dropped():
    logits, masks, classes, truth = truth_and_predictions()
    points = RandomPoints(16, 3.0, 0.75)
    criterion = MaskClassificationCriterion(3, 0.1, 5.0, 5.0, comparison=points, drop_last_auxiliary=True)
    assert len(criterion([(logits, masks)], classes, truth)) == 3


def test_criterion_of_a_configuration():
    cfg = config("MODEL.MASK_FORMER.CLASS_WEIGHT", 2.0)
    criterion = MaskClassificationCriterion(cfg)
    assert (criterion.comparison.points, criterion.class_weight, criterion.drop_last_auxiliary) == (32, 2.0, True)
    assert isinstance(criterion.comparison, RandomPoints)
    cfg.MODEL.MASK_FORMER.LAST_AUXILIARY_LOSS = True
    assert not MaskClassificationCriterion(cfg).drop_last_auxiliary
    cfg.MODEL.SEM_SEG_HEAD.NAME = "OpenVocabMaskFormerHead"
    criterion = MaskClassificationCriterion(cfg)
    assert isinstance(criterion.comparison, EveryPixel)
    assert not criterion.drop_last_auxiliary


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("TRAIN_NUM_POINTS", 0, "TRAIN_NUM_POINTS must be at least 1"),
        ("OVERSAMPLE_RATIO", 0.5, "OVERSAMPLE_RATIO must be at least 1"),
        ("IMPORTANCE_SAMPLE_RATIO", 1.5, "IMPORTANCE_SAMPLE_RATIO must be at least 0 and at most 1"),
    ],
)
def test_impossible_points_are_told(key, value, message):
    with pytest.raises(OvsegError, match=message):
        MaskClassificationCriterion(config(f"MODEL.MASK_FORMER.{key}", value))


def test_training_under_autocast():
    torch.manual_seed(0)
    model, criterion = head(), MaskClassificationCriterion(config())
    _, _, classes, truth = truth_and_predictions()
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            predictions = [(embeddings[..., :4], masks) for embeddings, masks in model(features(16, 16))]
            torch.manual_seed(0)
            results.append(criterion(predictions, classes, truth))
    for name, loss in results[0].items():
        torch.testing.assert_close(results[1][name], loss, rtol=0.2, atol=0.05)
    sum(results[1].values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
