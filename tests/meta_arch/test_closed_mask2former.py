"""Mask2Former with a closed vocabulary."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances

from ovseg.config import get_cfg
from ovseg.errors import OvsegError
from ovseg.meta_arch.pixel_scores import render_scores


def config(**head):
    cfg = get_cfg()
    cfg.merge_from_list(
        ["MODEL.META_ARCHITECTURE", "Mask2Former", "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", "D2SwinTransformer"]
    )
    cfg.MODEL.SWIN.EMBED_DIM, cfg.MODEL.SWIN.DEPTHS, cfg.MODEL.SWIN.NUM_HEADS = 8, [1, 1, 1, 1], [1, 1, 2, 2]
    ours, former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    ours.NAME, ours.PIXEL_DECODER_NAME = "OpenVocaMask2FormerHead", "MSDeformAttnPixelDecoder"
    ours.IN_FEATURES, ours.NORM, ours.CONVS_DIM, ours.MASK_DIM = ["res2", "res3", "res4", "res5"], "GN", 32, 16
    ours.NUM_CLASSES, ours.EMBEDDING_DIM, ours.EMBED_LAYERS, ours.TRANSFORMER_ENC_LAYERS = 3, 4, 1, 1
    former.TRANSFORMER_IN_FEATURE = "multi_scale_pixel_decoder"
    former.HIDDEN_DIM, former.NHEADS, former.DIM_FEEDFORWARD = 32, 4, 16
    former.NUM_OBJECT_QUERIES, former.DEC_LAYERS, former.TRAIN_NUM_POINTS = 6, 2, 64
    for key, value in head.items():
        ours[key] = value
    return cfg


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(config()).eval()


def request(height=40, width=50, **extra):
    torch.manual_seed(1)
    return {"image": torch.randint(256, (3, height, width), dtype=torch.uint8), **extra}


@torch.no_grad()
def test_outputs(model):
    wanted = ("sem_seg", "label_map", "proposals", "soft_proposals")
    first, second = model([request(height=40, outputs=wanted) | {"height": 80, "width": 100}, request(64, 30)])
    assert first["sem_seg"].shape == (3, 80, 100)
    assert torch.equal(first["label_map"], first["sem_seg"].argmax(0))
    assert torch.equal(first["proposals"], first["soft_proposals"] > 0.5)
    assert list(second) == ["sem_seg"]
    assert second["sem_seg"].shape == (3, 64, 30)


@torch.no_grad()
def test_scores_are_class_probability_times_mask_probability(model):
    given = request(32, 64)
    image = model.normalize(given["image"].float())
    ((logits, masks),) = model.sem_seg_head(model.backbone(image[None]))
    assert logits.shape == (1, 6, 4)
    masks = torch.nn.functional.interpolate(masks, (32, 64), mode="bilinear", align_corners=False)[0].sigmoid()
    expected = render_scores(logits[0].softmax(-1)[:, :3], masks, (32, 64), 3)
    torch.testing.assert_close(model([given])[0]["sem_seg"], expected)


def test_training_moves_every_parameter(model):
    torch.manual_seed(0)
    model = build_model(config()).train()
    truth = Instances((40, 50))
    truth.gt_classes, truth.gt_masks = torch.tensor([2, 0]), torch.zeros(2, 40, 50, dtype=torch.bool)
    truth.gt_masks[0, :20] = truth.gt_masks[1, 20:] = True
    losses = model([request(instances=truth)])
    # queries alone and one layer have losses of their own, but for the prediction before the last
    assert set(losses) == {f"loss_{part}{suffix}" for part in ("ce", "mask", "dice") for suffix in ("", "_0")}
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_words_of_ones_own(model):
    names = {"class_names": ["a", "b"]}
    with pytest.raises(OvsegError, match=r"has the 3 classes of its training .* but 2 were given: use OVSeg or"):
        model([request(**names)])
    with torch.no_grad():
        assert len(model([request(class_names=["a", "b", "c"])])[0]["sem_seg"]) == 3


def test_sizes_that_do_not_fit():
    with pytest.raises(OvsegError, match=r"EMBEDDING_DIM is 512: .* set it to 4"):
        build_model(config(EMBEDDING_DIM=512))
