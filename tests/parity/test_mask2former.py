"""SCAN's proposal network, Mask2Former, against the numbers of the original."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from detectron2.modeling import build_backbone, build_sem_seg_head
from torch import Tensor, nn
from torch.nn import functional as F

from ovseg.proposals import criterion, mask_comparison

RUNS = ("run0", "run1")
TIGHT = 1e-5  # relative; much less than the tolerance of the recording
LOSS_TOLERANCE = 1e-4  # relative
NORM_TOLERANCE = 1e-3  # of gradients, relative
# parameters that only the masks' losses reach, through modules whose input does not depend on CLIP
MASKS_ONLY = ("mask_embed.", "pixel_decoder.mask_features.", "pixel_decoder.adapter_1.", "pixel_decoder.layer_1.")


class ProposalNetwork(nn.Module):
    """Backbone, head and criterion under their names in the whole model."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_backbone(cfg)
        self.sem_seg_head = build_sem_seg_head(cfg, self.backbone.output_shape())
        self.criterion = criterion.MaskClassificationCriterion(cfg)

    def forward(self, image: Tensor) -> list[tuple[Tensor, Tensor]]:
        return self.sem_seg_head(self.backbone(image))


def network(scan_parity, run: str, *opts) -> ProposalNetwork:
    model = ProposalNetwork(scan_parity.config(*opts))
    own = model.state_dict()
    weights = {name: tensor.to(own[name].dtype) for name, tensor in scan_parity.weights.items() if name in own}
    assert not model.load_state_dict(weights, strict=False).unexpected_keys
    assert {name for name in own if name not in weights} <= {name for name in own if name.startswith("backbone.layers")}
    scan_parity.play_back(model, run)
    return model.eval()


def normalised(scan_parity, names: list[str]) -> Tensor:
    """Return the padded batch (B, 3, H, W) of the images with these names."""
    cfg = scan_parity.config().MODEL
    mean, std = (torch.tensor(values)[:, None, None] for values in (cfg.PIXEL_MEAN, cfg.PIXEL_STD))
    images = [torch.from_numpy(scan_parity.inputs[name]).permute(2, 0, 1) for name in names]
    images = [(image - mean) / std for image in images]
    return torch.stack([F.pad(x, (0, -x.shape[2] % 32, 0, -x.shape[1] % 32)) for x in images])


@pytest.mark.parametrize("run", RUNS)
@torch.no_grad()
def test_stages(scan_parity, run):
    model = network(scan_parity, run)
    image = normalised(scan_parity, [run.replace("run", "image")])
    scan_parity.check(f"{run}/norm_image", image, TIGHT)
    features = model.backbone(image)
    for name, feature in features.items():
        scan_parity.check(f"{run}/backbone/{name}", feature, TIGHT)
    mask_features, maps = model.sem_seg_head.pixel_decoder(features)
    scan_parity.check(f"{run}/pixdec/mask_features", mask_features, TIGHT)
    assert len(maps) == 3
    for i, decoded in enumerate(maps):
        scan_parity.check(f"{run}/pixdec/ms{i}", decoded, TIGHT)


@pytest.mark.parametrize("run", RUNS)
@torch.no_grad()
def test_predictions(scan_parity, run):
    model = network(scan_parity, run)
    image = normalised(scan_parity, [run.replace("run", "image")])
    ((embeddings, masks),) = model(image)
    scan_parity.check(f"{run}/pred/logits_raw", embeddings, TIGHT)
    scan_parity.check(f"{run}/pred/masks", masks, TIGHT)
    model.sem_seg_head.train()  # there is no dropout in it
    predictions = model(image)
    assert len(predictions) == 5  # one of the queries alone, then one for each of DEC_LAYERS layers
    scan_parity.check(f"{run}/pred/logits_raw", predictions[-1][0], TIGHT)
    scan_parity.check(f"{run}/pred/masks", predictions[-1][1], TIGHT)
    scan_parity.check(f"{run}/pred/aux0_masks", predictions[0][1], TIGHT)
    for i, (embeddings, _) in enumerate(predictions[:-1]):
        scan_parity.check(f"{run}/pred/aux{i}_logits_raw", embeddings, TIGHT)


class Step:
    """Training step from predicted masks and recorded class logits: its random points, matches and comparisons."""

    def __init__(self, scan_parity, monkeypatch, *opts):
        self.model = network(scan_parity, "train", *opts).train()
        classes, truth = zip(*targets(scan_parity), strict=True)
        masks = [masks for _, masks in self.model(normalised(scan_parity, ["train/image0", "train/image1"]))]
        self.masks = masks[-1]
        names = [f"train/aux{i}_sim_logits" for i in range(len(masks) - 1)] + ["train/sim_logits"]
        logits = [torch.from_numpy(scan_parity.outputs[name]).requires_grad_() for name in names]
        self.random, self.matches, points = [], [], []
        rand, match, sample = torch.rand, criterion.match, mask_comparison.point_sample
        monkeypatch.setattr(torch, "rand", lambda *size, **kwargs: recorded(self.random, rand(*size, **kwargs)))
        monkeypatch.setattr(criterion, "match", lambda *args, **kwargs: recorded(self.matches, match(*args, **kwargs)))
        monkeypatch.setattr(
            mask_comparison, "point_sample", lambda x, where, **kwargs: sample(x, recorded(points, where), **kwargs)
        )
        torch.manual_seed(scan_parity.case["settings"]["train"]["torch_seed"])
        self.losses = self.model.criterion(list(zip(logits, masks, strict=True)), classes, truth)
        self.loss_points = [where for where in points if len(where) > 1][::2]  # matching has one set for all masks


def recorded(results: list, result):
    results.append(result)
    return result


def targets(scan_parity) -> Iterator[tuple[Tensor, Tensor]]:
    """Return classes (n,) and masks (n, H, W) of each training image."""
    for index in (0, 1):
        label = torch.from_numpy(scan_parity.inputs[f"train/label{index}"])
        classes = label.unique()
        classes = classes[classes != 255].long()
        yield classes, label[None] == classes[:, None, None]


def by_name(scan_parity, names: str, values: str) -> dict[str, float]:
    outputs = scan_parity.outputs
    return dict(zip(map(str, outputs[names]), outputs[values].tolist(), strict=True))


def test_training_step(scan_parity, monkeypatch):
    step = Step(scan_parity, monkeypatch)
    scan_parity.check("train/pred_masks", step.masks, TIGHT)
    for i, matches in enumerate(step.matches):  # of the final prediction first
        for image, pair in enumerate(matches):
            scan_parity.check(f"train/match{i}_img{image}", torch.stack(pair))
    for i, where in enumerate(step.loss_points):
        scan_parity.check(f"train/loss_points{i}", where, TIGHT)
    expected = by_name(scan_parity, "train/loss_names", "train/losses_weighted")
    assert {name: loss.item() for name, loss in step.losses.items()} == pytest.approx(expected, rel=LOSS_TOLERANCE)
    total = sum(step.losses.values())
    scan_parity.check("train/total", total, LOSS_TOLERANCE)

    total.backward()
    expected = by_name(scan_parity, "train/grad_names", "train/grad_norms")
    compared = 0
    for name, parameter in step.model.named_parameters():
        if any(part in name for part in MASKS_ONLY):
            assert parameter.grad.norm().item() == pytest.approx(expected[name], rel=NORM_TOLERANCE), name
            compared += 1
    assert compared == 14


def test_random_numbers_are_drawn_in_the_originals_order(scan_parity, monkeypatch):
    step = Step(scan_parity, monkeypatch)
    assert (
        len(step.matches) == len(step.loss_points) == 4
    )  # the last auxiliary prediction is not matched, but its numbers are drawn:
    assert [tuple(x.shape) for x in step.random] == [(1, 64, 2), (1, 64, 2), (5, 192, 2), (5, 16, 2)] * 5
    for i, drawn in enumerate(step.random):
        if f"train/rand{i:02d}" in scan_parity.outputs:
            assert np.array_equal(drawn, scan_parity.outputs[f"train/rand{i:02d}"])
    for i in range(5):
        # the last quarter of the points is random, and used as drawn
        rest = scan_parity.outputs[f"train/loss_points{i}"][:, -16:]
        assert np.array_equal(step.random[4 * i + 3], rest)


def test_the_last_auxiliary_loss_can_be_kept(scan_parity, monkeypatch):
    step = Step(scan_parity, monkeypatch, "MODEL.MASK_FORMER.LAST_AUXILIARY_LOSS", True)
    weights = {"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    raw = by_name(scan_parity, "train/raw_loss_names", "train/losses_raw")
    assert set(step.losses) == set(raw)
    for image, pair in enumerate(step.matches[4]):
        scan_parity.check(f"train/match4_img{image}", torch.stack(pair))
    for name, weight in weights.items():
        assert step.losses[f"{name}_3"].item() == pytest.approx(weight * raw[f"{name}_3"], rel=LOSS_TOLERANCE)
