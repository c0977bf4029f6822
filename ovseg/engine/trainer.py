"""The training loop of one process."""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import time
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed
from detectron2.engine import TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ovseg.data.sampler import mix
from ovseg.errors import OvsegError

logger = logging.getLogger(__name__)


class Trainer(TrainerBase):
    """Runs the iterations of one process.

    Before each iteration torch's generators are seeded with (seed, iteration, rank): dropout in iteration i is the same
    whether or not the run was interrupted, and no generator state has to be kept.

    Args:
        model: gives a dict of scalar losses for a batch; wrapped for several processes if they are.
        loader: endless batches.
        optimizer, scheduler: stepped once an iteration.
        seed: of the run.
        autocast_dtype: of mixed precision, None for full precision. float16 scales the losses.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        *,
        seed: int,
        autocast_dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.model = model
        self.parallel_model = _parallel(model)
        self.loader = loader
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.seed = seed
        self.device = next(model.parameters()).device
        self.autocast_dtype = autocast_dtype
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=autocast_dtype is torch.float16)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Iterate from ``start_iter`` to ``max_iter``; hooks' ``after_train`` runs even if an iteration fails."""
        logger.info("training from iteration %d to %d", start_iter, max_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        self.model.train()
        with contextlib.closing(_Batches(self.loader)) as self._batches, EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.iter = max_iter
            except BaseException:
                with contextlib.suppress(Exception):  # writers fail once more on a full disk: the first error counts
                    self.after_train()
                raise
            self.after_train()

    def run_step(self) -> None:
        """One iteration.

        Raises:
            OvsegError: a loss is infinite or NaN; the model is not touched then.
        """
        began = time.perf_counter()
        batch = self._batches.next()
        data_time = time.perf_counter() - began
        torch.manual_seed(mix(self.seed, self.iter, comm.get_rank()))
        with torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None):
            losses = self.parallel_model(batch)
            total = torch.stack(list(losses.values())).sum()
        self._record(losses, data_time)
        self.optimizer.zero_grad()
        self.scaler.scale(total).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Everything but the model; ``iteration`` is the last one that is complete."""
        return {
            "iteration": self.iter,
            "seed": self.seed,
            "optimizer": self.optimizer.state_dict(),
            "grad_scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the optimiser's averages, the place in the schedule and the loss scale of :meth:`state_dict`.

        Learning rates and weight decays are those of this trainer, so a longer schedule can be resumed into.

        Raises:
            OvsegError: the state is that of other parameters.
        """
        theirs, ours = state["optimizer"], self.optimizer.state_dict()
        if [group.get("name") for group in theirs["param_groups"]] != [
            group.get("name") for group in ours["param_groups"]
        ]:
            raise OvsegError("the checkpoint's optimiser trains other parameters: use the configuration of its run")
        self.optimizer.load_state_dict({"state": theirs["state"], "param_groups": ours["param_groups"]})
        # Detectron2's schedules are functions of the iteration, so nothing else has to be remembered
        self.scheduler.load_state_dict({**self.scheduler.state_dict(), "last_epoch": state["iteration"] + 1})
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_lr(), strict=True):
            group["lr"] = rate
        if state["grad_scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["grad_scaler"])

    def _record(self, losses: dict[str, torch.Tensor], data_time: float) -> None:
        """Put the losses, averaged over processes, into the storage; one synchronisation with the device."""
        values = torch.stack([loss.detach().double() for loss in losses.values()])
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(values)
            values /= comm.get_world_size()
        scalars = dict(zip(losses, values.tolist(), strict=True))
        if not all(map(math.isfinite, scalars.values())):
            listed = ", ".join(f"{name} {value:.4g}" for name, value in scalars.items())
            raise OvsegError(
                f"the loss became infinite or NaN at iteration {self.iter} ({listed}): lower SOLVER.BASE_LR, raise "
                "SOLVER.WARMUP_ITERS or set SOLVER.AMP.ENABLED False, and take up the last checkpoint with --resume"
            )
        # without smoothing, files hold the values themselves and two runs can be compared
        self.storage.put_scalars(data_time=data_time, total_loss=sum(scalars.values()), **scalars, smoothing_hint=False)


class _Batches:
    """The loader's iterator, whose worker processes end when it is closed."""

    def __init__(self, loader: Iterable[list[dict[str, Any]]]):
        self._iterator = iter(loader)

    def next(self) -> list[dict[str, Any]]:
        return next(self._iterator)

    def close(self) -> None:
        del self._iterator


def _parallel(model: nn.Module) -> nn.Module:
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    names = inspect.signature(DistributedDataParallel.__init__).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # before PyTorch 2.13
    return DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None, **{buffers: False}
    )
