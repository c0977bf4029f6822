"""The options of work by Ray; imports nothing that takes seconds, so that wrong ones are refused at once."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass

from ovseg.errors import OvsegError

LOCAL, RUNNING = "local", "auto"  # addresses of a cluster of this machine that is started, and of one that runs
RAY_HELP = (
    f"use Ray Data, an extra: {LOCAL} starts a cluster on this machine, {RUNNING} uses the one that runs here or at "
    "RAY_ADDRESS, HOST:PORT another one"
)
WORKERS_HELP = "workers of Ray; default: one for each GPU, without any one for each CPU core"
GPUS_HELP = "GPUs of each worker of Ray, also a part such as 0.5, or 0; default: 1 where there are any"


@dataclass(frozen=True)
class RayOptions:
    """Where Ray runs, and its workers.

    Attributes:
        address: ``local``, ``auto`` or ``HOST:PORT``.
        workers: processes that hold a model each; None for one per GPU, or without GPUs one per CPU core.
        gpus: of each worker; None for 1 where the cluster has any.

    Raises:
        OvsegError: a value cannot work, or Ray is not installed; names the option.
    """

    address: str
    workers: int | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        host, _, port = self.address.rpartition(":")
        if self.address.isdecimal():
            raise OvsegError(f"--ray {self.address} is no address: give --ray {LOCAL} --ray-workers {self.address}")
        if "//" in self.address:
            raise OvsegError(f"--ray {self.address}: run the command on a machine of the cluster, with --ray {RUNNING}")
        if self.address not in (LOCAL, RUNNING) and not (host and port.isdecimal() and 0 < int(port) < 65536):
            raise OvsegError(f"--ray {self.address!r} is no address: give {LOCAL}, {RUNNING} or HOST:PORT")
        if self.workers is not None and self.workers < 1:
            raise OvsegError(f"--ray-workers is {self.workers}: give a number of at least 1")
        if self.gpus is not None and not (
            0 <= self.gpus <= 1 or (self.gpus > 1 and math.isfinite(self.gpus) and self.gpus == int(self.gpus))
        ):
            raise OvsegError(f"--ray-gpus is {self.gpus:g}: give a number from 0 to 1, or a whole one")
        if importlib.util.find_spec("ray") is None:
            raise OvsegError('--ray needs Ray Data, which is not installed: pip install "ovseg[ray]"')


def uses_gpus(device: str | None) -> bool:
    """Return whether workers that are to compute on the device may have GPUs of their own."""
    return device is None or device.partition(":")[0] == "cuda"


def check_device(gpus: float | None, device: str | None) -> None:
    """Check that GPUs of workers are of the device that is to compute.

    Raises:
        OvsegError: they are not.
    """
    if gpus and not uses_gpus(device):
        raise OvsegError(f"--ray-gpus {gpus:g} gives workers GPUs, and --device {device} uses none: leave out one")


def ray_options(
    address: str | None, workers: int | None = None, gpus: float | None = None, device: str | None = None
) -> RayOptions | None:
    """Return the options of a command line; None without ``--ray``.

    Args:
        device: as ``--device`` names it.

    Raises:
        OvsegError: options of Ray without ``--ray``; or see :class:`RayOptions` and :func:`check_device`.
    """
    if address is None:
        for name, value in (("workers", workers), ("gpus", gpus)):
            if value is not None:
                raise OvsegError(f"--ray-{name} needs --ray: add --ray {LOCAL}, or the address of a cluster")
        return None
    check_device(gpus, device)
    return RayOptions(address, workers, gpus)
