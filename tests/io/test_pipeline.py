"""Reading, computing and saving at the same time: order, errors, limits, ends."""

from __future__ import annotations

import threading
import time

import pytest

from ovseg.errors import CannotWrite, OvsegError
from ovseg.io.pipeline import Stages


def stages(**changes) -> Stages:
    """Numbers are read as tens, computed as negative, and saved as texts."""
    steps = {
        "read": lambda item: item * 10,
        "compute": lambda inputs: [-value for value in inputs],
        "save": lambda item, result: f"{item}: {result}",
    }
    return Stages(**{**steps, **changes})


OPTIONS = [{"savers": 0}, {}, {"batch": 3}, {"ahead": 1, "savers": 1}, {"readers": 3, "batch": 20}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_order_is_kept(options):
    delays = [(7 * item % 5) / 1000 for item in range(40)]

    def save(item, result):
        time.sleep(delays[item])
        return f"{item}: {result}"

    found = list(stages(save=save, **options).run(range(40)))
    assert [outcome.value for outcome in found] == [f"{k}: {-10 * k}" for k in range(40)]
    assert [outcome.item for outcome in found] == list(range(40))
    assert list(stages(**options).run([])) == []


def fails_for(number, error):
    def step(item, *rest):
        if item == number:
            raise error
        return item * 10

    return step


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("savers", [0, 2])
def test_an_error_is_that_of_its_item(batch, savers):
    def compute(inputs):
        return [ValueError("five") if value == 50 else -value for value in inputs]

    def save(item, result):
        if item == 7:
            raise OSError("seven")
        return result

    steps = stages(read=fails_for(3, OvsegError("three")), compute=compute, save=save, batch=batch, savers=savers)
    found = list(steps.run(range(10)))
    errors = {outcome.item: str(outcome.error) for outcome in found if outcome.error}
    assert errors == {3: "three", 5: "five", 7: "seven"}
    assert [outcome.value for outcome in found if not outcome.error] == [0, -10, -20, -40, -60, -80, -90]


def test_an_error_of_a_batch_is_that_of_all_its_items():
    def compute(inputs):
        if 20 in inputs:
            raise ValueError("batch")
        return inputs

    found = list(stages(compute=compute, batch=2, ahead=4).run(range(6)))
    assert [outcome.item for outcome in found if outcome.error] == [2, 3]


@pytest.mark.parametrize("savers", [0, 2])
def test_a_full_disk_ends_the_run(savers):
    saved = []

    def save(item, result):
        if item == 4:
            raise CannotWrite("disk full")
        saved.append(item)

    done = []
    with pytest.raises(CannotWrite, match="disk full"):
        for outcome in stages(save=save, savers=savers).run(range(1000)):
            done.append(outcome.item)
    assert done == [0, 1, 2, 3] and len(saved) < 20


def test_steps_overlap():
    """A step of each kind is under way at the same time: item k + 2 is read, k + 1 computed and k saved together."""
    together = threading.Barrier(3)

    def meet(item, first):
        if first <= item < first + 7:
            together.wait(30)
        return item

    steps = {
        "read": lambda item: meet(item, 5),
        "compute": lambda inputs: [meet(inputs[0], 4)],
        "save": lambda item, result: meet(item, 3),
    }
    assert [outcome.value for outcome in Stages(**steps, savers=1).run(range(14))] == list(range(14))


def test_large_items_are_alone():
    under_way, most = set(), []
    lock = threading.Lock()

    def read(item):
        with lock:
            under_way.add(item)
            most.append(set(under_way))
        return item

    def save(item, result):
        time.sleep(0.002)
        with lock:
            under_way.discard(item)

    sizes = [1, 1, 50, 1, 1, 30, 30, 30, 1, 1]
    found = list(stages(read=read, save=save, load=lambda item: sizes[item], most=40).run(range(10)))
    assert [outcome.item for outcome in found] == list(range(10))
    assert all(len(items) == 1 or sum(sizes[item] for item in items) <= 40 for items in most)


def test_few_items_are_under_way():
    begun, left = [], []
    for outcome in stages(read=lambda item: begun.append(item), compute=list, ahead=4).run(range(100)):
        left.append(outcome.item)
        assert len(begun) - len(left) <= 12


def test_what_has_begun_ends_when_the_run_is_left():
    began, ended = [], []

    def save(item, result):
        began.append(item)
        time.sleep(0.05)
        ended.append(item)

    before = threading.active_count()
    run = stages(save=save).run(range(100))
    next(run)
    run.close()
    assert sorted(began) == sorted(ended) and len(ended) < 20 and threading.active_count() == before  # by two threads


def test_ctrl_c_ends_the_run():
    saved = []

    def compute(inputs):
        if inputs[0] == 50:
            raise KeyboardInterrupt
        return inputs

    with pytest.raises(KeyboardInterrupt):
        list(stages(compute=compute, save=lambda item, result: saved.append(item)).run(range(100)))
    assert set(saved) <= {0, 1, 2, 3, 4}
