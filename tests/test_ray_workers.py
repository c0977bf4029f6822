"""Labels, pseudo-masks and pairs by workers of Ray, on one cluster of this machine: as those of one process."""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ovseg.adaptation import mining_run, pseudo_masks
from ovseg.adaptation.mining_options import MiningOptions
from ovseg.adaptation.pseudo_options import PseudoOptions
from ovseg.cli.app import main
from ovseg.errors import OvsegError
from ovseg.io.ray_options import RayOptions, ray_options
from ovseg.labelling.settings import SETTINGS
from ovseg.result.formats import FORMATS
from tests import ray_builds
from tests.photos import write_photos
from tests.tiny_model import make_tiny_model

if importlib.util.find_spec("ray") is None:
    pytest.skip("no Ray", allow_module_level=True)
from ovseg.io import ray_pool

IMAGES = 10
BROKEN = "IMG 06.png"
LABEL = ["label", "photos", "--words", "sky, cat", "--model", "toy", "--device", "cpu", "--format"]
ALL = [*LABEL, ",".join(FORMATS), "--min-area", "0", "--output"]
ONE = RayOptions("local", 1)  # each worker with a model imports for many seconds
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def cluster():
    with ray_pool._cluster(RayOptions("local", 2)) as processes:
        yield processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Has photos/, images of several sizes of which one is broken, captions, and a tiny model."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "photos").mkdir()
    names = write_photos(folder / "photos", IMAGES)
    lines = ["filepath,caption", *(f'{name},"A photo of dogs, and a red car."' for name in names)]
    broken = folder / "photos" / BROKEN
    broken.write_bytes(broken.read_bytes()[:500])
    (folder / "photos" / "captions.csv").write_text("\n".join(lines) + "\n")
    make_tiny_model(folder)
    return folder


@pytest.fixture
def inside(folder, monkeypatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def contents(output: Path) -> dict[str, bytes]:
    """Return the files of a folder, without its records and its lock; its name in them is replaced."""
    files = {file.relative_to(output).as_posix(): file for file in output.rglob("*") if file.is_file()}
    own = os.path.abspath(output).encode()
    found = {name: file.read_bytes().replace(own, b"OUTPUT") for name, file in files.items()}
    return {name: content for name, content in found.items() if not name.startswith((".lock", "records-"))}


def records(output: Path) -> list[str]:
    return [line for file in output.glob("records-*.jsonl") for line in file.read_text().splitlines()]


def test_labels_of_workers_that_are_killed(inside, cluster):
    """A worker is killed, then the process that started it with a cluster of its own; another run labels the rest."""
    assert main([*ALL, "one"]) == 1
    assert len(records(inside / "one")) == IMAGES
    output = inside / "two"
    output.mkdir()
    shutil.copy(inside / "one" / SETTINGS, output)
    command = "from tests import ray_builds; ray_builds.copy_records('photos', 'one', 'two')"
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    with subprocess.Popen([sys.executable, "-c", command], env=environment, stderr=subprocess.PIPE) as process:
        assert wait_until(lambda: len(records(output)) >= 4 or process.poll() is not None)
        process.kill()
        assert process.returncode is None, process.stderr.read().decode()
    workers = [int(file.stem.removeprefix("records-")) for file in output.glob("records-*.jsonl")]
    assert len(workers) == 2 and wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    before = records(output)
    assert len(before) == 4 and set(before) < set(records(inside / "one")) and list(output.glob(".ray-*"))
    assert main([*ALL, "two", "--ray", "local", "--ray-workers", "1"]) == 1
    assert len(list(output.glob("records-*.jsonl"))) == 3 and not list(output.glob(".ray-*"))
    assert len(records(output)) == IMAGES and set(records(output)) == set(records(inside / "one"))
    assert contents(output) == contents(inside / "one")
    images = json.loads((output / "manifest.json").read_text(encoding="utf-8"))["images"]
    assert [image["image"] for image in images if image["status"] == "failed"] == [BROKEN]


def test_pseudo_masks(inside, cluster):
    options = PseudoOptions(
        ["photos"], Path("masks"), "tiny.yaml", "tiny.safetensors", min_confidence=0.5, shard_size=3, allow_bad=True
    )
    options = replace(options, device="cpu")
    pseudo_masks.run(options)
    pseudo_masks.run(replace(options, output=Path("ray masks"), ray=ONE))
    assert len(list(Path("masks").glob("masks-*.json"))) == 4
    assert contents(Path("ray masks")) == contents(Path("masks"))
    assert BROKEN in Path("ray masks/bad_images.txt").read_text()


def test_pairs(inside, cluster):
    options = MiningOptions("photos/captions.csv", Path("pairs"), config_file="tiny.yaml", shard_size=4)
    options = replace(options, weights="tiny.safetensors", device="cpu", allow_bad=True)
    mining_run.run(options)
    mining_run.run(replace(options, output=Path("ray pairs"), ray=ONE))
    assert len(list(Path("pairs").glob("pairs-*.tar"))) == 3
    assert contents(Path("ray pairs")) == contents(Path("pairs"))


def test_lost_workers(cluster, monkeypatch, tmp_path):
    monkeypatch.setattr(ray_pool, "ATTEMPTS", 1)
    with pytest.raises(OvsegError, match="1 of 2 parts of the work ended their workers 1 times"):
        list(ray_pool.run_units(ONE, ray_builds.deadly, [0, 1], tmp_path))
    with pytest.raises(OvsegError, match="--ray-gpus 1, but no machine of the cluster has a GPU"):
        list(ray_pool.run_units(RayOptions("local", gpus=1), ray_builds.inverse, [1], tmp_path))
    with pytest.raises(OvsegError, match="--ray-gpus 1 gives workers GPUs, and --device cpu uses none"):
        list(ray_pool.run_units(RayOptions("local", gpus=1), ray_builds.inverse, [1], tmp_path, "cpu"))


@pytest.fixture
def worker_here(cluster, monkeypatch):
    """The worker is in this process, which is what takes no seconds to start."""

    def rows(waiting, arguments, workers, gpus):
        worker = ray_pool.Worker(*arguments)
        for number, unit in list(waiting.items()):
            row = worker({"number": np.array([number]), "unit": np.array([unit], dtype=object)})
            yield {name: values[0] for name, values in row.items()} | {"process": -1}

    monkeypatch.setattr(ray_pool, "_rows", rows)


def test_errors_of_workers(worker_here, monkeypatch, tmp_path):
    def run(build, *units):
        return list(ray_pool.run_units(ONE, build, units, tmp_path))

    assert run(ray_builds.inverse, 1, 2, 4) == [(1, 1), (2, 0.5), (4, 0.25)]
    with pytest.raises(OvsegError, match=r"^no model on cpu$"):
        run(ray_builds.without_model, 1)
    with pytest.raises(RuntimeError, match=r"(?s)a worker of Ray failed.*ZeroDivisionError"):
        run(ray_builds.inverse, 1, 0)
    with monkeypatch.context() as patch, pytest.raises(OvsegError, match=r"has ovseg 0, this machine 1: install one"):
        versions = iter("10")
        patch.setattr(ray_pool, "_version", lambda: next(versions))
        run(ray_builds.inverse, 1)
    monkeypatch.setattr(ray_pool, "_marker", lambda output: contextlib.nullcontext(output / "not here" / ".ray-0"))
    with pytest.raises(OvsegError, match=r"does not see .*: choose an --output on a file system that all machines"):
        run(ray_builds.inverse, 1)


def test_workers_end_before_the_folder_is_unlocked(inside, monkeypatch):
    ended = []

    def units(options, build, units, output, device):
        try:
            for unit in units:
                yield unit, (0, ["a broken image"])
        finally:
            ended.append(True)

    monkeypatch.setattr(ray_pool, "run_units", units)
    options = PseudoOptions(["photos"], Path("bad"), "tiny.yaml", "tiny.safetensors", device="cpu", ray=ONE)
    with pytest.raises(OvsegError, match="more than 1 %"):  # whose trace keeps the generator, as that of Ctrl-C
        pseudo_masks.run(options)
    assert ended


def wait_until(condition, seconds: float = 240) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_addresses_that_do_not_answer(monkeypatch):
    with socket.socket() as taken:  # bound, but does not listen
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(OvsegError, match=r"no Ray cluster answers at 127.0.0.1:\d+ \(Connection refused\): start"):
            ray_pool._connect(f"127.0.0.1:{taken.getsockname()[1]}", {})
    monkeypatch.setattr(ray_pool, "HEALTH", 0.5)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(OvsegError, match=r"what answers at .* is no Ray cluster"):
            ray_pool._connect(f"127.0.0.1:{server.server_port}", {})
        server.shutdown()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["16"], "--ray 16 is no address: give --ray local --ray-workers 16"),
        (["ray://head:10001"], "run the command on a machine of the cluster, with --ray auto"),
        (["head"], "--ray 'head' is no address: give local, auto or HOST:PORT"),
        (["local", 0], "--ray-workers is 0"),
        (["local", 1, 1.5], "--ray-gpus is 1.5: give a number from 0 to 1, or a whole one"),
        (["local", 1, float("nan")], "--ray-gpus is nan: give"),
        (["local", 1, float("inf")], "--ray-gpus is inf: give"),
        (["local", 1, -float("inf")], "--ray-gpus is -inf: give"),
        (["local", 1, 0.5, "cpu"], r"--ray-gpus 0\.5 gives workers GPUs, and --device cpu uses none: leave out one"),
        ([None, 2], "--ray-workers needs --ray"),
    ],
)
def test_options_that_cannot_work(arguments, message):
    with pytest.raises(OvsegError, match=message):
        ray_options(*arguments)


def test_ray_is_an_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    with pytest.raises(OvsegError, match=r'pip install "ovseg\[ray\]"'):
        ray_options("local")
