"""Losses, gradients, optimizer and schedule against the numbers of the original."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import Instances
from torch.nn import functional as F

from ovseg.engine.solver import build_lr_scheduler, build_optimizer
from ovseg.proposals.matcher import match

NORM_TOLERANCE = 1e-3
# gradients that the reduced copy can check: those after the recorded stage of the backbone
HEAD = ("sem_seg_head.", "clip_adapter.")


@pytest.fixture(scope="module")
def trained(parity):
    """Return the model after one backward pass, its raw predictions, and the losses."""
    model = parity.model().train()
    parity.play_back(model, "train/backbone/res5")
    losses = model(batch(parity))
    sum(losses.values()).backward()
    return model, losses


def batch(parity, empty_first: bool = False) -> list[dict]:
    requests = []
    for index in (0, 1):
        image = torch.from_numpy(parity.inputs[f"train/image{index}"]).permute(2, 0, 1)
        instances = Instances(image.shape[1:])
        classes = torch.from_numpy(parity.inputs[f"train/gt_classes{index}"])
        masks = torch.from_numpy(parity.inputs[f"train/gt_masks{index}"]).bool()
        keep = slice(0, 0) if empty_first and index == 0 else slice(None)
        instances.gt_classes, instances.gt_masks = classes[keep], masks[keep]
        requests.append({"image": image, "instances": instances, "class_names": parity.names("train")})
    return requests


def test_losses(parity, trained):
    _, losses = trained
    assert len(losses) == 9
    weights = {"loss_ce": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}
    for name, loss in losses.items():
        parity.check(f"train/loss_weighted/{name}", loss)
        parity.check(f"train/loss_raw/{name}", loss / weights["_".join(name.split("_")[:2])])
    parity.check("train/loss_total", sum(losses.values()))


def test_predictions_and_matching(parity, trained):
    model, _ = trained
    requests = batch(parity)
    images = [model.normalize(request["image"].float()) for request in requests]
    size = (96, 96)
    padded = torch.stack([F.pad(x, (0, size[1] - x.shape[2], 0, size[0] - x.shape[1])) for x in images])
    with torch.no_grad():
        text = model.clip_adapter.text_matrix(parity.names("train"))
        predictions = model.sem_seg_head(model.proposer.backbone(padded))
    truth = [request["instances"] for request in requests]
    gt_masks = [F.pad(t.gt_masks, (0, size[1] - t.gt_masks.shape[2], 0, size[0] - t.gt_masks.shape[1])) for t in truth]
    for layer, (embeddings, masks) in enumerate(predictions):
        last = layer == len(predictions) - 1
        logits = model.clip_adapter.similarity(embeddings, text)
        if last:
            parity.check("train/pred_masks", masks)
            parity.check("train/class_logits", logits)
        else:
            parity.check(f"train/aux{layer}/pred_masks_s2", masks[..., ::2, ::2])
            parity.check(f"train/aux{layer}/class_logits", logits)
        matches = match(logits, masks, [t.gt_classes for t in truth], gt_masks, mask_weight=20.0, dice_weight=1.0)
        for image, (queries, targets) in enumerate(matches):
            name = f"train/match/{'final' if last else f'aux{layer}'}/img{image}"
            parity.check(f"{name}/query", queries)
            parity.check(f"{name}/target", targets)


def test_gradients(parity, trained):
    model, _ = trained
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    names, reliable = parity.outputs["train/grad_names"], parity.outputs["train/grad_reliable"]
    assert set(trainable) == set(names)
    norms = {name: p.grad.norm() for name, p in trainable.items() if p.grad is not None}
    expected = parity.outputs["train/grad_norms"]
    compared = 0
    for name, norm, usable in zip(names, expected, reliable, strict=True):
        if usable and (not parity.reduced or name.startswith(HEAD)):
            assert norms[name].item() == pytest.approx(norm, rel=NORM_TOLERANCE), name
            compared += 1
    assert compared > 80
    if not parity.reduced:
        total = torch.stack(list(norms.values())).norm()
        assert total.item() == pytest.approx(float(parity.outputs["train/grad_norm_total"]), rel=NORM_TOLERANCE)
    assert not any(p.requires_grad for p in model.clip_adapter.clip_model.parameters())


def test_image_without_masks(parity):
    model = parity.model().train()
    parity.play_back(model, "train/backbone/res5")
    for name, loss in model(batch(parity, empty_first=True)).items():
        parity.check(f"train_empty_gt0/loss_weighted/{name}", loss)


def test_batch_without_any_mask(parity):
    model = parity.model().train()
    parity.play_back(model, "train/backbone/res5")
    requests = batch(parity, empty_first=True)[:1] * 2
    losses = model(requests)
    assert losses["loss_mask"] == losses["loss_dice"] == 0
    sum(losses.values()).backward()


def test_optimizer_groups(parity):
    cfg = parity.config()
    model = parity.model()
    optimizer = build_optimizer(cfg, model)
    by_parameter = {parameter: name for name, parameter in model.named_parameters()}
    groups = optimizer.param_groups
    assert [by_parameter[group["params"][0]] for group in groups] == list(parity.outputs["opt/names"])
    np.testing.assert_allclose([group["lr"] for group in groups], parity.outputs["opt/lr"], rtol=1e-6)
    np.testing.assert_allclose(
        [group["weight_decay"] for group in groups], parity.outputs["opt/weight_decay"], rtol=1e-6
    )


def test_learning_rate_curve(parity):
    cfg = parity.config()
    optimizer = build_optimizer(cfg, parity.model())
    scheduler = build_lr_scheduler(cfg, optimizer)
    factors = []
    for _ in range(200):
        factors.append(optimizer.param_groups[0]["lr"] / cfg.SOLVER.BASE_LR)
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(factors, parity.outputs["opt/lr_factor_group0"], rtol=1e-5, atol=1e-9)


def test_one_step(parity):
    """Compare one AdamW step with all gradients together clipped to 0.01, at the groups' plain learning rates."""
    cfg = parity.config()
    model = parity.model().train()
    optimizer = build_optimizer(cfg, model)
    parity.play_back(model, "train/backbone/res5")
    sum(model(batch(parity)).values()).backward()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in parameters.items()}
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    coefficient = float(parity.outputs["opt/clip_coefficient"])
    if parity.reduced:  # the norm of all gradients is unknown: no clipping by the optimizer
        torch._foreach_mul_(gradients, coefficient)
    else:
        total = torch.stack([gradient.norm() for gradient in gradients]).norm()
        assert min(1.0, 0.01 / (total.item() + 1e-6)) == pytest.approx(coefficient, rel=NORM_TOLERANCE)
    optimizer.step()
    rows = zip(*(parity.outputs[f"opt/step_{part}"] for part in ("names", "delta_norms", "reliable")), strict=True)
    compared = 0
    for name, expected, reliable in rows:
        if reliable and (not parity.reduced or str(name).startswith(HEAD)):
            delta = (parameters[str(name)].detach() - before[str(name)]).norm().item()
            assert delta == pytest.approx(expected, rel=NORM_TOLERANCE), name
            compared += 1
    assert compared > 80
