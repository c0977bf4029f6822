"""Names and shapes of a weight file's tensors, without their data."""

from __future__ import annotations

import os
import pickle
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from ovseg.checkpoint import tensor_names
from ovseg.checkpoint.state_dicts import read_checkpoint, read_state_dict
from ovseg.errors import OvsegError
from tests import pickle_crafting
from tests.checkpoint.test_weight_files import CONTENTS, TENSORS, Holder, saved

OLD = {name: TENSORS[name] for name in TENSORS.keys() - {"unsigned", "eighth"}}
WRAPPED = {"state_dict": {f"module.{name}": tensor for name, tensor in OLD.items()}, "epoch": 1}
ARRAYS = {"model": {name: OLD[name].detach().numpy() for name in ("float", "part", "turned", "number", "bool")}}


def _tensors(path, **kinds):
    save_file({name: TENSORS[name].contiguous() for name in ("float", "half", "number", "empty", "eighth")}, path)


def _script(path):
    torch.jit.script(Holder()).save(str(path))


def _bytes(make, path):
    path.write_bytes(make())


FILES = {
    "safetensors": _tensors,
    "script": _script,
    "archive": partial(_bytes, partial(saved, {"model": TENSORS}, "archive")),
    "plain": partial(_bytes, partial(pickle.dumps, OLD)),
    **{f"arrays-{n}": partial(_bytes, partial(pickle.dumps, ARRAYS, n)) for n in (0, 2, 4, 5)},
    **{
        f"wrapped-{kind}": partial(_bytes, partial(saved, WRAPPED, kind))
        for kind in ("archive", "compressed", "legacy")
    },
    **{
        f"{name}-{kind}": partial(_bytes, lambda content=content, kind=kind: saved(content(), kind))
        for name, content in CONTENTS.items()
        for kind in ("archive", "compressed", "legacy")
    },
}


def _shapes(path):
    return {name: tuple(tensor.shape) for name, tensor in read_state_dict(path).items()}


def _result(read, path):
    try:
        return list(read(path).items())
    except OvsegError as error:
        return str(error)


@pytest.mark.parametrize("kind", FILES)
def test_names_and_shapes_are_those_of_the_tensors(tmp_path, kind):
    FILES[kind](tmp_path / "a.bin")
    assert _result(tensor_names, tmp_path / "a.bin") == _result(_shapes, tmp_path / "a.bin")


def test_crafted_and_damaged_files_are_refused_alike(tmp_path):
    """But for wrong values in a tensor's data, which are not read."""
    for content in [*pickle_crafting.mutations(300), *list(pickle_crafting.crafted())[-25:]]:
        if len(content) < 1_000_000:
            path = pickle_crafting.write(content, tmp_path)
            theirs = _result(_shapes, path)
            if "checksum" not in theirs:
                assert _result(tensor_names, path) == theirs


@pytest.mark.parametrize("kind", ["archive", "safetensors"])
def test_data_are_not_read(tmp_path, kind):
    path = tmp_path / "large"
    tensors = {"w": torch.ones(1 << 20)}
    save_file(tensors, path) if kind == "safetensors" else torch.save(tensors, path)
    assert read_checkpoint(path, data=False)["w"].is_meta
    with path.open("r+b") as file:  # a hole in place of the data
        file.seek(path.stat().st_size // 2)
        file.write(os.urandom(64))
    assert tensor_names(path) == {"w": (1 << 20,)}
