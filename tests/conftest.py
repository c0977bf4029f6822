"""For every test: no network, few threads, and a cache folder that vanishes with the session."""

from __future__ import annotations

import os
import socket

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")  # before torch is imported; child processes inherit it

_LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")
_connect = socket.socket.connect


def _connect_to_this_machine_only(self: socket.socket, address, *args):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        host = str(address[0]).removeprefix("::ffff:")
        if not host.startswith(_LOOPBACK) and host not in (socket.gethostname(), ""):
            raise OSError(f"tests must not use the network, and this one connects to {address}")
    return _connect(self, address, *args)


@pytest.fixture(autouse=True, scope="session")
def _no_network():
    """Only loopback, which gloo needs, may be connected to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _connect_to_this_machine_only)
        yield


def pytest_configure(config: pytest.Config) -> None:
    import torch

    import tests.processes  # noqa: F401 - what processes import beforehand is set before the first one starts

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True, scope="session")
def _cache_folder(tmp_path_factory):
    """What the library would keep in the user's cache goes to a folder of this session."""
    if "OVSEG_CACHE" in os.environ:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OVSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def one_thread():
    """PyTorch and the processes that a test starts compute with one thread: the last bits of a sum depend on it."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
