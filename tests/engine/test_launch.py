from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm

from ovseg.engine import launch as launch_module
from ovseg.engine.launch import World, choose_device, launch, started_by_torchrun
from ovseg.errors import OvsegError
from tests.engine import toy
from tests.processes import CONTEXT


def test_choose_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("cuda", 0) == "cpu"
    assert choose_device("cuda", 1) == "cpu"
    assert choose_device("cpu", 2) == "cpu"
    with pytest.raises(OvsegError, match=r"--num-gpus 2, but this machine has 0 CUDA devices.*MODEL\.DEVICE cpu"):
        choose_device("cuda", 2)
    with pytest.raises(OvsegError, match="negative"):
        choose_device("cuda", -1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda", 2) == "cuda"
    assert choose_device("cuda", 0) == "cpu"
    with pytest.raises(OvsegError, match="has 2 CUDA devices"):
        choose_device("cuda", 3)


def test_one_process_runs_here():
    assert launch(max, World(processes_here=1), (3, 5)) == 5


def test_torchrun_is_detected(monkeypatch):
    assert not started_by_torchrun({"RANK": "0"})
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launch_module._free_port())}
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", **address}.items():
        monkeypatch.setenv(name, value)
    assert started_by_torchrun()
    groups = []

    def inside(value: int) -> int:
        groups.append((dist.get_backend(), dist.get_world_size(), comm.get_local_rank(), comm.get_local_size()))
        return value + 1

    # --num-gpus is not what counts now
    assert launch(inside, World(processes_here=4), (1,)) == 2
    assert groups == [("gloo", 1, 0, 1)]
    assert not dist.is_initialized()


def test_user_error_of_one_process_ends_all():
    with pytest.raises(OvsegError, match=r"^this cannot work$"):
        launch(toy.fail_in_second, World(processes_here=2), ("this cannot work",))


def test_killed_process_ends_all():
    with pytest.raises(OvsegError, match="process 1 of 2 was killed by SIGKILL"):
        launch(toy.kill_second, World(processes_here=2))


def test_processes_end_with_a_launcher_that_is_killed(tmp_path):
    launcher = CONTEXT.Process(target=toy.launch_and_wait, args=(tmp_path,))
    launcher.start()
    assert wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    launcher.kill()
    launcher.join()
    numbers = [int(path.name) for path in tmp_path.iterdir()]
    assert wait_until(lambda: not any(Path(f"/proc/{number}/cmdline").exists() for number in numbers))


def wait_until(condition, seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def two_machines(rank: int, port: int, patience: float = 1.0) -> World:
    return World(1, 2, rank, f"tcp://127.0.0.1:{port}", patience=patience)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--dist-url auto serves one machine only: give tcp://HOST:PORT"),
        ({"machine_rank": 2}, "--machine-rank 2: the machines of --num-machines 2 have the numbers 0 to 1"),
        ({"machine_rank": -1}, "--machine-rank -1"),
        ({"machines": 0}, "--num-machines 0: give"),
        ({"url": "first:29500"}, "--dist-url first:29500 is no address: give tcp://HOST:PORT"),
        ({"url": "tcp://first"}, "is no address"),
        ({"patience": 0.0}, "--dist-timeout 0: give seconds"),
        ({"patience": float("inf")}, "--dist-timeout inf: give seconds"),
        ({"patience": float("nan")}, "--dist-timeout nan: give seconds"),
        ({"patience": 1e12}, r"--dist-timeout 1e\+12: give seconds, more than 0 and at most a week"),
    ],
)
def test_wrong_options_of_several_machines(options, message):
    with pytest.raises(OvsegError, match=message):
        launch(max, World(**{"processes_here": 1, "machines": 2} | options), (3, 5))


def test_taken_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            OvsegError, match=rf"the port {port} cannot be used \(Address already in use\): end an earlier"
        ):
            launch(max, two_machines(0, port), (3, 5))


def test_machines_that_are_missing():
    port = launch_module._free_port()
    with pytest.raises(OvsegError, match=r"got no answer from 127.0.0.1:\d+ within 1 s: start .* --machine-rank 0"):
        launch(max, two_machines(1, port), (3, 5))
    with pytest.raises(OvsegError, match="processes of the machines 1 did not join within 1 s"):
        launch(max, two_machines(0, port), (3, 5))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("--num-machines 2 and 1 processes on each", "--machine-rank 1 was given to two machines"),
        ("--num-machines 3 and 1 processes on each", "another one with --num-machines 3 and 1 processes on each: give"),
    ],
)
def test_machines_that_do_not_fit(shape, message):
    port = launch_module._free_port()
    first = dist.TCPStore("127.0.0.1", port, 2, is_master=True, wait_for_workers=False)
    first.set("shape", shape)
    first.add("rank 1", 1)
    with pytest.raises(OvsegError, match=message):
        launch(max, two_machines(1, port), (3, 5))
