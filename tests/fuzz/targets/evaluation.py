"""What an evaluation leaves: its record, counts, worst images, tables of fathers, and parts where it was broken off."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml

from ovseg.data.protocol import protocol_of
from ovseg.evaluation import report
from ovseg.evaluation.runner import evaluate_all
from ovseg.evaluation.sg_table import read_table
from tests.evaluation import evaluation_standin as standin
from tests.fuzz.mutate import mutate_bytes, mutate_value, to_json
from tests.scripts import load_script


def odd_arrays(rng: Random, data: bytes) -> bytes:
    """An .npz file whose arrays have other types, shapes, values or names, or that is damaged."""
    if rng.random() < 0.4:
        return mutate_bytes(rng, data)
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = dict(file)
    name = rng.choice(list(arrays))
    array, kind = arrays.pop(name), rng.randrange(9)
    if kind == 1:
        arrays[f"{name}x"] = array
    elif kind == 2:
        arrays[name] = (
            array.astype(rng.choice(("f4", "i1", "S4", "U9", "c8", "?")), casting="unsafe")
            if array.dtype.kind in "iuf"
            else array[..., None]
        )
    elif kind == 3:
        arrays[name] = array.reshape(-1)[: max(0, array.size - 1)]
    elif kind == 4:
        arrays[name] = np.array(rng.choice((0, -1, 2**62, float("nan"), "x")))
    elif kind == 5 and array.dtype.kind in "iuf":
        factor, more = rng.choice((-1, 2**40 if array.dtype.itemsize > 4 else 3)), rng.choice((0, 1, -7))
        arrays[name] = (array.astype("f8" if array.dtype.kind == "f" else "i8") * factor + more).astype(array.dtype)
    elif kind == 6:
        arrays[name] = np.array([None, {}], object)  # saved as a pickle
    elif kind == 7:
        arrays[name] = np.full(array.shape, rng.choice((float("nan"), float("inf"))))
    elif kind == 8:
        arrays[name] = np.concatenate([array.reshape(-1)] * 2)
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _stop_at_the_third(model: Any, _: Any) -> None:
    if len(model.requests) == 2:
        raise KeyboardInterrupt


class _Evaluation:
    """An evaluation of the stand-in; ``done`` is the folder of its finished results, ``part`` of a broken one."""

    inputs = 2000

    def __init__(self, folder: Path) -> None:
        standin.NUM_IMAGES = 3
        # half of an evaluation's time is its configuration as YAML: libyaml writes and reads the same ten times faster
        yaml.SafeLoader, yaml.SafeDumper = yaml.CSafeLoader, yaml.CSafeDumper
        standin.make_images(folder)
        standin.register(folder)
        self.model = standin.StandIn().eval()
        evaluate_all(self.configuration(folder / "done"), self.model)
        stopping = standin.StandIn().eval()
        stopping.register_forward_pre_hook(_stop_at_the_third)
        with contextlib.suppress(KeyboardInterrupt):
            evaluate_all(self.configuration(folder / "part"), stopping)
        self.done, self.part = folder / "done", folder / "part"
        assert any(self.part.rglob("*.npz")) and any(self.done.rglob("results.json"))
        self.report, self.compare = (load_script(f"tools/{name}.py").main for name in ("report", "compare_results"))

    def configuration(self, folder: Path) -> Any:
        return standin.configuration(folder, "TEST.REPORT", True)

    def resume(self, folder: Path) -> None:
        self.model.requests.clear()
        evaluate_all(self.configuration(folder), self.model, resume=True)


class Results(_Evaluation):
    """Finished results with damage in one or two files: reports, comparisons, going on."""

    name = "results"

    def make(self, rng: Random, folder: Path) -> Path:
        run = folder / "run"
        shutil.copytree(self.done, run)
        inner = run / "inference" / standin.NAME
        for _ in range(rng.randint(1, 2)):
            record, arrays = inner / "results.json", inner / rng.choice(("confusion.npz", "worst_images.npz"))
            if rng.random() < 0.6:
                text = record.read_bytes()
                with contextlib.suppress(ValueError, RecursionError):
                    text = to_json(rng, mutate_value(rng, json.loads(text)))
                record.write_bytes(text)
            else:
                with contextlib.suppress(Exception):  # damaged already
                    arrays.write_bytes(odd_arrays(rng, arrays.read_bytes()))
        (folder / "fathers.json").write_bytes(
            to_json(rng, mutate_value(rng, {"bus": "sky", "water": ["sky", 1], "2": [0]}))
        )
        return run

    def steps(self, run: Path) -> Iterable[Callable[[], object]]:
        options = ["--force", "--settings"]
        return [
            partial(self.report, [str(run / "inference" / standin.NAME)]),
            partial(self.compare, [str(self.done), str(run), *options]),
            partial(self.compare, [str(run), str(self.done), "--rows"]),
            lambda: read_table("fathers.json", protocol_of(standin.NAME)),
        ]


class Partials(_Evaluation):
    """Unfinished evaluations with damage in their parts, and finished ones with a damaged record, gone on with."""

    name = "partials"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        report.write_report = lambda *_: None  # which takes most of the time, and belongs to the other target

    def make(self, rng: Random, folder: Path) -> Path:
        run = folder / "run"
        shutil.copytree(self.part if rng.random() < 0.8 else self.done, run)
        files = sorted(path for path in run.rglob("*") if path.is_file() and path.suffix in (".npz", ".json", ".jsonl"))
        for path in rng.sample(files, min(len(files), rng.randint(1, 2))):
            data = path.read_bytes()
            if path.suffix == ".npz":
                data = odd_arrays(rng, data)
            elif path.suffix == ".json" and rng.random() < 0.7:
                data = to_json(rng, mutate_value(rng, json.loads(data)))
            else:
                data = mutate_bytes(rng, data)
            path.write_bytes(data)
        if rng.random() < 0.05:
            rng.choice(files).unlink()
        return run

    def steps(self, run: Path) -> Iterable[Callable[[], object]]:
        return [partial(self.resume, run)]
