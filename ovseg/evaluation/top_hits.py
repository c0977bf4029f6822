"""Top-1 and top-5 accuracy of samples that have one class each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor

TOP = 5


class TopHits:
    """Counts, by class, of samples and of those whose class is the first word or among the first five.

    Args:
        words: (K, D) unit vectors of the class names, all of which compete.
    """

    def __init__(self, words: Tensor):
        self.words = words
        # samples, right at first, right among the first five
        self.counts = words.new_zeros(len(words), 3, dtype=torch.float64)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Count samples with features (b, D) and classes int64 (b,)."""
        labels = labels.to(self.words.device)
        scores = features.float() @ self.words.T
        ranked = scores.topk(min(TOP, len(self.words))).indices == labels[:, None]
        hits = torch.stack([torch.ones_like(labels), ranked[:, 0].long(), ranked.any(1).long()], dim=1)
        self.counts.index_add_(0, labels, hits.double())

    def add_other_processes(self) -> None:
        """Add the counts of all processes, in each of them; every process calls it once."""
        if comm.get_world_size() > 1:
            dist.all_reduce(self.counts)

    def accuracies(self, members: Sequence[int] | None = None) -> tuple[float, float]:
        """Return top-1 and top-5 accuracy in percent of the samples of some classes, or of all."""
        counts = self.counts if members is None else self.counts[list(members)]
        samples, first, five = counts.sum(0).tolist()
        return 100 * first / max(samples, 1), 100 * five / max(samples, 1)

    def mean_class_top1(self) -> float:
        """Return the mean over the classes that occur of their top-1 accuracies in percent."""
        shown = self.counts[self.counts[:, 0] > 0]
        return float((100 * shown[:, 1] / shown[:, 0]).mean())
