"""One process for each device, as Detectron2's launcher starts, which needs CUDA: for CPUs and ``torchrun``, too."""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import threading
import urllib.parse
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessException, ProcessExitedException

from ovseg.errors import OvsegError, reason_of
from ovseg.io.devices import configured_device

PATIENCE = 300.0  # seconds; machines of a cluster start minutes apart
LONGEST_PATIENCE = datetime.timedelta(weeks=1).total_seconds()
TIMEOUT = datetime.timedelta(minutes=30)
USER_ERROR = 2  # exit status of a process whose OvsegError the launcher reports


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        processes_here: on this machine.
        machines, machine_rank: as in Detectron2.
        url: where the processes meet, tcp://HOST:PORT of the first machine; "auto" for a single one.
        cuda: one GPU for each process; otherwise all compute on the CPU.
        patience: seconds that processes wait for each other at the start.

    Raises:
        OvsegError: there is no such machine; names the option.
    """

    processes_here: int
    machines: int = 1
    machine_rank: int = 0
    url: str = "auto"
    cuda: bool = False
    patience: float = PATIENCE

    def __post_init__(self) -> None:
        if self.machines < 1:
            raise OvsegError(f"--num-machines {self.machines}: give a number of at least 1")
        if not 0 <= self.machine_rank < self.machines:
            numbers = "0" if self.machines == 1 else f"0 to {self.machines - 1}"
            raise OvsegError(
                f"--machine-rank {self.machine_rank}: the machines of --num-machines {self.machines} have the numbers "
                f"{numbers}"
            )
        if not 0 < self.patience <= LONGEST_PATIENCE:
            raise OvsegError(f"--dist-timeout {self.patience:g}: give seconds, more than 0 and at most a week")

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
    """Run ``main(*args)`` in every process of ``world``.

    It runs in this process if ``torchrun`` started it, or if it is the only one of this machine.

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
        with _joining(rank, size, "the address of torchrun"):
            store, *_ = next(dist.rendezvous("env://", rank, size, timeout=TIMEOUT))
        return _in_group(main, args, store, rank, size, local, here, world.cuda)
    if world.size == 1:
        return main(*args)
    url = world.url
    if url == "auto":
        if world.machines > 1:
            raise OvsegError("--dist-url auto serves one machine only: give tcp://HOST:PORT of the first machine")
        url = f"tcp://127.0.0.1:{_free_port()}"
    meeting_place(url)
    if world.processes_here == 1:
        rank = world.machine_rank
        return _in_group(main, args, _meet(world, url, rank), rank, world.size, 0, 1, world.cuda)
    return _spawn(main, world, url, args)


def _spawn(main: Callable[..., Any], world: World, url: str, args: Sequence[Any]) -> None:
    # A fork server, where there is one, imports PyTorch and Detectron2 once for all processes. None is forked from
    # this process, which CUDA does not allow.
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
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    # data loader workers start as in a run of one process, not slowly as this process did
    multiprocessing.set_start_method(None, force=True)
    rank = world.machine_rank * world.processes_here + local_rank
    try:
        store = _meet(world, url, rank)
        _in_group(main, args, store, rank, world.size, local_rank, world.processes_here, world.cuda)
    except OvsegError as error:
        errors.put(str(error))
        sys.stdout.flush()
        os._exit(USER_ERROR)  # peers may wait for this process, so ending the group in order would wait for ever


def _end_with_launcher() -> None:
    """Wait until the launcher is gone, even by SIGKILL, and end this process, whose parent is the fork server."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def meeting_place(url: str) -> tuple[str, int]:
    """Return host and port of ``tcp://HOST:PORT``.

    Raises:
        OvsegError: it is of another form.
    """
    with contextlib.suppress(ValueError):  # of a port that is no number
        parts = urllib.parse.urlsplit(url)
        if parts.scheme == "tcp" and parts.hostname and parts.port:
            return parts.hostname, parts.port
    raise OvsegError(f"--dist-url {url} is no address: give tcp://HOST:PORT of the first machine")


def _meet(world: World, url: str, rank: int) -> dist.Store:
    """Return the store of all processes, which the first one serves, when all are there.

    Raises:
        OvsegError: the port is taken, nobody answers, or processes are missing, of the same number, or of another run.
    """
    host, port = meeting_place(url)
    patience = datetime.timedelta(seconds=world.patience)
    if rank == 0:
        _check_port(port)
    try:
        store = dist.TCPStore(host, port, world.size, rank == 0, patience, wait_for_workers=False)
    except (RuntimeError, ValueError, OSError) as error:
        raise OvsegError(
            f"process {rank} of {world.size} got no answer from {host}:{port} within {world.patience:g} s: start the "
            "command with --machine-rank 0 on that machine, where no firewall closes the port"
        ) from error
    with _joining(rank, world.size, f"{host}:{port}"):
        shape = f"--num-machines {world.machines} and {world.processes_here} processes on each"
        if (first := store.compare_set("shape", "", shape).decode()) != shape:
            raise OvsegError(f"this machine was started with {shape}, another one with {first}: give all the same")
        if store.add(f"rank {rank}", 1) > 1:
            raise OvsegError(f"--machine-rank {world.machine_rank} was given to two machines: number them from 0")
        try:
            store.wait([f"rank {one}" for one in range(world.size)], patience)
        except RuntimeError as error:
            ranks = [one for one in range(world.size) if not store.check([f"rank {one}"])]
            machines = ", ".join(sorted({str(one // world.processes_here) for one in ranks}))
            raise OvsegError(
                f"processes of the machines {machines} did not join within {world.patience:g} s: start the command on "
                "every machine, with --machine-rank from 0"
            ) from error
    return store


def _check_port(port: int) -> None:
    """Check that this machine can serve the port; PyTorch's own error is a trace of C++."""
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the store: ended connections do not count
        try:
            listener.bind(("", port))
        except OSError as error:
            raise OvsegError(
                f"the port {port} cannot be used ({error.strerror}): end an earlier run or another command with "
                "--machine-rank 0, or give another port in --dist-url"
            ) from error


@contextlib.contextmanager
def _joining(rank: int, size: int, place: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        raise OvsegError(f"process {rank} of {size} cannot join the others at {place} ({reason_of(error)})") from error


def _in_group(
    main: Callable[..., Any],
    args: Sequence[Any],
    store: dist.Store,
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
    with _joining(rank, size, "their addresses"):
        dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
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
