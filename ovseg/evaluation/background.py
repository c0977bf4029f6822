"""Classes that count as background: the 39 names of PASCAL Context that PASCAL VOC lacks (OpenSeg's "PAS-20").

In evaluation :class:`ovseg.data.protocol.Protocol` does the same for any order of the words (protocol PAS-20b): the
words of background have one class, ``to_class``. This function is for maps of labels whose foreground comes first.
"""

from __future__ import annotations

from torch import Tensor


def fold_background(labels: Tensor, num_foreground: int) -> Tensor:
    """Return label maps in which all classes after the first ``num_foreground`` are one, the background.

    Args:
        labels: int64, any shape, at least 0. An ignored label must be taken care of before, as it becomes background.
        num_foreground: number of classes that remain, and the label of background.

    Returns:
        int64 of the same shape, a new tensor.
    """
    return labels.clamp(max=num_foreground)
