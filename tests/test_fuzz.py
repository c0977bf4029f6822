"""The fuzz command: that it finds what is wrong, and that some targets run. `make fuzz` is the long one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

import numpy as np
import pytest

from ovseg.errors import OvsegError
from tests.fuzz.harness import fuzz
from tests.fuzz.mutate import mutate_bytes, mutate_value, to_json
from tests.fuzz.targets import ALL, BY_NAME
from tests.fuzz.worker import fault_of


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _devour() -> None:
    held = [np.ones(2**22) for _ in range(64)]  # 2 GiB, unless stopped
    time.sleep(60)
    del held


def _refuse(message: str) -> Callable[[], None]:
    def step() -> None:
        raise OvsegError(message)

    return step


class Planted:
    """Inputs that end well, in a refusal, and in every way that is a defect."""

    name = "planted"
    ways: dict[str, Callable[[], object]] = {
        "ok": lambda: None,
        "refused": _refuse("x is not a y: do z"),
        "traceback": lambda: {}["missing"],
        "crash": _crash,
        "memory": _devour,
        "message": _refuse("unusable (KeyError: 'x')"),
        "executed": lambda: subprocess.run(["true"], check=True),
        "network": lambda: socket.getaddrinfo("localhost", 80),
        "outside": lambda: Path("../outside.txt").write_text("x"),
    }

    def __init__(self, folder: Path) -> None:
        pass

    def make(self, rng: Random, folder: Path) -> Callable[[], object]:
        (folder / "input.txt").write_text("x")
        with (folder.parent / "count").open("a+") as file:  # outlives workers that die
            file.write("x")
            file.seek(0)
            return list(self.ways.values())[len(file.read()) - 1]

    def steps(self, given: Callable[[], object]) -> Iterable[Callable[[], object]]:
        return [given]


def test_every_way_to_fail_is_reported_and_the_rest_goes_on(tmp_path):
    result = fuzz(Planted, range(len(Planted.ways)), largest=2**27, keep=tmp_path)
    assert (result.inputs, result.ok, result.refused) == (len(Planted.ways), 1, 1)
    failures = {index: kind for index, kind in enumerate(Planted.ways) if index >= 2}
    assert {defect.indices[0]: defect.kind for defect in result.defects.values()} == failures
    assert {path.name for path in tmp_path.iterdir()} == {f"planted-{index}" for index in failures}
    assert "KeyError: 'missing'" in (tmp_path / "planted-2" / "VERDICT.txt").read_text()
    assert (tmp_path / "planted-3" / "input.txt").read_text() == "x"


class Hanging(Planted):
    """Every second input takes for ever."""

    ways = {"ok": lambda: None, "hang": lambda: time.sleep(600), "ok again": lambda: None}


def test_an_input_that_takes_too_long_is_stopped():
    result = fuzz(Hanging, range(3), deadline=1)
    (defect,) = result.defects.values()
    assert (defect.kind, defect.indices, result.ok) == ("hang", [1], 2)
    assert defect.place.startswith("tests/test_fuzz.py")


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("x is not a y: do z", ""),
        ("one line\nanother", "several lines"),
        ("long " * 1000, "too long"),
        ("the labels are unusable (KeyError: 'x')", "says KeyError"),
        ("this is a defect: please report it", "says please report"),
    ],
)
def test_a_message_must_be_fit_for_people(message, fault):
    assert fault_of(message) == fault


def test_inputs_depend_on_seed_and_index_alone():
    whole, value = b"some bytes, 12 of 34", {"a": [1, {"b": "text"}], "c": None}
    made = [[to_json(r, mutate_value(r, value)) + mutate_bytes(r, whole) for r in map(Random, range(50))] for _ in "ab"]
    assert made[0] == made[1] and len(set(made[0])) > 40
    assert value == {"a": [1, {"b": "text"}], "c": None}


def test_every_target_has_a_name_of_its_own():
    assert len(BY_NAME) == len(ALL)


@pytest.mark.parametrize("name", ["words", "settings", "pickles"])
def test_a_few_inputs_of(name):
    result = fuzz(BY_NAME[name], range(20))
    assert result.inputs == 20 and result.ok + result.refused > 0
    assert not result.defects
