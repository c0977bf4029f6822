"""Labels, pseudo-masks and pairs by workers of Ray, on one cluster of this machine: as those of one process."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovseg.adaptation import mining_run, pseudo_masks
from ovseg.adaptation.mining_options import MiningOptions
from ovseg.adaptation.pseudo_options import PseudoOptions
from ovseg.cli.app import main
from ovseg.errors import OvsegError
from ovseg.io.ray_options import RayOptions, ray_options
from ovseg.labelling import work
from ovseg.result.formats import FORMATS
from tests import ray_builds
from tests.tiny_model import make_tiny_model

if importlib.util.find_spec("ray") is None:
    pytest.skip("no Ray", allow_module_level=True)

IMAGES = 10
BROKEN = "IMG 06.png"
LABEL = ["label", "photos", "--words", "sky, cat", "--model", "toy", "--device", "cpu", "--format"]
ALL = [*LABEL, ",".join(FORMATS), "--min-area", "0", "--output"]
BY_RAY, ONE = RayOptions("local", 2), RayOptions("local", 1)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """The last bits of a sum depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cluster():
    from ovseg.io import ray_pool

    with ray_pool._cluster(BY_RAY) as processes:
        yield processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Has photos/, images of several sizes of which one is broken, captions, and a tiny model."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    lines = ["filepath,caption"]
    for number in range(IMAGES):
        size = (int(rng.integers(40, 90)), int(rng.integers(40, 90)), 3)
        file = folder / "photos" / f"IMG {number:02d}.png"
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(file)
        lines.append(f'{file.name},"A photo of dogs, and a red car."')
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


def test_labels_though_a_worker_is_killed(inside, cluster, monkeypatch):
    assert main([*ALL, "one"]) == 1
    monkeypatch.setattr(work, "_ray_labeller", ray_builds.MortalLabeller)
    assert main([*ALL, "two", "--ray", "local", "--ray-workers", "2"]) == 1
    assert Path("killed").exists()
    assert contents(inside / "one") == contents(inside / "two")
    assert set(records(inside / "one")) == set(records(inside / "two")) and len(records(inside / "one")) == IMAGES
    images = json.loads((inside / "two" / "manifest.json").read_text(encoding="utf-8"))["images"]
    assert [image["image"] for image in images if image["status"] == "failed"] == [BROKEN]
    assert len(list((inside / "two").glob("records-*.jsonl"))) >= 2 and not list((inside / "two").glob(".ray-*"))


def test_goes_on_after_its_process_is_killed(inside, cluster):
    """With a cluster of its own, which ends with the process."""
    command = [sys.executable, "-m", "ovseg", *ALL, "three", "--ray", "local", "--ray-workers", "1"]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        assert wait_until(lambda: (inside / "three").exists() and len(records(inside / "three")) >= 2)
        process.kill()
    time.sleep(1)
    before = len(records(inside / "three"))
    assert main([*ALL, "three", "--ray", "local", "--ray-workers", "1"]) == 1
    assert before < IMAGES and len(records(inside / "three")) >= IMAGES
    assert contents(inside / "three").keys() == contents(inside / "one").keys()
    assert contents(inside / "three") == contents(inside / "one")


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


def test_errors_of_workers(inside, cluster, monkeypatch, tmp_path):
    from ovseg.io import ray_pool

    def run(build, units, options=ONE):
        return list(ray_pool.run_units(options, build, units, tmp_path))

    with pytest.raises(OvsegError, match=r"^no model on cpu$"):
        run(ray_builds.without_model, [1])
    with pytest.raises(RuntimeError, match=r"(?s)a worker of Ray failed.*ZeroDivisionError"):
        run(ray_builds.inverse, [0])
    monkeypatch.setattr(ray_pool, "ATTEMPTS", 1)
    with pytest.raises(OvsegError, match="1 of 2 parts of the work ended their workers 1 times"):
        run(ray_builds.deadly, [0, 1])
    with pytest.raises(OvsegError, match="--ray-gpus 1, but no machine of the cluster has a GPU"):
        run(ray_builds.without_model, [1], RayOptions("local", gpus=1))
    monkeypatch.setattr(ray_pool, "_marker", lambda output: _elsewhere(output))
    with pytest.raises(OvsegError, match=r"does not see .*: choose an --output on a file system that all machines"):
        run(ray_builds.without_model, [1])


class _elsewhere:
    def __init__(self, output):
        self.output = output

    def __enter__(self):
        return self.output / "not here" / ".ray-0"

    def __exit__(self, *error):
        pass


def wait_until(condition, seconds: float = 240) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_addresses_that_do_not_answer(monkeypatch):
    from ovseg.io import ray_pool

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
