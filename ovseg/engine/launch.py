"""One process for each device, as Detectron2's launcher starts, which needs CUDA: for CPUs and ``torchrun``, too."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessException, ProcessExitedException

from ovseg.errors import OvsegError
from ovseg.io.devices import configured_device

TIMEOUT = datetime.timedelta(minutes=30)
USER_ERROR = 2  # exit status of a process whose OvsegError the launcher reports


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        processes_here: on this machine.
        machines, machine_rank: as in Detectron2.
        url: where the processes meet.
        cuda: one GPU for each process; otherwise all compute on the CPU.
    """

    processes_here: int
    machines: int = 1
    machine_rank: int = 0
    url: str = "auto"
    cuda: bool = False

    @property
    def size(self) -> int:
        """Return the number of all processes."""
        return self.processes_here * self.machines


def started_by_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether ``torchrun`` (or what sets the same variables) has started this process."""
    return all(name in environment for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"))


def choose_device(device: str, num_gpus: int, option: str = "MODEL.DEVICE") -> str:
    """Return the device that a run with ``--num-gpus`` uses: "cpu", "cuda", or what else ``device`` names.

    Args:
        device: as the user has named it.
        num_gpus: 0 means the CPU; 1, the default, falls back to it; more means as many processes, which compute on
            the CPU only if ``device`` says so.
        option: the key or the flag that gives ``device``.

    Raises:
        OvsegError: more GPUs asked for than this machine has, a negative number, or no device of this machine.
    """
    if num_gpus < 0:
        raise OvsegError(f"--num-gpus {num_gpus} is negative: give the number of GPUs, 0 for the CPU")
    kind = device.partition(":")[0]
    if num_gpus == 0 or kind == "cpu":
        return "cpu"
    if num_gpus == 1 and not started_by_torchrun():
        return str(configured_device(device))
    if kind != "cuda":
        raise OvsegError(f"{option} is {device}: several processes compute on CUDA devices, or with cpu on the CPU")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_gpus == 1:
        return configured_device(kind).type
    if num_gpus > there:
        raise OvsegError(
            f"--num-gpus {num_gpus}, but this machine has {there} CUDA device{'' if there == 1 else 's'}: ask for "
            f"fewer, or add {option} cpu to run {num_gpus} processes on the CPU"
        )
    return "cuda"


def launch(main: Callable[..., Any], world: World, args: Sequence[Any] = ()) -> Any:
    """Run ``main(*args)`` in every process of ``world``; in this one if ``torchrun`` started it or it is the only one.

    Args:
        main: a function that child processes can import.

    Returns:
        result of ``main`` if it ran in this process, else None.

    Raises:
        OvsegError: one raised by any process, or a process was killed; the others are ended first.
    """
    if started_by_torchrun():
        rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        here = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        return _in_group(main, args, "env://", rank, size, local, here, world.cuda)
    if world.size == 1:
        return main(*args)
    return _spawn(main, world, args)


def _spawn(main: Callable[..., Any], world: World, args: Sequence[Any]) -> None:
    url = world.url
    if url == "auto":
        if world.machines > 1:
            raise OvsegError("--dist-url auto serves one machine only: give tcp://HOST:PORT of the first machine")
        url = f"tcp://127.0.0.1:{_free_port()}"
    # processes of a fork server import the package once, where there is one; none is forked from this process: CUDA
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    multiprocessing.set_forkserver_preload([__name__])
    errors = multiprocessing.get_context(method).SimpleQueue()
    arguments = (main, args, world, url, errors)
    context = mp.start_processes(_worker, arguments, world.processes_here, join=False, start_method=method)
    try:
        while not context.join():
            pass
    except ProcessException as failure:
        if not errors.empty():
            raise OvsegError(errors.get()) from None
        raise _explain(failure, context.processes) from None
    finally:
        for process in context.processes:  # after Ctrl-C they may still compute
            if process.is_alive():
                process.terminate()


def _explain(failure: ProcessException, processes: Sequence[Any]) -> Exception:
    """Return the error of the process that failed first: peers of a killed one fail too, with a broken connection."""
    killed = {rank: -process.exitcode for rank, process in enumerate(processes) if (process.exitcode or 0) < 0}
    killed = {rank: number for rank, number in killed.items() if number != signal.SIGTERM} or (
        killed if isinstance(failure, ProcessExitedException) else {}
    )
    for rank, number in killed.items():
        return OvsegError(
            f"process {rank} of {len(processes)} was killed by {signal.Signals(number).name} (the system does so when "
            "memory runs out: a smaller batch or fewer processes need less); the others were stopped, --resume resumes "
            "from the last checkpoint"
        )
    return failure


def _worker(
    local_rank: int, main: Callable[..., Any], args: Sequence[Any], world: World, url: str, errors: Any
) -> None:
    # data loader workers start as in a run of one process, not slowly as this process did
    multiprocessing.set_start_method(None, force=True)
    rank = world.machine_rank * world.processes_here + local_rank
    try:
        _in_group(main, args, url, rank, world.size, local_rank, world.processes_here, world.cuda)
    except OvsegError as error:
        errors.put(str(error))
        sys.stdout.flush()
        os._exit(USER_ERROR)  # peers may wait for this process, so ending the group in order would wait for ever


def _in_group(
    main: Callable[..., Any],
    args: Sequence[Any],
    url: str,
    rank: int,
    size: int,
    local_rank: int,
    processes_here: int,
    cuda: bool,
) -> Any:
    if cuda:
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(torch.get_num_threads() // processes_here, 1))
    try:
        dist.init_process_group(
            "nccl" if cuda else "gloo", init_method=url, rank=rank, world_size=size, timeout=TIMEOUT
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise OvsegError(
            f"process {rank} of {size} cannot join the others at {url} ({error}): is the port taken by an earlier run? "
            "--dist-url auto finds a free one"
        ) from error
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated", module="detectron2")  # how it gathers
    _create_local_group(processes_here)
    comm.synchronize()
    result = main(*args)
    _leave_group()
    return result


def _leave_group() -> None:
    """End the groups together: a process that leaves while another still talks to it can abort that one."""
    comm.synchronize()
    comm._LOCAL_PROCESS_GROUP = None
    dist.destroy_process_group()


def _create_local_group(processes_here: int) -> None:
    """Set which processes share a machine for Detectron2; 0.6 has no function for it and does this in its launcher."""
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(processes_here)
        return
    for first in range(0, dist.get_world_size(), processes_here):
        ranks = list(range(first, first + processes_here))
        group = dist.new_group(ranks)
        if dist.get_rank() in ranks:
            comm._LOCAL_PROCESS_GROUP = group


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
