"""Every array of the recorded formulas of OpenSeg (tests/data/openseg, or $OPENSEG_PARITY), in two precisions.

Recorded inputs are random, and expected outputs were computed in two ways each (the README of the recording).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ovseg.evaluation.background import fold_background
from ovseg.evaluation.confusion import confusion_matrix, scores_from_confusion
from ovseg.evaluation.grounding import present_only
from ovseg.evaluation.oracle import label_weights, name_by_overlap, paint_segments, present_segments
from ovseg.evaluation.proposals import best_ious, ious_of, recall_at, segment_intersections
from ovseg.grounding import best_word, grounding_loss, image_caption_similarity, region_word_cosine
from ovseg.meta_arch.painting import paint_scores
from ovseg.proposals.class_agnostic import best_match_dice_loss, dice
from ovseg.proposals.pooling import pool_regions
from tests.parity.fixture import DATA

FILE = Path(os.environ.get("OPENSEG_PARITY") or DATA / "openseg") / "openseg_formulas.npz"
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
IGNORED = 255


class Recorded:
    """The recorded arrays as tensors of a precision, and which of them were read.

    ``recorded[name]``: floats have the precision, uint8 masks are bool, integers are int64.
    """

    def __init__(self, dtype: torch.dtype):
        with np.load(FILE) as file:
            self.arrays = dict(file)
        self.dtype, self.read = dtype, set()

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        tensor = torch.from_numpy(np.asarray(self.arrays[name]))
        return (
            tensor.bool()
            if tensor.dtype == torch.uint8
            else tensor.to(self.dtype if tensor.is_floating_point() else tensor.dtype)
        )


def dice_outputs(recorded: Recorded) -> dict[str, Any]:
    logits, valid = recorded["dice_mask_logits"], recorded["dice_valid"]
    counts, padded = recorded["dice_num_gt"].tolist(), recorded["dice_gt_masks"]
    labels = [masks[:count] for masks, count in zip(padded, counts, strict=True)]
    outputs: dict[str, Any] = {}
    for form in ("vnet", "linear"):
        tables = torch.full((*logits.shape[:2], padded.shape[1]), torch.nan, dtype=logits.dtype)
        best = torch.full(padded.shape[:2], -1)
        of_image = torch.full((len(logits),), torch.nan, dtype=logits.dtype)
        for index, count in enumerate(counts):
            tables[index, :, :count] = dice(logits[index].sigmoid(), labels[index], valid[index], form)
            if count:
                best[index, :count] = tables[index, :, :count].argmax(0)
                one = slice(index, index + 1)
                of_image[index] = best_match_dice_loss(logits[one], labels[one], valid[one], form)
        trained = logits.clone().requires_grad_()
        loss = best_match_dice_loss(trained, labels, valid, form)
        loss.backward()
        outputs |= {
            f"dice_{form}_pairwise": tables,
            f"dice_{form}_best": best,
            f"dice_{form}_loss_per_image": of_image,
            f"dice_{form}_loss": loss,
            f"dice_{form}_grad": trained.grad,
        }
    return outputs


def pool_outputs(recorded: Recorded) -> dict[str, Any]:
    logits, features = recorded["pool_mask_logits"], recorded["pool_features"]
    pooled = pool_regions(logits.sigmoid(), features)
    means = pool_regions(logits.sigmoid(), features, mean=True)
    torch.testing.assert_close(F.normalize(means, dim=-1), F.normalize(pooled, dim=-1))
    return {
        "pool_z": pooled,
        "pool_z_unit": F.normalize(pooled, dim=-1),
        "pool_z_hard_mean": pool_regions((logits > 0).to(logits.dtype), features, mean=True),
    }


def ground_outputs(recorded: Recorded) -> dict[str, Any]:
    regions, words, counts = recorded["ground_z"], recorded["ground_words"], recorded["ground_num_words"]
    ranks, outputs = int(recorded["ground_num_ranks"]), {}
    for number, tau in enumerate(recorded["ground_taus"]):
        similarity = image_caption_similarity(regions, words, counts, tau)
        edges = [len(regions) * rank // ranks for rank in range(ranks + 1)]
        local = [
            grounding_loss(image_caption_similarity(regions[i:j], words[i:j], counts[i:j], tau), tau)
            for i, j in pairwise(edges)
        ]
        outputs |= {
            f"ground_G_{number}": similarity,
            f"ground_loss_global_{number}": grounding_loss(similarity, tau),
            f"ground_loss_local_per_rank_{number}": torch.stack(local),
            f"ground_loss_local_mean_{number}": torch.stack(local).mean(),
        }
    log_scale = torch.tensor(1 / 0.07, dtype=regions.dtype).log().requires_grad_()
    trained, tau = regions.clone().requires_grad_(), (-log_scale).exp()
    grounding_loss(image_caption_similarity(trained, words, counts, tau), tau).backward()
    fewer = recorded["ground_empty_num_words"]
    similarity = image_caption_similarity(regions, words, fewer, 0.07)
    return outputs | {
        "ground_grad_z_tau007": trained.grad,
        "ground_grad_log_inv_tau_tau007": log_scale.grad,
        "ground_empty_loss_tau007": grounding_loss(similarity, 0.07, fewer > 0),
    }


def infer_outputs(recorded: Recorded) -> dict[str, Any]:
    masks, words = recorded["infer_mask_logits"].sigmoid(), recorded["infer_words"]
    category = recorded["infer_word_category"]
    classes, size = int(category.max()) + 1, tuple(masks.shape[1:])
    cosines = region_word_cosine(recorded["infer_z"], words)  # (N, K)
    of_words = paint_scores(cosines, masks, size, 2)
    by_pixel = best_word(of_words.movedim(0, -1), category, classes).movedim(-1, 0)
    by_region = paint_scores(best_word(cosines, category, classes), masks, size, 64)
    places = recorded["infer_features"].movedim(0, -1)  # (H, W, D)
    per_pixel = best_word(region_word_cosine(places, words), category, classes).movedim(-1, 0)
    return {
        "infer_cosine": cosines.T,
        "infer_word_logits": of_words,
        "infer_category_logits": by_pixel,
        "infer_prediction": by_pixel.argmax(0),
        "infer_regionmax_category_logits": by_region,
        "infer_regionmax_prediction": by_region.argmax(0),
        "infer_perpixel_category_logits": per_pixel,
        "infer_perpixel_prediction": per_pixel.argmax(0),
    }


def scores_of(predictions: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    names = [str(index) for index in range(classes)]
    return scores_from_confusion(confusion_matrix(predictions.numpy(), labels.numpy(), classes, IGNORED), names)


def miou_outputs(recorded: Recorded) -> dict[str, Any]:
    logits, labels = recorded["miou_logits"], recorded["miou_gt"]
    restricted = torch.stack([present_only(*of_image, IGNORED) for of_image in zip(logits, labels, strict=True)])
    outputs: dict[str, Any] = {}
    for prefix, scores in (("miou", logits), ("gmiou", restricted)):
        predictions, classes = scores.argmax(1), scores.shape[1]
        found = scores_of(predictions, labels, classes)
        outputs |= {
            f"{prefix}_prediction": predictions,
            f"{prefix}_iou_per_class": np.array([found[f"IoU-{index}"] / 100 for index in range(classes)]),
            f"{prefix}_value": found["mIoU-gt"],
            f"{prefix}_value_old_denominator": found["mIoU-union"],
        }
    return outputs


def recall_outputs(recorded: Recorded) -> dict[str, Any]:
    proposals, masks = recorded["recall_mask_logits"] > 0, recorded["recall_gt_masks"]
    counts, ignored = recorded["recall_num_gt"].tolist(), recorded["recall_ignore"]
    table = torch.full(masks.shape[:2], torch.nan, dtype=torch.float64)
    for index, count in enumerate(counts):
        table[index, :count] = best_ious(proposals[index], masks[index, :count], ignored[index])
    thresholds = recorded["recall_thresholds"].tolist()
    if recorded.dtype == torch.float32:  # 0.7 as float32 is another number
        thresholds = [round(threshold, 6) for threshold in thresholds]
    return {"recall_best_iou": table, "recall_values": recall_at(table[~table.isnan()], thresholds)}


def oracle_outputs(recorded: Recorded) -> dict[str, Any]:
    labels, words = recorded["oracle_gt"], recorded["oracle_words"]
    number, counted = len(words), labels != IGNORED
    truth = torch.where(counted, labels, number)
    classes, segments = present_segments(truth, number)
    regions = pool_regions(segments[None].to(words.dtype), recorded["oracle_features"][None])[0]
    names = region_word_cosine(regions, words).argmax(1)
    by_truth = paint_segments(classes, segments, names)
    masks = recorded["oracle_mask_logits"].sigmoid()
    overlaps = torch.zeros(len(masks), number, dtype=torch.float64)
    shared = segment_intersections(masks[:, counted] > 0.5, labels[counted])
    overlaps[:, : shared.shape[1]] = ious_of(shared, labels[counted])
    outputs = {
        "oracle_gtmask_prediction": torch.where(counted, by_truth, -1),
        "oracle_gtmask_miou": scores_of(by_truth, labels, number)["mIoU-gt"],
        "oracle_iou": overlaps,
        "oracle_label": torch.where(overlaps.amax(1) > 0, overlaps.argmax(1), -1),
    }
    for short, how in (("hard", "iou"), ("soft", "soft_iou")):
        weights = label_weights(overlaps, overlaps, how).to(masks.dtype)
        predictions = name_by_overlap(masks, truth, number, how)
        outputs |= {
            f"oracle_{short}_scores": paint_scores(weights, masks, tuple(labels.shape), 64),
            f"oracle_{short}_prediction": predictions,
            f"oracle_{short}_miou": scores_of(predictions, labels, number)["mIoU-gt"],
        }
    return outputs


def vocbg_outputs(recorded: Recorded) -> dict[str, Any]:
    logits, coded = recorded["vocbg_logits59"], recorded["vocbg_raw_gt"]
    background, things = coded == 0, torch.where(coded == IGNORED, IGNORED, coded - 1)
    with_background = torch.where(background, 20, things)
    folded = fold_background(logits.argmax(1), 20)
    without, of_20 = torch.where(background, IGNORED, things), logits[:, :20].argmax(1)
    return {
        "vocbg_pred21": folded,
        "vocbg_gt21": with_background,
        "vocbg_miou21": scores_of(folded, with_background, 21)["mIoU-gt"],
        "vocbg_gt20": without,
        "vocbg_pred20": of_20,
        "vocbg_miou20_background_ignored": scores_of(of_20, without, 20)["mIoU-gt"],
    }


OUTPUTS: dict[str, Callable[[Recorded], dict[str, Any]]] = {
    name.removesuffix("_outputs"): function for name, function in list(globals().items()) if name.endswith("_outputs")
}


@pytest.fixture(scope="module")
def differences():
    """Return a dict, to be filled with the largest difference of each float array by precision."""
    found: dict[torch.dtype, dict[str, float]] = {dtype: {} for dtype in TOLERANCE}
    yield found
    for dtype, arrays in found.items():
        if arrays:
            name, largest = max(arrays.items(), key=lambda pair: pair[1])
            print(f"\nparity, openseg, {dtype}: {len(arrays)} float arrays, largest difference {largest:.1e} ({name})")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("group", OUTPUTS)
def test_formulas(group, dtype, differences):
    recorded = Recorded(dtype)
    for name, actual in OUTPUTS[group](recorded).items():
        expected, actual = recorded.arrays[name], actual.detach() if torch.is_tensor(actual) else actual
        actual = np.asarray(actual)
        assert actual.shape == expected.shape, name
        if expected.dtype.kind == "i":
            assert np.array_equal(actual, expected), name
            continue
        np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[dtype], equal_nan=True, err_msg=name)
        differences[dtype][name] = float(np.nanmax(np.abs(actual - expected)))


def test_every_array_is_read_or_compared():
    recorded = Recorded(torch.float64)
    compared = {name for function in OUTPUTS.values() for name in function(recorded)}
    assert not compared & recorded.read
    assert compared | recorded.read | {"seed"} == set(recorded.arrays)


def test_arguments_are_not_changed():
    recorded = Recorded(torch.float64)
    before = {name: array.copy() for name, array in recorded.arrays.items()}
    for function in OUTPUTS.values():
        function(recorded)  # its tensors share the memory of the arrays
    for name, array in before.items():
        assert np.array_equal(array, recorded.arrays[name], equal_nan=array.dtype.kind == "f"), name
