"""Batch normalisation over the samples of all processes, on any device."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ovseg.grounding.sync import num_processes, sum_over_processes


class SharedBatchNorm(nn.SyncBatchNorm):
    """:class:`torch.nn.SyncBatchNorm` that also trains on a CPU; with one process, plain batch normalisation.

    Its parameters and buffers are those of :class:`torch.nn.BatchNorm1d`. Output, running statistics and, averaged over
    the processes, gradients are those of one process with all samples; processes may have different numbers of them.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel: (N, C) or (N, C, ...) to the same shape."""
        if not self.training or num_processes() == 1:
            return _BatchNorm.forward(self, x)
        if x.is_cuda:
            return super().forward(x)
        self._check_input_dim(x)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
        sums = sum_over_processes(torch.cat((x.sum(axes), x.new_tensor([x.numel() // x.shape[1]]))))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        variance = sum_over_processes(centred.square().sum(axes)) / count
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            return centred * (scale * self.weight).view(shape) + self.bias.view(shape)
        return centred * scale.view(shape)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics by the mean and the unbiased variance of a batch."""
        self.num_batches_tracked += 1
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance, weight)
