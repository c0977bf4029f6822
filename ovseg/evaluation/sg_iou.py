"""SG-IoU: mean IoU that forgives a name which contains the true one, or says the same (SCAN, arXiv 2312.04089).

As the published evaluator computes it (specification of SCAN, section 10): a table gives a class c its "fathers", the
classes that a pixel of c may be called as well. A pixel of c that is called f counts as right by the share beta of the
pixels called f that are right when c passes for f:

    beta = (C[f, c] + C[f, f]) / (all that is called f)
    right[c] = C[c, c] + sum over fathers f of C[f, c] * beta
    IoU[c] = right[c] / (true c + called c - C[c, c])

Only the child gains, and only where the table says so: "animal" on a dog is forgiven, "dog" on an animal is not, unless
the table has that entry, too. No score exceeds 100 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ovseg.errors import OvsegError
from ovseg.evaluation.confusion import scores_from_confusion

METRICS = ("Vanilla", "SG-IoU")
PREFIX = "SG-"  # of every score's name


def check_metric(metric: str) -> None:
    """Raise OvsegError unless ``metric`` is one of :data:`METRICS`."""
    if metric not in METRICS:
        raise OvsegError(f"METRIC is {metric!r}: use one of {', '.join(METRICS)}")


def check_fathers(fathers: Mapping[int, Sequence[int]], num_classes: int, source: str = "the table of fathers") -> None:
    """Check a table.

    Args:
        fathers: class index -> indices of its fathers.
        num_classes: K.
        source: what to call the table in an error, usually its file.

    Raises:
        OvsegError: an index out of range, a class that is its own father, or a father twice; names the class.
    """
    for child, above in fathers.items():
        wrong = [index for index in (child, *above) if not 0 <= index < num_classes]
        if wrong:
            raise OvsegError(
                f"{source} names class {wrong[0]}, but the data set has classes 0..{num_classes - 1}: is it the table "
                "of another data set?"
            )
        if child in above:
            raise OvsegError(f"{source} makes class {child} its own father: a class always counts as right for itself")
        if len(set(above)) < len(above):
            raise OvsegError(f"{source} gives class {child} a father twice ({list(above)}): name each once")


def credited_pixels(conf: np.ndarray, fathers: Mapping[int, Sequence[int]]) -> np.ndarray:
    """Pixels that count as right for each class.

    Args:
        conf: (K+1,K+1) integers from :func:`ovseg.evaluation.confusion.confusion_matrix`, row = prediction.
        fathers: class index -> indices of its fathers; classes without fathers may be left out.

    Returns:
        (K,) float64, between the diagonal and the number of true pixels.

    Raises:
        OvsegError: see :func:`check_fathers`.
    """
    num_classes = len(conf) - 1
    check_fathers(fathers, num_classes)
    counts = np.asarray(conf)[:num_classes, :num_classes].astype(np.float64)
    called = counts.sum(axis=1)
    right = counts.diagonal().copy()
    for child, above in fathers.items():
        for father in above:
            if counts[father, child]:
                beta = (counts[father, child] + counts[father, father]) / called[father]
                right[child] += counts[father, child] * beta
    return right


def sg_scores(
    conf: np.ndarray,
    class_names: Sequence[str],
    fathers: Mapping[int, Sequence[int]],
    evaluation_set: Mapping[str, Sequence[int]] | None = None,
    convention: str = "union",
) -> dict[str, float]:
    """The scores of :func:`ovseg.evaluation.confusion.scores_from_confusion` with the fathers' forgiveness.

    Args:
        conf, class_names, evaluation_set, convention: as there.
        fathers: class index -> indices of its fathers.

    Returns:
        percent by name; each name is the plain score's with ``SG-`` before it, ``SG-mIoU`` first.

    Raises:
        OvsegError: as there, or see :func:`check_fathers`.
    """
    credited = credited_pixels(conf, fathers)
    scores = scores_from_confusion(conf, class_names, evaluation_set, convention, credited)
    return {f"{PREFIX}{name}": value for name, value in scores.items()}
