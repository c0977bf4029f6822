from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from ovseg.engine.timing import REST, STAGES, Stages, clock_of, time_stages


class Clock:
    """Goes forward only when set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


class Part(nn.Module):
    def __init__(self, clock: Clock, seconds: float):
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self) -> float:
        self.clock.wait(self.seconds)
        return self.seconds


class Namer(Part):
    def inputs(self, count: int):
        for i in range(count):
            self.clock.wait(1.0)
            yield i

    def forward(self, count: int) -> list[int]:
        self.clock.wait(0.5)
        seen = []
        for region in self.inputs(count):
            self.clock.wait(8.0)  # CLIP's work on it
            seen.append(region)
        return seen


class Proposer(nn.Module):
    def __init__(self, model: nn.Module, clock: Clock):
        super().__init__()
        self.model, self.clock = [model], clock  # in a list, as it is no part of this one

    def forward(self) -> None:
        (model,) = self.model
        model.backbone()
        self.clock.wait(0.25)
        model.sem_seg_head.pixel_decoder()
        model.sem_seg_head.predictor()


class Model(nn.Module):
    """Has some of the parts, as a system without the others."""

    def __init__(self, clock: Clock):
        super().__init__()
        self.clock = clock
        self.backbone = Part(clock, 3.0)
        self.sem_seg_head = nn.Module()
        self.sem_seg_head.pixel_decoder, self.sem_seg_head.predictor = Part(clock, 5.0), Part(clock, 7.0)
        self.proposer, self.mask_namer = Proposer(self, clock), Namer(clock, 0.0)

    def forward(self) -> list[int]:
        self.proposer()
        self.clock.wait(0.125)
        return self.mask_namer(2)


def test_each_stage_is_charged_without_what_is_inside_of_it():
    clock = Clock()
    model = Model(clock)
    with time_stages(model, clock) as stages:
        assert model() == [0, 1]
        clock.wait(0.125)
    expected = {"backbone": 3, "pixel decoder": 5, "decoder": 7, "masks": 0.25, "crops": 2, "CLIP": 16.5, REST: 0.25}
    assert stages.seconds == expected
    assert sum(stages.seconds.values()) == clock.now - 100
    assert set(stages.seconds) <= {*STAGES, REST}


def test_the_model_is_as_before_after_it():
    clock = Clock()
    model = Model(clock)
    own = model.backbone.forward = lambda: 1.0  # of the instance, as a compiled one is
    with pytest.raises(RuntimeError, match="broken"), time_stages(model, clock):
        raise RuntimeError("broken")
    assert model.backbone.forward is own
    assert "forward" not in vars(model.sem_seg_head.predictor)
    assert "inputs" not in vars(model.mask_namer)


def test_an_error_ends_its_stage():
    clock = Clock()
    stages = Stages(clock)
    with stages.stage("outer"):
        with pytest.raises(ValueError, match="no"), stages.stage("inner"):
            clock.wait(1)
            raise ValueError("no")
        clock.wait(2)
    assert stages.seconds == {"inner": 1, "outer": 2}


def test_processor_time_leaves_out_waiting():
    now, processor = clock_of(torch.device("cpu")), clock_of(torch.device("cpu"), processor_time=True)
    start = now(), processor()
    time.sleep(0.05)
    assert now() - start[0] >= 0.05
    assert processor() - start[1] < 0.04
