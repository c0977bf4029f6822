from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ovseg.errors import OvsegError
from ovseg.evaluation.confusion import confusion_matrix, per_class_rows, scores_from_confusion

PARITY = Path(__file__).parents[1] / "data" / "evaluator_parity.npz"


@pytest.fixture(scope="module")
def parity() -> dict[str, np.ndarray]:
    """Labels, confusion matrix and scores recorded from the reference evaluator (classes 1 and 4 never true)."""
    with np.load(PARITY, allow_pickle=False) as file:
        return dict(file)


def test_equals_the_recorded_reference(parity):
    names = parity["names_test"].tolist()
    conf = sum(confusion_matrix(parity[f"eval_pred{i}"], parity[f"eval_gt{i}"], len(names), 255) for i in (0, 1))
    assert conf.dtype == np.int64
    np.testing.assert_array_equal(conf, parity["eval_conf_matrix"])
    scores = scores_from_confusion(conf, names)
    recorded = parity["eval_result_names"].tolist()
    np.testing.assert_allclose([scores[name] for name in recorded], parity["eval_result_values"], rtol=1e-4)
    assert set(scores) - set(recorded) == {"mIoU-union", "mIoU-gt"}


def test_conventions_differ_by_the_class_that_is_only_predicted(parity):
    conf, names = parity["eval_conf_matrix"], parity["names_test"].tolist()
    union = scores_from_confusion(conf, names, convention="union")
    ground_truth = scores_from_confusion(conf, names, convention="ground_truth")
    total = union["IoU-sky"] + union["IoU-Red Brick Wall"] + union["IoU-bus, coach"]
    assert union["mIoU"] == union["mIoU-union"] == ground_truth["mIoU-union"] == pytest.approx(total / 4)
    assert ground_truth["mIoU"] == ground_truth["mIoU-gt"] == union["mIoU-gt"] == pytest.approx(total / 3)


def test_against_counting_pixel_by_pixel():
    rng = np.random.default_rng(0)
    pred, gt = rng.integers(0, 4, (9, 7)), rng.integers(0, 5, (9, 7))
    gt[gt == 4] = 200
    expected = np.zeros((5, 5), dtype=np.int64)
    for p, g in zip(pred.ravel(), gt.ravel(), strict=True):
        expected[p, 4 if g == 200 else g] += 1
    np.testing.assert_array_equal(confusion_matrix(pred, gt.astype(np.uint8), 4, 200), expected)


def test_sixteen_bit_labels():
    gt = np.array([[0, 300, 846, 65535]], dtype=np.uint16)
    conf = confusion_matrix(np.array([[0, 299, 846, 5]]), gt, 847, 65535)
    assert conf[0, 0] == conf[299, 300] == conf[846, 846] == conf[5, 847] == 1
    assert conf.sum() == 4


def test_subsets():
    # rows = prediction, columns = truth; classes 0, 1 seen, 2, 3 unseen; 3 has no truth but is predicted
    conf = np.array([[6, 2, 0, 0, 9], [0, 4, 1, 0, 0], [0, 0, 3, 0, 0], [2, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    names = ["a", "b", "c", "d"]
    scores = scores_from_confusion(conf, names, {"base": [0, 1]})
    a, b, c = 6 / 10, 4 / 7, 3 / 4
    assert scores["mIoU-base"] == pytest.approx(100 * (a + b) / 2)
    assert scores["mIoU-unbase"] == pytest.approx(100 * c / 2)
    assert scores["pAcc-base"] == pytest.approx(100 * 10 / 14)
    assert scores["pAcc-unbase"] == pytest.approx(100 * 3 / 4)
    seen, unseen = (a + b) / 2, c / 2
    assert scores["hIoU-base"] == pytest.approx(100 * 2 * seen * unseen / (seen + unseen))
    ground_truth = scores_from_confusion(conf, names, {"base": [0, 1]}, convention="ground_truth")
    assert ground_truth["mIoU-unbase"] == pytest.approx(100 * c)


def test_no_ground_truth_is_nan_and_silent(recwarn):
    scores = scores_from_confusion(np.zeros((3, 3), dtype=np.int64), ["a", "b"], {"base": [0]})
    assert all(np.isnan(value) for value in scores.values())
    assert not recwarn.list


def test_per_class_rows():
    conf = np.array([[6, 2, 1], [1, 0, 0], [0, 0, 0]])
    rows = per_class_rows(conf, ["a ", "b, c"], {"base": [0]})
    assert rows[0] == {
        **{"index": 0, "name": "a", "set": "base", "IoU": round(600 / 9, 4), "ACC": round(600 / 7, 4)},
        **{"gt_pixels": 7, "predicted_pixels": 8},
    }
    assert rows[1]["name"] == "b, c"
    assert (rows[1]["IoU"], rows[1]["set"]) == (0.0, "")


@pytest.mark.parametrize(
    ("pred", "gt", "message"),
    [
        ([[0, 1]], [[0, 7]], r"labels\.png holds the label 7.* 0\.\.2 and 255"),
        ([[0, 3]], [[0, 1]], r"predicted label 3 for image\.jpg.* 3 classes"),
        ([[0, 1, 2]], [[0, 1]], r"image\.jpg has shape \(1, 3\).*labels\.png have shape \(1, 2\)"),
    ],
)
def test_unusable_labels_name_file_and_value(pred, gt, message):
    with pytest.raises(OvsegError, match=message):
        confusion_matrix(
            np.array(pred), np.array(gt, dtype=np.uint8), 3, 255, pred_source="image.jpg", gt_source="labels.png"
        )


def test_unknown_convention_and_bad_subsets():
    conf = np.eye(3, dtype=np.int64)
    with pytest.raises(OvsegError, match=r"^convention is 'mean': use one of union"):
        scores_from_confusion(conf, ["a", "b"], convention="mean")
    with pytest.raises(OvsegError, match="'base' names class 2"):
        scores_from_confusion(conf, ["a", "b"], {"base": [0, 2]})
    with pytest.raises(OvsegError, match="'gt' would hide"):
        scores_from_confusion(conf, ["a", "b"], {"gt": [0]})
