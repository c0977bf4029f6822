"""Work on many units by workers of Ray, on one machine or on a cluster: a unit is done again if its worker dies.

The workers are the actors of Ray Data's ``map_batches``. Each builds what it works with once, as a model, and writes
its results to a folder that all machines share; what it returns is small.

Pickles here are bytes that this run made and Ray carried between its own processes; no file is ever unpickled.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import pickle
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ovseg.errors import OvsegError, reason_of
from ovseg.io.cpus import usable_cpus
from ovseg.io.ray_options import LOCAL, RUNNING, RayOptions, check_device, uses_gpus

# before the import: nothing is reported to anybody, no lines of Ray's own processes appear on the terminal, and workers
# have the priority of this process (Ray's default is 15 below, which starves them on a busy machine)
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_worker_niceness", "0")
import ray
import ray.data

logger = logging.getLogger(__name__)

Build = Callable[[str | None], Callable[[Any], Any]]

ATTEMPTS = 4  # how often a unit is tried whose worker dies
STARTS = 3  # tries to start a cluster
OBJECT_STORE = 256 << 20  # bytes, of a local cluster; units and what workers return have kilobytes
ANSWER = 5.0  # seconds for a connection to an address
HEALTH = 30.0  # seconds until a cluster at an address that connects must have answered
LONGEST_TMP = 30  # characters; the names of Ray's sockets, below a folder in it, may have 107


class Worker:
    """The actor of a run.

    Args:
        build: pickled; makes what is called with each unit, from the name of a device.
        device: for ``build``.
        folder: working folder of the run, so that relative paths mean the same.
        marker: a file in the folder of the results, by its absolute path.
        version: of ovseg.
    """

    def __init__(self, build: bytes, device: str | None, folder: str, marker: str, version: str):
        self.failure = self.defect = ""  # returned, for Ray gives an error of this method inside its own trace
        with contextlib.suppress(OSError):
            os.chdir(folder)
        host = socket.gethostname()
        try:
            if version != (here := _version()):
                raise OvsegError(f"{host} has ovseg {here}, this machine {version}: install one version everywhere")
            if not os.path.exists(marker):
                raise OvsegError(
                    f"{host} does not see {os.path.dirname(marker)}: choose an --output on a file system that all "
                    "machines of the cluster share, under one path"
                )
            self.work = pickle.loads(build)(device)
        except OvsegError as error:
            self.failure = str(error)
        except Exception:
            self.defect = traceback.format_exc()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Work on a batch of one unit.

        Args:
            batch: ``number`` and, pickled, ``unit``.

        Returns:
            ``number``; ``result``, pickled; ``failure``, the message of an OvsegError, or empty; ``defect``, the trace
            of another error, or empty; and ``process``, this one.
        """
        result, failure, defect = None, self.failure, self.defect
        if not failure and not defect:
            try:
                result = self.work(pickle.loads(batch["unit"][0]))
            except OvsegError as error:
                failure = str(error)
            except Exception:
                defect = traceback.format_exc()
        row = {"result": pickle.dumps(result), "failure": failure, "defect": defect, "process": os.getpid()}
        return {"number": batch["number"].tolist()} | {name: [value] for name, value in row.items()}


def run_units(
    options: RayOptions, build: Build, units: Sequence[Any], output: Path, device: str | None = None
) -> Generator[tuple[Any, Any], None, None]:
    """Yield each unit with its result, as they come, in any order.

    A unit whose worker or machine is lost is done again after the others, so it may have been done partly before, and
    what it writes must be complete by one rename or be lines of a file of its own. Ctrl-C, or closing the generator,
    ends the workers.

    Args:
        options: where, and how many workers.
        build: pickled; called once in each worker with its device ("cuda" where it has a GPU of its own); returns what
            is called with a unit and gives a result, both pickled.
        units: pickled.
        output: the folder that workers write to.
        device: of workers without a GPU of their own.

    Raises:
        OvsegError: one that a worker raised; the cluster does not answer; a unit ends every worker; or GPUs are asked
            for with a device that is none.
        RuntimeError: a worker raised another error; with its trace.
    """
    check_device(options.gpus, device)
    # several tries are made here, not by Ray: it keeps what ran on a lost machine waiting until there is a new one
    with _cluster(options) as processes, _marker(output) as marker:
        workers, gpus = _workers(options, device)
        arguments = (
            ray.cloudpickle.dumps(build),
            "cuda" if gpus else device or "cpu",
            os.getcwd(),
            str(marker),
            _version(),
        )
        waiting = {number: pickle.dumps(unit) for number, unit in enumerate(units)}
        for _ in range(ATTEMPTS):
            for row in _rows(waiting, arguments, min(workers, len(waiting)), gpus):
                processes.add(int(row["process"]))
                if row["failure"]:
                    raise OvsegError(row["failure"])
                if row["defect"]:
                    raise RuntimeError(f"a worker of Ray failed:\n{row['defect']}")
                del waiting[int(row["number"])]
                yield units[row["number"]], pickle.loads(row["result"])
            if not waiting:
                return
            logger.warning(
                "a worker of Ray was lost: %d of %d parts of the work are done again", len(waiting), len(units)
            )
    raise OvsegError(
        f"{len(waiting)} of {len(units)} parts of the work ended their workers {ATTEMPTS} times: what is finished is "
        "kept, run the same command again; if memory ran out, with fewer --ray-workers"
    )


def _rows(
    waiting: Mapping[int, bytes], arguments: tuple[Any, ...], workers: int, gpus: float
) -> Iterator[dict[str, Any]]:
    rows = [{"number": number, "unit": unit} for number, unit in waiting.items()]
    pool = ray.data.ActorPoolStrategy(
        min_size=1, max_size=workers, initial_size=workers, max_tasks_in_flight_per_actor=1
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ray_remote_args", category=DeprecationWarning)
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Worker,
            batch_size=1,
            compute=pool,
            num_cpus=1,
            num_gpus=gpus or None,
            fn_constructor_args=arguments,
            max_task_retries=0,
        )
    yield from results.iter_rows()


def _workers(options: RayOptions, device: str | None) -> tuple[int, float]:
    """Return the number of workers and the GPUs of each, by what the cluster has."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    there = any(node.get("GPU", 0) for node in nodes)
    gpus = options.gpus
    if gpus is None:
        gpus = 1.0 if there and uses_gpus(device) else 0.0
    if gpus and not there:
        raise OvsegError(f"--ray-gpus {gpus:g}, but no machine of the cluster has a GPU: leave it out")
    room = sum(
        int(min(node.get("CPU", 0), node.get("GPU", 0) / gpus + 1e-6 if gpus else float("inf"))) for node in nodes
    )
    if not room:
        raise OvsegError(f"no machine of the cluster has a CPU core and {gpus:g} GPUs for a worker: lower --ray-gpus")
    if options.workers is not None and options.workers > room:
        logger.warning("--ray-workers %d: the cluster has room for %d, which are used", options.workers, room)
    return min(options.workers or room, room), gpus


@contextlib.contextmanager
def _marker(output: Path) -> Iterator[Path]:
    """Yield a file of a new name in the folder, by which machines see whether they share it."""
    output = Path(os.path.abspath(output))
    for left in output.glob(".ray-*"):  # of a run that was killed; the caller holds the folder
        left.unlink(missing_ok=True)
    path = output / f".ray-{secrets.token_hex(8)}"
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _cluster(options: RayOptions) -> Iterator[set[int]]:
    """Connect to a cluster, or start one on this machine that lasts as long as the block; one in use stays so.

    Yields:
        a set for the numbers of its processes, which are ended with a cluster of this machine: Ray lets them clean up,
        which takes seconds, and does not wait.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are lost workers, with long traces
    processes: set[int] = set()
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            if options.address == LOCAL:
                place = None if len(tempfile.gettempdir()) < LONGEST_TMP else "/tmp"
                temporary = tempfile.TemporaryDirectory(prefix="ovseg-ray-", dir=place, ignore_cleanup_errors=True)
                stack.callback(_end, processes)
                quiet |= {"num_cpus": options.workers or usable_cpus(), "include_dashboard": False}
                quiet |= {"object_store_memory": OBJECT_STORE, "_temp_dir": stack.enter_context(temporary)}
                _start(quiet)
            else:
                _connect(options.address, quiet)
            stack.callback(ray.shutdown)  # first of all callbacks
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1  # lost workers; their own errors are returned
        yield processes


def _start(options: Mapping[str, Any]) -> None:
    """Start a cluster on this machine; Ray waits 30 seconds for its own processes, which a busy machine exceeds."""
    for left in reversed(range(STARTS)):
        try:
            ray.init(address=LOCAL, **options)
            return
        except Exception as error:  # Ray raises no class of its own
            ray.shutdown()
            if not left:
                raise OvsegError(
                    f"Ray cannot start on this machine ({reason_of(error)}): try again when it is less busy, or leave "
                    "out --ray"
                ) from error


def _connect(address: str, quiet: Mapping[str, Any]) -> None:
    """Connect to a cluster that runs.

    Ray waits minutes for an address without a cluster, and may abort this process: it is asked by another one first.
    """
    given = os.environ.get("RAY_ADDRESS", RUNNING) if address == RUNNING else address
    remedy = "start it by `ray start --head`, or give --ray local"
    if given != RUNNING:
        host, _, port = given.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()
        except (OSError, ValueError) as error:
            raise OvsegError(f"no Ray cluster answers at {given} ({reason_of(error)}): {remedy}") from error
        command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", given]
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=HEALTH)
        except subprocess.TimeoutExpired as error:
            raise OvsegError(f"what answers at {given} is no Ray cluster: {remedy}") from error
        if found.returncode:
            lines = found.stderr.strip().splitlines() or ["unknown"]
            raise OvsegError(f"the Ray cluster at {given} cannot be used ({lines[-1][:200]}): {remedy}")
    try:
        ray.init(address=given, **quiet)
    except (ConnectionError, RuntimeError) as error:
        raise OvsegError(f"no Ray cluster can be used at {given} ({reason_of(error)}): {remedy}") from error


def _end(processes: set[int]) -> None:
    """End those of the processes that are still workers of Ray."""
    for process in processes:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"ray::"):
                os.kill(process, signal.SIGKILL)


def _version() -> str:
    try:
        return importlib.metadata.version("ovseg")
    except importlib.metadata.PackageNotFoundError:  # a clone that is not installed
        return "not installed"
