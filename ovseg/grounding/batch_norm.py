"""Batch normalisation over the samples of all processes, on any device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ovseg.grounding.sync import num_processes, sum_over_processes


class SharedBatchNorm(nn.BatchNorm1d):
    """:class:`torch.nn.BatchNorm1d` whose statistics in training are those of the samples of all processes.

    Output, running statistics and, averaged over the processes, gradients are those of one process with all samples;
    processes may have different numbers of them. :class:`torch.nn.SyncBatchNorm` needs a GPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel: (N, C) or (N, C, L) to the same shape."""
        if not self.training or num_processes() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        axes, shape = ([0], [1, -1]) if x.ndim == 2 else ([0, 2], [1, -1, 1])
        # the mean first: a sum of squares alone loses digits
        sums = sum_over_processes(torch.cat((values.sum(axes), values.new_tensor([x.numel() // x.shape[1]]))))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = values - mean.view(shape)
        variance = sum_over_processes(centred.square().sum(axes)) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics by the mean and the unbiased variance of a batch."""
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
