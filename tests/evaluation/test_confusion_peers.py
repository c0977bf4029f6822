"""The confusion matrix and its scores against torchmetrics, Detectron2's evaluator, and plain counting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator as Detectron2Evaluator
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from ovseg.evaluation.confusion import confusion_matrix, label_runs, scores_from_confusion


def plain(pred: np.ndarray, gt: np.ndarray, num_classes: int, ignore_label: int | None) -> np.ndarray:
    """The textbook way: one code per pixel, counted."""
    truth = gt.astype(np.int64) if ignore_label is None else np.where(gt == ignore_label, num_classes, gt)
    side = num_classes + 1
    return np.bincount((side * pred.astype(np.int64) + truth).ravel(), minlength=side * side).reshape(side, side)


@st.composite
def label_maps(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, int | None]:
    """Prediction and truth in blocks or as noise, of any integer type that holds them; most classes are missing."""
    num_classes = draw(st.sampled_from([1, 2, 5, 150, 255, 256, 459, 847]))
    ignore_label = draw(st.sampled_from([None, 65535, *([255] if num_classes <= 255 else [])]))
    values = st.integers(0, num_classes - 1)
    palette = draw(st.lists(values, min_size=1, max_size=6))
    rows, columns, block = draw(st.integers(0, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    size = rows * columns
    pred = draw(st.lists(st.sampled_from(palette), min_size=size, max_size=size))
    true = palette if ignore_label is None else [*palette, ignore_label]
    gt = draw(st.lists(st.sampled_from(true), min_size=size, max_size=size))
    gt_types = [np.int32, np.int64, np.uint16, *([np.uint8] if max([*true, 0]) < 256 else [])]
    maps = []
    for labels, types in ((pred, [np.int64, np.int32, np.uint16]), (gt, gt_types)):
        coarse = np.array(labels, dtype=draw(st.sampled_from(types))).reshape(rows, columns)
        maps.append(coarse.repeat(block, 0).repeat(block, 1))
    if draw(st.booleans()):
        maps = [np.asfortranarray(labels) for labels in maps]  # as from a transposed or sliced array
    return *maps, num_classes, ignore_label


@settings(max_examples=150, deadline=None)
@given(label_maps())
def test_runs_count_as_pixels_do(drawn):
    pred, gt, num_classes, ignore_label = drawn
    expected = plain(pred, gt, num_classes, ignore_label)
    conf = confusion_matrix(pred, gt, num_classes, ignore_label)
    assert conf.dtype == np.int64
    np.testing.assert_array_equal(conf, expected)
    total = conf.copy()
    runs = label_runs(pred, gt, num_classes, ignore_label)
    runs.add_to(total)
    np.testing.assert_array_equal(total, 2 * expected)
    assert runs.lengths.sum() == gt.size
    right, counted = runs.right_and_counted(num_classes)
    assert (right, counted) == (np.trace(expected), expected[:, :num_classes].sum())


@settings(max_examples=60, deadline=None)
@given(label_maps())
def test_equals_torchmetrics(drawn):
    """Their matrix has the truth in its rows and no place for ignored pixels; their mean is over classes with truth."""
    pred, gt, num_classes, ignore_label = drawn
    if num_classes < 2:  # they want two
        return
    arguments = {"num_classes": num_classes, "ignore_index": ignore_label, "validate_args": False}
    preds, target = torch.from_numpy(pred.astype(np.int64)), torch.from_numpy(gt.astype(np.int64))
    ours = confusion_matrix(pred, gt, num_classes, ignore_label)
    if not ours[:, :num_classes].any():
        return  # nothing counts; they fail on empty input
    theirs = MulticlassConfusionMatrix(**arguments)(preds, target).numpy()
    np.testing.assert_array_equal(ours[:num_classes, :num_classes], theirs.T)
    jaccard = MulticlassJaccardIndex(**arguments, average="none")(preds, target).double().numpy()
    scores = scores_from_confusion(ours, [str(index) for index in range(num_classes)])
    present = theirs.sum(axis=1) > 0
    iou = np.array([scores[f"IoU-{index}"] for index in range(num_classes)])
    np.testing.assert_array_equal(np.isnan(iou), ~present)
    np.testing.assert_allclose(iou[present], 100 * jaccard[present], rtol=1e-5)
    assert scores["mIoU-gt"] == pytest.approx(100 * jaccard[present].mean(), rel=1e-5)
    predicted = present | (theirs.sum(axis=0) > 0)
    assert scores["mIoU-union"] == pytest.approx(100 * jaccard[predicted].mean(), rel=1e-5)


@pytest.fixture
def registered(tmp_path):
    """Function that registers a data set of given label maps and gives its name."""
    names = []

    def register(truths: list[np.ndarray], num_classes: int, ignore_label: int) -> str:
        records = []
        for index, truth in enumerate(truths):
            path = tmp_path / f"{index}.{'tif' if truth.dtype == np.uint16 else 'png'}"
            Image.fromarray(truth).save(path)
            records.append({"file_name": f"{index}.jpg", "sem_seg_file_name": str(path)})
        name = f"confusion_peers_{num_classes}"
        DatasetCatalog.register(name, lambda: records)
        names.append(name)
        classes = [f"class {index}" for index in range(num_classes)]
        MetadataCatalog.get(name).set(stuff_classes=classes, ignore_label=ignore_label)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize(("num_classes", "ignore_label", "dtype"), [(150, 255, np.uint8), (847, 65535, np.uint16)])
def test_equals_detectron2s_evaluator(registered, num_classes, ignore_label, dtype):
    """Their matrix is the sum of bincounts over pixels; ignored pixels are in the last column, as here."""
    rng = np.random.default_rng(num_classes)
    occurring = rng.choice(num_classes, 40, replace=False)  # the others are missing, some of them are predicted
    truths = [rng.choice([*occurring, ignore_label], (6, 9)).astype(dtype).repeat(8, 0).repeat(8, 1) for _ in range(3)]
    mistaken = rng.choice(num_classes, 30)
    preds = [np.where(rng.random(truth.shape) < 0.5, truth, rng.choice(mistaken, truth.shape)) for truth in truths]
    preds = [np.where(pred == ignore_label, 0, pred) for pred in preds]
    name = registered(truths, num_classes, ignore_label)
    theirs = Detectron2Evaluator(name, distributed=False)
    theirs.reset()
    for sample, pred in zip(DatasetCatalog.get(name), preds, strict=True):
        scores = torch.nn.functional.one_hot(torch.from_numpy(pred.astype(np.int64)), num_classes).permute(2, 0, 1)
        theirs.process([sample], [{"sem_seg": scores}])
    conf = sum(confusion_matrix(p, t, num_classes, ignore_label) for p, t in zip(preds, truths, strict=True))
    np.testing.assert_array_equal(conf, theirs._conf_matrix)
    scores, expected = scores_from_confusion(conf, theirs._class_names), theirs.evaluate()["sem_seg"]
    # 0.6 divides by the union, later versions by the classes with truth
    assert any(expected["mIoU"] == pytest.approx(scores[ours_name]) for ours_name in ("mIoU-union", "mIoU-gt"))
    assert scores["mIoU-gt"] > 1.1 * scores["mIoU-union"]
    for ours_name in ("fwIoU", "mACC", "pACC", *(f"IoU-{name}" for name in theirs._class_names)):
        assert scores[ours_name] == pytest.approx(expected[ours_name], nan_ok=True)
