"""The options of work by Ray; imports nothing that takes seconds, so that wrong ones are refused at once."""

from __future__ import annotations

import importlib.util
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
        if self.gpus is not None and not (0 <= self.gpus <= 1 or self.gpus == int(self.gpus) > 1):
            raise OvsegError(f"--ray-gpus is {self.gpus:g}: give a number from 0 to 1, or a whole one")
        if importlib.util.find_spec("ray") is None:
            raise OvsegError('--ray needs Ray Data, which is not installed: pip install "ovseg[ray]"')


def ray_options(address: str | None, workers: int | None = None, gpus: float | None = None) -> RayOptions | None:
    """Return the options of a command line; None without ``--ray``.

    Raises:
        OvsegError: options of Ray without ``--ray``; or see :class:`RayOptions`.
    """
    if address is None:
        for name, value in (("workers", workers), ("gpus", gpus)):
            if value is not None:
                raise OvsegError(f"--ray-{name} needs --ray: add --ray {LOCAL}, or the address of a cluster")
        return None
    return RayOptions(address, workers, gpus)
