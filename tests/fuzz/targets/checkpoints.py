"""Weight files in every format, given to all that read weights."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_safetensors
from torch import nn

from ovseg.checkpoint import load_weights
from ovseg.checkpoint.state_dicts import bare_clip_names, read_state_dict
from ovseg.clip import tokenizer
from ovseg.clip.model import build_clip, find_clip, load_clip_weights
from ovseg.engine.checkpoints import read_training_checkpoint
from tests.fuzz.mutate import mutate_bytes, mutate_value, odd_value, to_json
from tests.scripts import load_script
from tests.tiny_model import CLIP


class _Tiny(nn.Module):
    """A model with a name in each part of a segmenter."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        self.sem_seg_head = nn.ModuleDict({"predictor": nn.Linear(4, 2), "pixel_decoder": nn.Conv2d(2, 2, 1)})
        self.clip_adapter = nn.ModuleDict({"clip_model": nn.Linear(2, 2)})


def _save(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def whole_files() -> list[tuple[str, bytes]]:
    """(suffix, file) of the tiny model in each format and layout."""
    state = _Tiny().state_dict()
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    training = {"model": state, "optimizer": {"state": {0: {"step": 3}}, "param_groups": []}, "iteration": 9}
    files = [(".pth", _save(layout)) for layout in ({"model": state}, state, {"state_dict": wrapped}, training)]
    files += [(".pth", _save({"model": state}, _use_new_zipfile_serialization=False)), (".pt", _script(_Tiny()))]
    files += [(".pkl", pickle.dumps({"model": arrays, "__author__": "x"}, protocol=p)) for p in (0, 2, 4)]
    files += [(".pkl", pickle.dumps({"model": state, "matching_heuristics": True}))]
    files += [(".safetensors", save_safetensors(dict(state), {"MODEL.CLIP_ADAPTER.MASK_PROMPT_FWD": "True"}))]
    page, pointer = b"<!DOCTYPE html><html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    return [*files, (".pth", page), (".safetensors", pointer), (".pkl", b"")]


def _script(model: nn.Module) -> bytes:
    file = io.BytesIO()
    with torch.no_grad():
        torch.jit.save(torch.jit.script(nn.Sequential(model.backbone[0])), file)
    return file.getvalue()


def _odd_tensor(rng: Random) -> Any:
    tensor = torch.ones(rng.choice(((), (0,), (1,), (4, 3), (3, 4), (2, 2, 1, 1), (1, 0, 7))))
    kinds = (torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64, torch.uint8, torch.float64)
    choices: tuple[Callable[[], Any], ...] = (
        lambda: tensor.to(rng.choice(kinds)),
        lambda: tensor * rng.choice((float("nan"), float("inf"), 1e30)),
        lambda: tensor.to_sparse() if tensor.dim() else tensor,
        lambda: torch.empty(3, 4, device="meta"),
        lambda: torch.zeros(1).expand(10_000, 10_000),
        lambda: nn.Parameter(tensor),
        lambda: torch.quantize_per_tensor(torch.ones(4, 3), 0.1, 0, torch.qint8),
        lambda: np.ones((4, 3), rng.choice(("f2", "f8", "i4", "c8", "U3", "S2", "?", "M8[s]"))),
        lambda: np.array([None, "x"], object),
        lambda: np.float32(3),
        lambda: odd_value(rng),
        lambda: {"a": tensor},
        lambda: OrderedDict(a=tensor),
    )
    return rng.choice(choices)()


def odd_file(rng: Random, files: list[tuple[str, bytes]]) -> tuple[str, bytes]:
    """A damaged weight file and its suffix."""
    suffix, data = rng.choice(files)
    kind = rng.randrange(10)
    if kind == 0:
        return rng.choice((".pth", ".pt", ".pkl", ".pickle", ".safetensors", ".bin", "", ".PTH")), data
    if kind < 4:
        return suffix, mutate_bytes(rng, data, [data for _, data in files])
    if kind < 7 and zipfile.is_zipfile(io.BytesIO(data)):
        return suffix, odd_zip(rng, data)
    if kind < 7 and suffix == ".safetensors" and data[8:9] == b"{":
        return suffix, _odd_header(rng, data)
    return _odd_content(rng)


def _odd_content(rng: Random) -> tuple[str, bytes]:
    """A whole file of odd contents."""
    state: dict[Any, Any] = dict(_Tiny().state_dict())
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(list(state))
        state[rng.choice((name, f"module.{name}", f"_orig_mod.{name}", odd_name(rng)))] = _odd_tensor(rng)
    if rng.random() < 0.3:
        state.pop(rng.choice(list(state)))
    wrappers = ("model", "state_dict", "module", "net", "ovseg_settings")
    content = rng.choice((state, {rng.choice(wrappers): state}, {"model": {"model": state}}, [state], None))
    if rng.random() < 0.3 and isinstance(content, dict):
        content = content | {rng.choice((*wrappers, "optimizer", "iteration", 3)): odd_value(rng)}
    try:
        if rng.random() < 0.3:
            return ".pkl", pickle.dumps(content, protocol=rng.choice((2, 3, 4, 5)))
        return rng.choice((".pth", ".pt")), _save(content, _use_new_zipfile_serialization=rng.random() < 0.8)
    except Exception:  # torch cannot save all of these
        return ".pth", _save({"model": odd_value(rng)})


def odd_name(rng: Random) -> Any:
    return rng.choice(("x", "", 3, None, "\ud800", "clip_model.", "backbone", "a.b\nc", "x" * 5000, ("t",), b"bytes"))


def odd_zip(rng: Random, data: bytes) -> bytes:
    """The same archive with members removed, renamed, doubled or damaged, and right checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        infos = old.infolist()
        chosen = rng.choice(infos).filename
        for info in infos:
            content, name = old.read(info), info.filename
            if name == chosen or (name.endswith("data.pkl") and rng.random() < 0.3):
                kind = rng.randrange(4)
                if kind == 0:
                    continue
                name = rng.choice((f"{name}x", name.upper(), f"../{name}", name.split("/")[-1])) if kind == 1 else name
                content = mutate_bytes(rng, content) if kind == 2 else content
            new.writestr(
                zipfile.ZipInfo(name),
                content,
                rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)),
            )
            if rng.random() < 0.02:
                new.writestr(zipfile.ZipInfo(f"{name}-more"), content)
    return file.getvalue()


def _odd_header(rng: Random, data: bytes) -> bytes:
    """A safetensors file whose table of contents was changed."""
    size = struct.unpack("<Q", data[:8])[0]
    header = to_json(rng, mutate_value(rng, json.loads(data[8 : 8 + size])))
    return struct.pack("<Q", rng.choice((len(header), len(header), len(header), 2**40, 0))) + header + data[8 + size :]


class Checkpoints:
    """Damaged and odd weight files."""

    name = "checkpoints"
    inputs = 2000

    def __init__(self, folder: Path) -> None:
        self.files, self.convert = whole_files(), load_script("tools/convert_checkpoint.py").main

    def make(self, rng: Random, folder: Path) -> Path:
        suffix, data = odd_file(rng, self.files)
        path = folder / f"weights{suffix}"
        path.write_bytes(data)
        return path

    def steps(self, path: Path) -> Iterable[Callable[[], object]]:
        convert = partial(self.convert, [str(path), "out.safetensors", "--half"])
        return [
            partial(read_state_dict, path),
            partial(load_weights, _Tiny(), path),
            partial(read_training_checkpoint, path),
            convert,
        ]


class ClipFiles:
    """A CLIP's JSON architecture and weight file."""

    name = "clip"
    inputs = 2000
    architecture = CLIP | {
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 4, "heads": 1, "layers": 1},
    }

    def __init__(self, folder: Path) -> None:
        tokenizer.SimpleTokenizer = cache(tokenizer.SimpleTokenizer)  # which reads its vocabulary each time
        self.json, self.weights = folder / "clip.json", folder / "clip.pt"
        self.json.write_text(json.dumps(self.architecture))
        state = build_clip(find_clip(str(self.json), "none"))[0].state_dict()
        torch.save(state, self.weights)
        small = {name: tensor for name, tensor in state.items() if tensor.numel() < 10_000}
        wrapped = {f"module.clip_model.{name}": tensor for name, tensor in small.items()}
        self.files = [
            (".pt", _save(small)),
            (".pt", _save({"state_dict": wrapped})),
            (".safetensors", save_safetensors(small)),
        ]

    def make(self, rng: Random, folder: Path) -> tuple[str, str]:
        if rng.random() < 0.5:
            path = folder / "odd.json"
            content = {"model_cfg": self.architecture, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
            odd = mutate_value(rng, rng.choice((content, self.architecture)), odd=_small_value)
            path.write_bytes(to_json(rng, _small(odd)))
            return str(path), str(self.weights)
        suffix, data = odd_file(rng, self.files)
        path = folder / f"clip{suffix}"
        path.write_bytes(data)
        return str(self.json), str(path)

    def steps(self, given: tuple[str, str]) -> Iterable[Callable[[], object]]:
        return [partial(_build_clip, *given)]


def _small_value(rng: Random) -> Any:
    return rng.choice((None, True, 0, -1, 1, 3, 0.5, "", "x", "16", [], {}, [1], {"a": 1}, float("nan"), "a/b"))


def _small(value: Any, key: str = "") -> Any:
    """The same with small numbers: a CLIP of 2**31 layers is a large CLIP, not a damaged file."""
    if isinstance(value, dict):
        return {key: _small(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_small(item) for item in value]
    return value % 1000 if type(value) is int and value > 1000 and key != "vocab_size" else value


def _build_clip(name: str, weights: str) -> None:
    source = find_clip(name, weights)
    model, _ = build_clip(source)
    load_clip_weights(model, source)
    bare_clip_names(model.state_dict())
