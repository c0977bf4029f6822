"""Faults of the place: two runs in one folder, threads, a full disk, no home folder, names that are hard to write."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import demo
import ovseg
from ovseg.checkpoint import save_safetensors, save_torch
from ovseg.engine import metrics
from ovseg.errors import CannotWrite, OvsegError, user_errors
from ovseg.io import files
from ovseg.io.files import atomic_path, cache_dir, check_writable, find_leftovers, locked_folder, remove_leftovers
from ovseg.io.inputs import choose_outputs, find_inputs
from ovseg.result.segmentation import Segmentation
from ovseg.segmenter import Segmenter
from tests.engine import toy
from tests.tiny_model import make_tiny_model

ROOT = Path(__file__).parents[1]
SPAWN = multiprocessing.get_context("spawn")
FORK = multiprocessing.get_context("fork")


def in_child(function, *args) -> int:
    """Exit status of a forked process that runs a function, which may change what belongs to a whole process."""
    process = FORK.Process(target=function, args=args)
    process.start()
    process.join(60)
    process.kill()  # if it hangs
    return process.exitcode


# ---- one folder for one run


def hold(folder: Path, ready, done) -> None:
    with locked_folder(folder):
        ready.set()
        done.wait(60)


def test_two_trainings_in_one_folder(tmp_path):
    toy.register(toy.write_dataset(tmp_path))
    cfg, ready, done = toy.small_cfg(tmp_path / "run"), FORK.Event(), FORK.Event()
    other = FORK.Process(target=hold, args=(tmp_path / "run", ready, done))
    other.start()
    assert ready.wait(60)
    message = rf"another run is writing to .*run \(process {other.pid}: .*choose another OUTPUT_DIR"
    with pytest.raises(OvsegError, match=message):
        toy.train_recording(cfg)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock"]
    os.kill(other.pid, signal.SIGKILL)  # a dead process keeps nobody out
    other.join()
    cfg.SOLVER.MAX_ITER = 1
    toy.train_recording(cfg)
    assert (tmp_path / "run" / "model_final.pth").is_file()


def test_a_process_may_ask_again_for_its_own_folder(tmp_path):
    with locked_folder(tmp_path):
        with locked_folder(tmp_path / "."):
            pass
        assert in_child(try_lock, tmp_path) == 1
    assert in_child(try_lock, tmp_path) == 0


def try_lock(folder: Path) -> None:
    files._held.clear()  # of the parent
    try:
        with locked_folder(folder):
            pass
    except OvsegError:
        os._exit(1)


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path):
    def die() -> None:
        with atomic_path(tmp_path / "a.png") as temporary:
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(die) == -signal.SIGKILL
    (tmp_path / ".tmpA1b2C3").write_bytes(b"of safetensors")
    (tmp_path / ".mine.tmp").write_bytes(b"of the user")
    with atomic_path(tmp_path / "b.png") as temporary:
        temporary.write_bytes(b"ours")
        remove_leftovers(tmp_path, owned=True)
        assert temporary.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.tmp", "b.png"]


def test_another_process_is_looked_for_where_its_number_means_something(tmp_path):
    name = ".a.1.{}000000.tmp.png"
    for machine in (files.temporary_name(tmp_path / "x").__enter__().name.split(".")[3][:6], "ffffff"):
        (tmp_path / name.format(machine)).touch()
    assert find_leftovers(tmp_path, owned=False) == []  # process 1 lives; the other machine cannot be asked
    os.utime(tmp_path / name.format("ffffff"), (0, 0))
    assert [path.name for path in find_leftovers(tmp_path, owned=False)] == [name.format("ffffff")]


def test_a_killed_safetensors_writer_leaves_nothing_for_ever(tmp_path):
    def die() -> None:
        import ovseg.checkpoint

        def half(tensors, path, metadata):
            Path(path).with_name(".tmpAbCdEf").write_bytes(b"half")  # as the library does
            os.kill(os.getpid(), signal.SIGKILL)

        ovseg.checkpoint.saving.save_file = half
        save_safetensors({"a": torch.zeros(3)}, tmp_path / "a.safetensors")

    assert in_child(die) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    save_safetensors({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


# ---- threads and processes


def segmentation(word: int) -> Segmentation:
    labels = np.full((40, 50), word, np.int32)
    image = np.full((40, 50, 3), 20 * word, np.uint8)
    return Segmentation(labels, tuple(f"word {k}" for k in range(8)), np.ones(8, np.float32), image, f"{word}.png")


def test_8_threads_save_to_one_target(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: segmentation(n % 8).save(tmp_path / "a.png"), range(24)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.png", "a_labels.png"]
    for name in ("a.png", "a_labels.png"):
        assert Image.open(tmp_path / name).convert("L").getextrema()


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    config, weights = make_tiny_model(tmp_path_factory.mktemp("tiny"))
    return Segmenter.from_config(config, weights)


IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def test_8_threads_call_one_segmenter(segmenter):
    words = ["cat", "dog", "grass"]
    expected = segmenter(IMAGE, words)
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: segmenter(IMAGE, words), range(16)):
            assert np.array_equal(result.label_map, expected.label_map)


def test_a_segmenter_is_copied_and_sent_to_another_process(segmenter):
    expected = segmenter(IMAGE, ["cat", "dog"]).label_map
    for other in (deepcopy(segmenter), pickle.loads(pickle.dumps(segmenter))):
        assert np.array_equal(other(IMAGE, ["cat", "dog"]).label_map, expected)
    with SPAWN.Pool(1) as pool:
        assert np.array_equal(pool.apply(segmenter, (IMAGE, ["cat", "dog"])).label_map, expected)


# ---- full disk


@contextlib.contextmanager
def little_room():
    """Files may have 20,000 bytes, which ends writing as a full disk does, and needs no rights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


NOISE = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
WRITERS = {
    "safetensors": lambda folder: save_safetensors({"a": torch.zeros(100_000)}, folder / "a.safetensors"),
    "torch": lambda folder: save_torch({"a": torch.zeros(100_000)}, folder / "a.pth"),
    "png": lambda folder: Segmentation(*noise(), None).save(folder / "a.png"),
    "jpg": lambda folder: Segmentation(*noise(), None).save(folder / "a.jpg"),
    "webp": lambda folder: Segmentation(*noise(), None).save(folder / "a.webp"),
}


def noise() -> tuple:
    return np.zeros((300, 300), np.int32), ("a",), np.ones(1, np.float32), NOISE


@pytest.mark.parametrize("writer", WRITERS)
def test_no_room(tmp_path, writer):
    with little_room(), pytest.raises(OvsegError, match=r"^cannot write [^\n]*ulimit[^\n]*$"):
        WRITERS[writer](tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), "safetensors", "torch", "torch at its end"])
def test_a_full_disk_is_one_sentence_whoever_says_so(tmp_path, error):
    from safetensors import SafetensorError

    errors = {
        "safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        "torch": RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534"),
        "torch at its end": RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    }
    sentence = r"^disk full while writing .*a\.bin: free some space and run again$"
    with pytest.raises(CannotWrite, match=sentence), atomic_path(tmp_path / "a.bin"):
        raise errors.get(str(error), error)


def test_an_error_of_what_is_read_is_not_one_of_what_is_written(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(PermissionError), atomic_path(tmp_path / "out" / "a.json"):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "in" / "photo.jpg"))


@pytest.mark.parametrize("name", ["a\0b.json", "\ud800.json"])
def test_names_that_no_file_can_have(tmp_path, name):
    with pytest.raises(OvsegError, match=r"cannot write '.*(null byte|surrogates)"), atomic_path(tmp_path / name):
        pass
    with pytest.raises(OvsegError, match="cannot write '"):
        check_writable(tmp_path / name)


def test_a_training_without_room_for_its_figures(tmp_path, monkeypatch):
    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    toy.register(toy.write_dataset(tmp_path))
    monkeypatch.setattr(metrics.MetricsWriter, "write", full)
    with pytest.raises(OvsegError, match=r"^disk full while writing .*run: free some space and run again$"):
        toy.train_recording(toy.small_cfg(tmp_path / "run", SOLVER__MAX_ITER=1))


# ---- demo's files


class Stub:
    """A segmenter that counts its calls."""

    def __init__(self):
        self.calls = 0

    def prepare(self, vocabulary):
        return vocabulary

    def __call__(self, image, vocabulary):
        self.calls += 1
        return segmentation(0)


@pytest.fixture
def stub(monkeypatch):
    made = Stub()
    monkeypatch.setattr(Segmenter, "from_config", classmethod(lambda cls, *args, **kwargs: made))
    return made


def save_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(path)


def test_demo_stops_at_a_full_disk(here, stub, monkeypatch, capfd):
    for k in range(20):
        save_image(here / "in" / f"{k:02d}.png")

    def full(self, where, png_level):
        if where.name == "01.png":
            with atomic_path(where):
                raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Segmentation, "save", full)
    with pytest.raises(SystemExit) as stopped:
        demo.main(["--class-names", "cat", "--input", "in", "--output", "out"])
    out, err = capfd.readouterr()
    assert stopped.value.code == 2 and stub.calls < 20  # some are segmented ahead
    assert "1 of 1 done" in out and err.splitlines()[-1].startswith("error: disk full while writing out/01.png")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="has no folder in which even root can make no file")
def test_a_file_system_that_takes_no_files(tmp_path):
    with pytest.raises(CannotWrite, match=r"^cannot write /proc/nope/a\.png \(No such file or directory\): choose"):
        check_writable("/proc/nope/a.png")
    with pytest.raises(CannotWrite, match="cannot write /proc/nope/a"), atomic_path("/proc/nope/a.png"):
        pass
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "out.txt"):  # of what is read
        (tmp_path / "missing.txt").read_text()


def test_demo_tries_to_write_before_it_loads(here, monkeypatch, capfd):
    save_image(here / "a.png")
    (here / "file").touch()
    monkeypatch.setattr(Segmenter, "from_config", None)
    (here / "loop").symlink_to("loop")
    (here / "nowhere").symlink_to("absent")
    for output in ("file/out", "n" * 300, "loop", "loop/out", "nowhere", "nowhere/out"):
        with pytest.raises(SystemExit) as stopped:
            demo.main(["--class-names", "cat", "--input", "a.png", "--output", output])
        error = capfd.readouterr().err
        assert stopped.value.code == 2 and error.count("\n") == 1 and error.startswith("error: ")
    check_writable(here / "new" / "deep" / "a.png")
    assert sorted(path.name for path in here.iterdir()) == ["a.png", "file", "loop", "nowhere"]


def test_3000_inputs_of_one_name(tmp_path):
    files = [tmp_path / f"{k}" / "image.png" for k in range(3000)]
    began = time.process_time()
    outputs = choose_outputs(files, str(tmp_path / "out"), [])
    assert time.process_time() - began < 2
    assert len({path.name for path in outputs}) == 3000
    assert [path.name for path in (*outputs[:2], outputs[-1])] == ["image.png", "image-2.png", "image-3000.png"]


def test_names_are_meant_literally_first(here):
    for name in ("a[1].jpg", "a1.jpg", "photos [1]/b.jpg", "photos 1/c.jpg", "photos [1]/deep/d.jpg"):
        save_image(here / name)
    for argument, found in {
        "a[1].jpg": ["a[1].jpg"],
        "photos [1]": ["photos [1]/b.jpg"],
        "photos [1]/*.jpg": ["photos [1]/b.jpg"],
        "photos [1]/**/*.jpg": ["photos [1]/b.jpg", "photos [1]/deep/d.jpg"],
        "a[2-1]*.jpg": [],
        "a?.jpg": ["a1.jpg"],
        str(here / "photos [1]" / "?.jpg"): [str(here / "photos [1]" / "b.jpg")],
    }.items():
        assert [str(path) for path in find_inputs([argument])[0]] == found, argument


def hard_names(folder: Path) -> dict[str, str]:
    """Arguments that cannot be segmented, and what is said of them."""
    (folder / "a folder.png").mkdir()
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "nowhere.png").symlink_to("absent.png")
    (folder / "round").symlink_to("round")
    return {
        "a folder.png": "the folder holds no images",
        "loop.png": "link",
        "nowhere.png": "link to a missing file",
        "round/a.png": "",
        "n" * 300: "File name too long",
        "n" * 300 + "/*.png": "",
        "a\0b.png": "there is no such file",
    }


def test_hard_names_are_one_sentence_each(here, stub, capfd):
    for argument, message in hard_names(here).items():
        assert demo.main(["--class-names", "cat", "--input", argument, "--output", "out"]) == 1
        error = capfd.readouterr().err
        assert message in error and len(error.splitlines()) == 2
        assert "Traceback" not in error and "report" not in error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read(here, stub, capfd):
    (here / "closed").mkdir(mode=0)
    assert demo.main(["--class-names", "cat", "--input", "closed", "--output", "out"]) == 1
    assert "Permission denied (closed): check its owner" in capfd.readouterr().err


@pytest.mark.parametrize("stem", [b"\xff\xfe caf\xe9", "é".encode() * 125, b"n" * 251])
def test_names_that_are_no_text_or_very_long(here, stub, capsys, stem):
    save_image(here / "x.png")
    name = os.fsdecode(stem + b".png")
    (here / "in").mkdir()
    os.rename("x.png", here / "in" / name)
    for options in ([], ["--skip-existing"]):
        assert demo.main(["--class-names", "cat", "--input", "in", "--output", "out", *options]) == 0
    assert len(list((here / "out").iterdir())) == 3
    capsys.readouterr().out.encode()
    result = Segmentation(*noise(), str(here / "in" / name))
    assert all(path.is_file() for path in result.save(here / "again/"))


def test_links_in_a_circle_are_one_sentence_everywhere(here, capsys):
    (here / "round").symlink_to("round")
    with pytest.raises(SystemExit) as stopped, user_errors():
        (here / "round").resolve(strict=True)
    assert stopped.value.code == 2 and "correct the symbolic links" in capsys.readouterr().err


# ---- no home folder


def test_no_home_and_no_user(tmp_path, monkeypatch):
    for name in ("OVSEG_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(*_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    assert cache_dir().parent == tmp_path and cache_dir().stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(files.os, "getuid", lambda: 12345)
    (tmp_path / "ovseg-12345").mkdir()
    (tmp_path / "ovseg-12345").rmdir()
    (tmp_path / "ovseg-12345").symlink_to(tmp_path)
    with pytest.raises(OvsegError, match="is not yours: set OVSEG_CACHE"):
        cache_dir()
    monkeypatch.setattr(Path, "expanduser", unknown)
    monkeypatch.setenv("OVSEG_CACHE", "~/cache")
    with pytest.raises(OvsegError, match="write the whole path in place of ~"):
        cache_dir()


# ---- Ctrl-C, SIGTERM


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="cannot see what a process loads")
@pytest.mark.parametrize(
    ("script", "number", "line"),
    [
        ("demo.py --class-names a --input b", signal.SIGINT, "interrupted"),
        ("demo.py --class-names a --input b", signal.SIGTERM, "terminated"),
        ("train_net.py --config-file ovseg_swinB_vitL_demo", signal.SIGINT, "interrupted"),
        ("tools/check_dataset.py d", signal.SIGTERM, "terminated"),
    ],
)
def test_signals_while_libraries_load(tmp_path, script, number, line):
    script, *arguments = script.split()
    command = [sys.executable, str(ROOT / script), *arguments]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while "_umath_linalg" not in Path(f"/proc/{process.pid}/maps").read_text() and process.poll() is None:
        time.sleep(0.01)  # until the core of NumPy is there, which comes early; its C code hides interrupts
    process.send_signal(number)
    assert process.communicate(timeout=60)[1] == f"{line}\n" and process.returncode == 128 + number


def test_signals_of_other_programs_are_left_alone():
    assert signal.getsignal(signal.SIGINT) is not ovseg._end_in_one_line


@pytest.mark.parametrize(("number", "status", "line"), [(2, 130, "interrupted"), (15, 143, "terminated")])
def test_signals_while_a_file_is_written(tmp_path, capfd, number, status, line):
    def run() -> None:
        with user_errors(), atomic_path(tmp_path / "a.png") as temporary:
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), number)
            time.sleep(10)

    assert in_child(run) == status
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == f"{line}\n"
