"""SG-IoU: mean IoU that gives credit for parent classes and synonyms of the true class (SCAN, arXiv 2312.04089).

Computed as in the published evaluator (specification of SCAN, section 10). A table lists the parent classes ("fathers")
f of a class c. A pixel of c that is predicted as f counts as correct with weight beta, the share of the pixels
predicted as f that are correct if c is accepted as f:

    beta = (C[f, c] + C[f, f]) / (pixels predicted as f)
    right[c] = C[c, c] + sum over parents f of C[f, c] * beta
    IoU[c] = right[c] / (pixels of c + pixels predicted as c - C[c, c])

Only the child class gains: with {dog: animal}, predicting "animal" on a dog earns credit, predicting "dog" on an animal
does not, unless the table has that entry, too. No score exceeds 100 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ovseg.errors import OvsegError
from ovseg.evaluation.confusion import scores_from_confusion

PREFIX = "SG-"  # of the names of all scores


def check_fathers(fathers: Mapping[int, Sequence[int]], num_classes: int, source: str = "the table of parents") -> None:
    """Check a table of parent classes.

    Args:
        fathers: class index -> indices of its parent classes.
        num_classes: K.
        source: name of the table in error messages, usually its file.

    Raises:
        OvsegError: an index is out of range, a class is its own parent, or a parent is listed twice.
    """
    for child, above in fathers.items():
        wrong = [index for index in (child, *above) if not 0 <= index < num_classes]
        if wrong:
            raise OvsegError(
                f"{source} names class {wrong[0]}, but the data set has classes 0..{num_classes - 1}: use its table"
            )
        if child in above:
            raise OvsegError(f"{source} makes class {child} its own parent: remove it, a class always matches itself")
        if len(set(above)) < len(above):
            raise OvsegError(f"{source} gives class {child} a parent twice ({list(above)}): name each once")


def credited_pixels(conf: np.ndarray, fathers: Mapping[int, Sequence[int]]) -> np.ndarray:
    """Compute the number of pixels that count as correct for each class.

    Args:
        conf: (K+1,K+1) integers from :func:`ovseg.evaluation.confusion.confusion_matrix`, row = prediction.
        fathers: class index -> indices of its parent classes; classes without parents may be left out.

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
    """Compute the scores of :func:`ovseg.evaluation.confusion.scores_from_confusion` with credit for parent classes.

    Args:
        conf, class_names, evaluation_set, convention: see
            :func:`ovseg.evaluation.confusion.scores_from_confusion`.
        fathers: class index -> indices of its parent classes.

    Returns:
        percent by name; each name is that of the plain score with the prefix ``SG-``; ``SG-mIoU`` is the first.

    Raises:
        OvsegError: see :func:`ovseg.evaluation.confusion.scores_from_confusion` and :func:`check_fathers`.
    """
    credited = credited_pixels(conf, fathers)
    scores = scores_from_confusion(conf, class_names, evaluation_set, convention, credited)
    return {f"{PREFIX}{name}": value for name, value in scores.items()}
