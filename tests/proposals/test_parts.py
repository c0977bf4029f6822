"""Parts of proposers beyond the recorded numbers: other sizes, optional parts, and plain formulas."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from fvcore.nn import sigmoid_focal_loss

from ovseg.config import get_cfg
from ovseg.errors import OvsegError
from ovseg.proposals import D2SwinTransformer, OpenVocabMaskFormerHead
from ovseg.proposals.criterion import MaskClassificationCriterion
from ovseg.proposals.mask_comparison import pairwise_dice, pairwise_focal
from ovseg.proposals.matcher import match
from ovseg.proposals.swin import relative_position_index, shifted_window_mask
from ovseg.proposals.transformer import sine_position_encoding

SHAPES = {f"res{i}": ShapeSpec(channels=8 * 2 ** (i - 2), stride=2**i) for i in range(2, 6)}


def swin(**kwargs) -> D2SwinTransformer:
    torch.manual_seed(0)
    return D2SwinTransformer(embed_dim=8, depths=(2, 1, 1, 1), num_heads=(1, 2, 2, 2), window_size=3, **kwargs).eval()


@pytest.mark.parametrize("size", [(64, 96), (33, 70), (4, 4), (1, 1)])
def test_swin_takes_any_size(size):
    features = swin()(torch.randn(2, 3, *size))
    height, width = (-(-side // 4) for side in size)
    for i, name in enumerate(("res2", "res3", "res4", "res5")):
        assert features[name].shape == (2, 8 * 2**i, height, width)
        height, width = (height + 1) // 2, (width + 1) // 2


def test_swin_options():
    plain = swin()(torch.randn(1, 3, 32, 32))
    model = swin(absolute_position_embedding=True, patch_norm=False, norm_indices=(1, 3), project_dim=5)
    assert not hasattr(model, "norm0")
    assert set(plain) == set(model.output_shape())
    projected = swin(project_dim=5, out_features=("res5", "fc"))
    assert projected(torch.randn(1, 3, 64, 64))["fc"].shape == (1, 5, 2, 2)
    assert projected.output_shape()["fc"].channels == 5


def test_relative_positions():
    index = relative_position_index(2)
    # tokens in row order; rows of the table in order of (dy, dx), each -1 .. 1
    assert index.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


def test_shift_mask_separates_what_was_apart():
    mask = shifted_window_mask(6, 6, 3, torch.device("cpu"))
    assert mask.shape == (4, 9, 9)
    assert not mask[0].any()  # away from the seam
    # last window: its last row and column were rolled in from the other side
    apart = mask[3].view(3, 3, 3, 3) < 0
    assert not apart[0, 0, 1, 1]
    assert apart[0, 0, 2, 2]
    assert apart[0, 0, 0, 2]
    assert not apart[2, 0, 2, 1]


def test_position_encoding_formula():
    encoding = sine_position_encoding(3, 5, 8)
    angle = 2 / (3 + 1e-6) * 2 * torch.pi  # second of three rows
    assert encoding.shape == (1, 8, 3, 5)
    torch.testing.assert_close(encoding[0, 0, 1, 4].item(), torch.tensor(angle).sin().item())
    torch.testing.assert_close(encoding[0, 1, 1, 0].item(), torch.tensor(angle).cos().item())
    angle = 5 / (5 + 1e-6) * 2 * torch.pi / 10000 ** (2 / 4)  # last column, second frequency
    torch.testing.assert_close(encoding[0, 6, 0, 4].item(), torch.tensor(angle).sin().item())


@pytest.mark.parametrize("encoder_layers", [0, 1])
@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("source", ["res5", "res4", "transformer_encoder"])
def test_heads(encoder_layers, pre_norm, source):
    cfg = get_cfg()
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = list(SHAPES)
    head, former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    head.CONVS_DIM, head.MASK_DIM, head.EMBEDDING_DIM = 32, 16, 12
    former.HIDDEN_DIM, former.NHEADS, former.DIM_FEEDFORWARD = 32, 4, 16
    former.NUM_OBJECT_QUERIES, former.DEC_LAYERS, former.ENC_LAYERS = 5, 2, encoder_layers
    former.PRE_NORM, former.TRANSFORMER_IN_FEATURE = pre_norm, source
    if source == "transformer_encoder":
        with pytest.raises(OvsegError, match=r"needs MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME"):
            OpenVocabMaskFormerHead(cfg, SHAPES)
        head.PIXEL_DECODER_NAME, head.TRANSFORMER_ENC_LAYERS = "TransformerEncoderPixelDecoder", 2
    model = OpenVocabMaskFormerHead(cfg, SHAPES)
    features = {name: torch.randn(2, s.channels, 64 // s.stride, 96 // s.stride) for name, s in SHAPES.items()}
    predictions = model(features)
    assert len(predictions) == 2
    assert len(model.eval()(features)) == 1
    embeddings, masks = predictions[-1]
    assert embeddings.shape == (2, 5, 12)
    assert masks.shape == (2, 5, 16, 24)
    sum((a.square().mean() + b.square().mean()) for a, b in predictions).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_unknown_feature():
    cfg = get_cfg()
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = list(SHAPES)
    cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE = "res6"
    with pytest.raises(OvsegError, match="'res6' is not a feature of the backbone: choose one of res2"):
        OpenVocabMaskFormerHead(cfg, SHAPES)


@pytest.mark.parametrize("names", [[], ["res2", "res9"]])
@pytest.mark.parametrize("decoder", ["BasePixelDecoder", "MSDeformAttnPixelDecoder"])
def test_features_that_the_backbone_does_not_give(names, decoder):
    cfg = get_cfg()
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES, cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = names, decoder
    with pytest.raises(OvsegError, match=r"IN_FEATURES is \[.*choose among res2"):
        OpenVocabMaskFormerHead(cfg, SHAPES)


def test_a_normalisation_that_is_not_known():
    cfg = get_cfg()
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES, cfg.MODEL.SEM_SEG_HEAD.NORM = list(SHAPES), "XN"
    with pytest.raises(OvsegError, match="NORM is 'XN': give a normalisation of Detectron2"):
        OpenVocabMaskFormerHead(cfg, SHAPES)


def test_pairwise_costs_are_the_losses_of_each_pair():
    logits, truth = torch.randn(3, 50), (torch.rand(2, 50) > 0.5).float()
    focal, dice = pairwise_focal(logits, truth), pairwise_dice(logits, truth)
    for q in range(3):
        for n in range(2):
            expected = sigmoid_focal_loss(logits[q], truth[n], alpha=0.25, gamma=2, reduction="mean")
            torch.testing.assert_close(focal[q, n], expected)
            s = logits[q].sigmoid()
            expected = 1 - (2 * (s * truth[n]).sum() + 1) / (s.sum() + truth[n].sum() + 1)
            torch.testing.assert_close(dice[q, n], expected)


def test_perfect_predictions_are_matched_and_cost_little():
    truth = torch.zeros(2, 8, 8)
    truth[0, :4] = truth[1, 4:] = 1
    masks = torch.full((1, 3, 8, 8), -20.0)
    masks[0, 2] += 40 * truth[0]
    masks[0, 0] += 40 * truth[1]
    classes = torch.tensor([1, 0])
    logits = torch.full((1, 3, 3), -20.0)
    logits[0, 2, 1] = logits[0, 0, 0] = logits[0, 1, 2] = 20
    ((queries, targets),) = match(logits, masks, [classes], [truth], mask_weight=20.0, dice_weight=1.0)
    assert dict(zip(queries.tolist(), targets.tolist(), strict=True)) == {2: 0, 0: 1}
    losses = MaskClassificationCriterion(2, 0.1, 20.0, 1.0)([(logits, masks)], [classes], [truth.bool()])
    assert set(losses) == {"loss_ce", "loss_mask", "loss_dice"}
    assert all(loss < 1e-3 for loss in losses.values())


def test_divergence_is_said():
    with pytest.raises(FloatingPointError, match="diverged"):
        match(
            torch.full((1, 2, 3), torch.nan),
            torch.zeros(1, 2, 4, 4),
            [torch.tensor([0])],
            [torch.ones(1, 4, 4)],
            mask_weight=1.0,
            dice_weight=1.0,
        )


def test_vocabulary_of_another_size():
    criterion = MaskClassificationCriterion(171, 0.1, 20.0, 1.0)
    with pytest.raises(OvsegError, match=r"NUM_CLASSES is 171 but the training vocabulary has 2 words"):
        criterion([(torch.zeros(1, 4, 3), torch.zeros(1, 4, 8, 8))], [torch.tensor([0])], [torch.ones(1, 8, 8)])


@pytest.mark.parametrize("weight", [0.1, 0.0])
def test_class_weights_are_no_part_of_a_checkpoint(weight):
    criterion = MaskClassificationCriterion(3, weight, 20.0, 1.0)
    assert not criterion.state_dict()
    assert criterion.empty_weight.tolist() == pytest.approx([1, 1, 1, weight])
