"""The training loop of one process, for segmenters and for CLIP."""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ovseg.data.sampler import mix
from ovseg.errors import OvsegError

logger = logging.getLogger(__name__)


class Trainer(TrainerBase):
    """Runs the iterations of one process; hooks do everything else.

    Before each iteration torch's generators are seeded with (seed, iteration, rank): dropout in iteration i is the same
    whether or not the run was interrupted, and no generator state has to be kept.

    Args:
        step: computes the losses of a batch, a dict of scalars whose sum is minimised. A
            :class:`DistributedDataParallel` averages its gradients over the processes; of any other callable, the
            trainer does.
        batches: at least as many as iterations are left.
        optimizer: of the parameters that ``step`` uses.
        scheduler: a function of the iteration; a hook steps it.
        seed: of the run.
        autocast_dtype: of mixed precision around the whole step, None for full precision or a step that sees to it.
        scale_losses: as float16 needs it.
        remedy: what the user can do against an infinite loss.
        accumulation: iterations whose mean gradient makes a step of the optimiser, which comes after the last of them.
            A run starts, stops and keeps its state between steps, at multiples of this number.
    """

    def __init__(
        self,
        step: Callable[[Any], dict[str, Tensor]],
        batches: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        *,
        seed: int,
        autocast_dtype: torch.dtype | None = None,
        scale_losses: bool = False,
        remedy: str = "lower the learning rate",
        accumulation: int = 1,
    ):
        super().__init__()
        self.step, self.batches = step, batches
        self.optimizer, self.scheduler = optimizer, scheduler
        self.seed, self.remedy, self.accumulation = seed, remedy, accumulation
        self.device = optimizer.param_groups[0]["params"][0].device
        self.autocast_dtype = autocast_dtype
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scale_losses)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Iterate from ``start_iter`` to ``max_iter``; hooks' ``after_train`` runs even if an iteration fails."""
        logger.info("training from iteration %d to %d", start_iter, max_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        self._iterator = iter(self.batches)
        try:
            with EventStorage(start_iter) as self.storage:
                try:
                    self.before_train()
                    for self.iter in range(start_iter, max_iter):
                        self.before_step()
                        self.run_step()
                        self.after_step()
                    self.iter = max_iter
                except BaseException:
                    with contextlib.suppress(Exception):  # writers fail again on a full disk: the first error counts
                        self.after_train()
                    raise
                self.after_train()
        finally:
            del self._iterator  # ends its worker processes

    def run_step(self) -> None:
        """Run one iteration.

        Raises:
            OvsegError: a loss is infinite or NaN; the parameters stay as they are.
        """
        began = time.perf_counter()
        batch = next(self._iterator)
        data_time = time.perf_counter() - began
        torch.manual_seed(mix(self.seed, self.iter, comm.get_rank()))
        if self.iter % self.accumulation == 0:
            self.optimizer.zero_grad()
        complete = (self.iter + 1) % self.accumulation == 0  # all gradients of a step are there
        with contextlib.nullcontext() if complete else self._local_gradients():
            with autocast(self.device, self.autocast_dtype):
                losses = self.step(batch)
                total = torch.stack(list(losses.values())).sum()
            self._record(losses, data_time)
            self.scaler.scale(total / self.accumulation).backward()
        if not complete:
            return
        if not isinstance(self.step, DistributedDataParallel):
            average_gradients(p for group in self.optimizer.param_groups for p in group["params"])
        self.scaler.unscale_(self.optimizer)  # a fused optimiser would do it after the clipping
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the model; ``iteration`` is the last one that is complete."""
        return {
            "iteration": self.iter,
            "seed": self.seed,
            "optimizer": self.optimizer.state_dict(),
            "grad_scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the optimiser's averages, the place in the schedule and the loss scale of :meth:`state_dict`.

        Learning rates and weight decays are those of this trainer, so a longer schedule can be resumed into.

        Raises:
            OvsegError: the state is that of other parameters.
            Exception: of any other kind that damaged contents lead to, see ``CheckpointFolder.reading``.
        """
        theirs, ours = state["optimizer"], self.optimizer.state_dict()
        if _layout(theirs) != _layout(ours):
            raise OvsegError("the checkpoint's optimiser trains other parameters: use the configuration of its run")
        self.optimizer.load_state_dict({"state": theirs["state"], "param_groups": ours["param_groups"]})
        # schedules are functions of the iteration, so nothing else has to be remembered
        self.scheduler.load_state_dict({**self.scheduler.state_dict(), "last_epoch": state["iteration"] + 1})
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_lr(), strict=True):
            group["lr"] = rate
        if state["grad_scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["grad_scaler"])

    def _local_gradients(self) -> contextlib.AbstractContextManager[None]:
        """Return the context in which gradients are added up in each process on its own."""
        return self.step.no_sync() if isinstance(self.step, DistributedDataParallel) else contextlib.nullcontext()

    def _record(self, losses: dict[str, Tensor], data_time: float) -> None:
        """Put the losses, averaged over processes, into the storage; one synchronisation with the device."""
        values = torch.stack([loss.detach().double() for loss in losses.values()])
        if comm.get_world_size() > 1:
            dist.all_reduce(values)
            values /= comm.get_world_size()
        scalars = dict(zip(losses, values.tolist(), strict=True))
        if not all(map(math.isfinite, scalars.values())):
            listed = ", ".join(f"{name} {value:.4g}" for name, value in scalars.items())
            raise OvsegError(f"the loss became infinite or NaN at iteration {self.iter} ({listed}): {self.remedy}")
        # without smoothing, files hold the values themselves and two runs can be compared
        self.storage.put_scalars(data_time=data_time, total_loss=sum(scalars.values()), **scalars, smoothing_hint=False)


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Return the context of mixed precision; of full precision for None."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def parallel(model: nn.Module) -> nn.Module:
    """Wrap a model for several processes, where there are several.

    A model says by ``has_unused_parameters`` that some of its trainable parameters have no part in the losses.
    """
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    names = inspect.signature(DistributedDataParallel.__init__).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # before PyTorch 2.13
    return DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=getattr(model, "has_unused_parameters", False),
        **{buffers: False},
    )


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their means over all processes; do nothing in a single one."""
    if comm.get_world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(together)
    together /= comm.get_world_size()
    for gradient, mean in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _layout(optimizer: dict[str, Any]) -> list[tuple[str | None, int]]:
    """Return the name of each parameter group, if it has one, and the number of its tensors."""
    return [(group.get("name"), len(group["params"])) for group in optimizer["param_groups"]]
