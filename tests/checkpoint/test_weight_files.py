"""Reading weight files of every kind, and what no program has written."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import logging
import multiprocessing
import os
import pickle
import random
import resource
import sys
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim import lr_scheduler

from ovseg.checkpoint import pickles
from ovseg.checkpoint.loading import _fitting_configuration, load_weights
from ovseg.checkpoint.saving import save_safetensors
from ovseg.checkpoint.state_dicts import bare_clip_names, is_plain_pickle, read_checkpoint, read_state_dict
from ovseg.errors import OvsegError
from tests import pickle_crafting
from tests.checkpoint.test_loading import Code, Model, equal
from tests.scripts import load_script

TENSORS = {
    "float": torch.arange(12.0).view(3, 4),
    "part": torch.arange(12.0).view(3, 4)[1:, ::2],
    "turned": torch.arange(6.0).view(2, 3).t(),
    "repeated": torch.ones(1, 4).expand(3, 4),
    "empty": torch.empty(0, 3),
    "number": torch.tensor(3),
    "half": torch.ones(2, dtype=torch.float16),
    "brain": torch.ones(2, dtype=torch.bfloat16),
    "bool": torch.tensor([True, False]),
    "complex": torch.tensor([1 + 2j]),
    "parameter": nn.Parameter(torch.ones(2)),
    "unsigned": torch.tensor([1, 65535], dtype=torch.uint16),
    "eighth": torch.ones(2).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("new", [True, False])
def test_torch_files_are_read_as_torch_reads_them(tmp_path, new):
    both = torch.arange(4.0)
    # PyTorch does not read these types from its old format
    tensors = TENSORS if new else {name: TENSORS[name] for name in TENSORS.keys() - {"unsigned", "eighth"}}
    content = {
        "model": tensors | {"first": both[:2], "second": both[2:]},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0), "betas": (0.9, 0.999)}}, "param_groups": [{"lr": 1e-3}]},
        "more": [torch.Size([2, 3]), torch.float16, torch.device("cpu"), {"a", "b"}, None, True, -5, 2**70, 1.5, "ä"],
    }
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    ours = read_checkpoint(tmp_path / "a.pth")
    theirs = torch.load(tmp_path / "a.pth", weights_only=True)
    for name, tensor in theirs["model"].items():
        assert torch.equal(ours["model"][name].to(torch.cfloat), tensor.detach().to(torch.cfloat)), name
        assert ours["model"][name].dtype == tensor.dtype, name
        assert ours["model"][name].stride() == tensor.stride(), name
    first, second = ours["model"]["first"], ours["model"]["second"]
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    assert ours["more"] == theirs["more"]
    assert ours["optimizer"] == theirs["optimizer"]


def saved(content, kind):
    """``content`` as ``torch.save`` writes it, as an archive (zipped anew with compression), in the old format."""
    file, packed = io.BytesIO(), io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=kind != "legacy")
    if kind != "compressed":
        return file.getvalue()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return packed.getvalue()


def _training(optimizer, scheduler=None):
    """State dicts of an optimizer after a step and of a scheduler."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = optimizer(model.parameters())
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    scheduler = scheduler and scheduler(optimizer).state_dict()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler}


def _with_attribute(tensor):
    tensor.no_decay = True
    return tensor


sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
CONTENTS = {
    "adamw": partial(_training, torch.optim.AdamW, lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, 9)),
    "sgd": partial(_training, sgd, lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [3, 5, 5])),
    "plateau": partial(_training, sgd, lr_scheduler.ReduceLROnPlateau),
    "random": lambda: {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "more": [b"a", bytearray(b"b")],
    },
    "lightning": lambda: {
        "pytorch-lightning_version": "2.2.0",
        "state_dict": OrderedDict(w=torch.ones(2)),
        "loops": {"fit_loop": {"epoch_loop.batch_progress": {"total": {"ready": 1}, "is_last_batch": True}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.3), "monitor": None}},
        "hyper_parameters": {"lr": 1e-3, "sizes": (1, 2), "phase": 1j},
        "lr_schedulers": [{"milestones": Counter([3, 3]), "_last_lr": [0.1]}],
        "MixedPrecision": {"scale": 65536.0, "_growth_tracker": 0},
    },
    "views": lambda: {
        "conjugate": torch.tensor([1 + 2j, 3]).conj(),
        "imaginary": torch.tensor([1 + 2j]).conj().imag,
        "channels_last": torch.rand(1, 3, 4, 4).to(memory_format=torch.channels_last),
        "attributes": [_with_attribute(torch.ones(2)), _with_attribute(nn.Parameter(torch.ones(2)))],
    },
}


def _same(ours, theirs):
    if isinstance(theirs, torch.Tensor):
        return ours.dtype == theirs.dtype and torch.equal(ours, theirs.detach())
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(_same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list | tuple):
        return type(ours) is type(theirs) and len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return type(ours) is type(theirs) and ours == theirs


@pytest.mark.parametrize("mapped", [True, False])
def test_a_map_is_equal_private_and_outlives_the_file(tmp_path, mapped):
    path = tmp_path / "weights.pth"
    torch.save(TENSORS, path)
    written = path.read_bytes()
    found = read_checkpoint(path, mapped=mapped)
    found["float"].zero_()
    assert path.read_bytes() == written
    other = tmp_path / "other.pth"
    torch.save({}, other)
    other.replace(path)  # as files are written here: what was read stays
    assert not found.pop("float").any()
    for name, tensor in found.items():
        assert _same(tensor, TENSORS[name]), name
        assert tensor.data_ptr() % tensor.element_size() == 0


@pytest.mark.parametrize("place", ["data", "name", "beyond"])
def test_a_map_of_a_damaged_archive(tmp_path, place):
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.arange(1000.0)}, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
        central = content.index(b"PK\1\2", archive.start_dir)
    while content[central + 46 : central + 46 + len(info.filename)] != info.filename.encode():
        central = content.index(b"PK\1\2", central + 1)
    if place == "data":
        content[content.index(torch.arange(1000.0).numpy().tobytes()) + 7] ^= 1
    elif place == "name":
        content[info.header_offset] ^= 1
    else:
        content[central + 42 : central + 46] = (len(content) - 8).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(OvsegError, match="damaged"):
        read_checkpoint(path, mapped=True)


@pytest.mark.parametrize("kind", ["archive", "compressed", "legacy"])
@pytest.mark.parametrize("content", CONTENTS)
def test_what_training_programs_save(tmp_path, content, kind):
    (tmp_path / "a.pth").write_bytes(saved(CONTENTS[content](), kind))
    assert _same(read_checkpoint(tmp_path / "a.pth"), torch.load(tmp_path / "a.pth", weights_only=True))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (defaultdict(list), "collections.defaultdict"),
        (SimpleNamespace(lr=1), "types.SimpleNamespace"),
        (Path("x"), "pathlib"),
        (Model(), "tests.checkpoint.test_loading.Model"),
        (torch.eye(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        (np.array(["a"]), "numpy.str_"),
        (np.array([None]), "numpy.object_"),
        (np.datetime64("2020-01-01"), "numpy.datetime64"),
    ],
)
@pytest.mark.parametrize("kind", ["archive", "legacy"])
def test_what_needs_code_is_not_called_damaged(tmp_path, value, name, kind):
    (tmp_path / "a.pth").write_bytes(saved({"model": {"w": torch.ones(1)}, "more": value}, kind))
    with pytest.raises(OvsegError, match=rf"asks for {name}.* --trust"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("kind", ["archive", "legacy"])
def test_settings_of_lightning_are_not_read(tmp_path, kind, monkeypatch):
    """Files of PyTorch Lightning hold attribute dictionaries, parsed arguments, and a class as a key."""
    classes = {
        "AttributeDict": "pytorch_lightning.utilities.parsing",
        "ModelCheckpoint": "pytorch_lightning.callbacks.model_checkpoint",
    }
    made = {}
    for name, module in classes.items():
        made[name] = type(name, (dict,), {"__module__": module})
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
        setattr(sys.modules[module], name, made[name])
    content = {
        "state_dict": {"net.w": torch.ones(1)},
        "hyper_parameters": made["AttributeDict"](lr=1, arguments=Namespace(x="y")),
        "callbacks": {made["ModelCheckpoint"]: {"best": torch.tensor(1.0)}},
    }
    (tmp_path / "a.ckpt").write_bytes(saved(content, kind))
    for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
        monkeypatch.delitem(sys.modules, name)
    assert read_state_dict(tmp_path / "a.ckpt").keys() == {"w"}


def test_arrays_written_by_python_2(tmp_path):
    """Detectron2's zoo: protocol 2, texts of bytes, and nothing that Python 3 would write so."""
    array = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    head = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02K\x03\x86"
    kind = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    whole = (
        b"\x80\x02}(U\x05model}U\x01w" + head + kind + b"\x89U\x18" + array.tobytes() + b"tbsU\x0a__author__U\x01xu."
    )
    assert np.array_equal(pickle.loads(whole, encoding="latin1")["model"]["w"], array)
    (tmp_path / "a.pkl").write_bytes(whole)
    content = read_checkpoint(tmp_path / "a.pkl")
    assert np.array_equal(content["model"]["w"], array)
    assert content["__author__"] == "x"


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_arrays_of_every_protocol(tmp_path, protocol):
    arrays = {f"{kind}": np.arange(6).astype(kind).reshape(2, 3) for kind in ("<f4", ">f4", "i8", "u1", "f2", "?")}
    arrays |= {"fortran": np.asfortranarray(arrays["<f4"]), "scalar": np.float64(2.5), "large": np.ones(100_000, "f4")}
    arrays |= {"none": np.zeros((0, 2), "f4")}
    arrays |= {"turned": np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": arrays}, protocol))
    state = read_state_dict(tmp_path / "a.pkl")
    assert state.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(state[name].numpy(), array), name


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)).half()
        self.logit_scale = nn.Parameter(torch.tensor(4.0))
        self.register_buffer("context_length", torch.tensor(77))
        self.sizes = [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.sizes[0]


@pytest.mark.parametrize("compiled", [torch.jit.script, lambda model: torch.jit.trace(model, torch.ones(1))])
def test_torchscript_archive_is_read_as_a_state_dict(tmp_path, compiled):
    model = Holder()
    compiled(model).save(str(tmp_path / "ViT.pt"))
    assert equal(read_state_dict(tmp_path / "ViT.pt"), model.state_dict())


@pytest.mark.parametrize(
    "prefix",
    ["_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.", "state_dict.model.module.", "teacher."],
)
def test_wrappers_are_taken_off(tmp_path, prefix):
    state = Model().state_dict()
    torch.save({"state_dict": {f"{prefix}{name}": tensor for name, tensor in state.items()}}, tmp_path / "a.ckpt")
    assert len(load_weights(Model(), tmp_path / "a.ckpt").loaded) == len(state)
    if prefix != "teacher.":
        assert equal(read_state_dict(tmp_path / "a.ckpt"), state)
        clip = {f"{prefix}visual.proj": torch.ones(1)}
        assert set(bare_clip_names(clip)) == {"visual.proj"}


@pytest.mark.parametrize("prefix", ["clip.", "model.clip.", "base_model.model."])
def test_any_prefix_of_a_clip_is_taken_off(prefix):
    clip = {"logit_scale": torch.ones(1), "visual.proj": torch.ones(2)}
    found = bare_clip_names({f"{prefix}{name}": tensor for name, tensor in clip.items()} | {"head.w": torch.ones(1)})
    assert equal(found, clip)


def test_wrappers_of_parts_are_taken_off(tmp_path):
    state = Model().state_dict()
    parts = {name.replace("backbone.", "backbone._orig_mod.module."): tensor for name, tensor in state.items()}
    torch.save({"model": parts}, tmp_path / "a.pth")
    assert equal(read_state_dict(tmp_path / "a.pth"), state)


def test_which_of_several_models_is_taken(tmp_path, caplog):
    state = Model().state_dict()
    other = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"model": state, "model_ema": other}, tmp_path / "both.pth")
    assert equal(read_state_dict(tmp_path / "both.pth"), state)
    assert "using the model under 'model', not that under model_ema" in caplog.text
    torch.save({"teacher": other, "epoch": 3}, tmp_path / "teacher.pth")
    assert equal(read_state_dict(tmp_path / "teacher.pth"), other)
    assert "using the model under 'teacher', there is no other" in caplog.text
    twice = {f"{who}.{name}": tensor for who in ("teacher", "student") for name, tensor in state.items()}
    torch.save(twice, tmp_path / "twice.pth")
    with pytest.raises(OvsegError, match=r"several models, under student\. and teacher\.: save one"):
        load_weights(Model(), tmp_path / "twice.pth")
    torch.save({"net.w": torch.ones(1), "module.w": torch.ones(1)}, tmp_path / "clash.pth")
    with pytest.raises(OvsegError, match=r"holds w twice, as net\.w and module\.w"):
        read_state_dict(tmp_path / "clash.pth")


def test_format_is_told_by_the_content(tmp_path):
    state = Model().state_dict()
    save_file(state, tmp_path / "a.bin")
    assert equal(read_state_dict(tmp_path / "a.bin"), state)
    (tmp_path / "b.pth").write_bytes(pickle.dumps(state))
    assert equal(read_state_dict(tmp_path / "b.pth"), state)
    (tmp_path / "c.pth").write_bytes(gzip.compress(b"x"))
    with pytest.raises(OvsegError, match=r"compressed \(gzip\): unpack it"):
        read_state_dict(tmp_path / "c.pth")
    with zipfile.ZipFile(tmp_path / "d.pth", "w") as archive:
        archive.writestr("weights/model.pth", b"x")
    with pytest.raises(OvsegError, match=r"damaged, or not a weight file .*without PyTorch's data\.pkl"):
        read_state_dict(tmp_path / "d.pth")


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_a_damaged_file_is_called_damaged(tmp_path, kind):
    file, state = tmp_path / "a.pth", Model().state_dict()
    if kind == "pickle":
        file.write_bytes(pickle.dumps({name: tensor.numpy() for name, tensor in state.items()}))
    else:
        torch.save(state, file, _use_new_zipfile_serialization=kind == "zip")
    whole = file.read_bytes()
    name = b"numpy" if kind == "pickle" else b"_rebuild_tensor_v2"
    place = whole.index(name)
    for damaged in (
        whole.replace(name, b"x" + name[1:]),
        whole[: place + 40],
        whole[:place] + bytes(50) + whole[place + 50 :],
    ):
        file.write_bytes(damaged)
        with pytest.raises(OvsegError, match="damaged") as error:
            read_state_dict(file)
        assert "--trust" not in str(error.value)


def test_trusted_pickles_are_converted(tmp_path):
    class_file = tmp_path / "a.pkl"
    class_file.write_bytes(pickle.dumps({"model": {"w": np.ones(2, "f4")}, "more": Code(tmp_path / "was_run")}))
    assert is_plain_pickle(class_file)
    tool, output = load_script("tools/convert_checkpoint.py"), tmp_path / "a.safetensors"
    with pytest.raises(OvsegError, match=r"asks for posix\.mkdir"):
        tool.main([str(class_file), str(output)])
    tool.main([str(class_file), str(output), "--trust"])
    assert read_state_dict(output)["w"].tolist() == [1, 1]


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: {"model": model, "epoch": 3}])
def test_trusted_modules_are_converted(tmp_path, wrap):
    model = Model()
    torch.save(wrap(model), tmp_path / "a.pt")
    load_script("tools/convert_checkpoint.py").main(
        [str(tmp_path / "a.pt"), str(tmp_path / "b.safetensors"), "--trust"]
    )
    assert equal(read_state_dict(tmp_path / "b.safetensors"), model.state_dict())


def test_a_missing_package_is_named(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02}X\x01\x00\x00\x00acnot_here\nX\n)Rs.")
    tool = load_script("tools/convert_checkpoint.py")
    with pytest.raises(OvsegError, match="needs the package not_here: install it"):
        tool.main([str(tmp_path / "a.pkl"), str(tmp_path / "b.safetensors"), "--trust"])


@pytest.mark.parametrize("tensor", [torch.eye(2).to_sparse(), torch.ones(1, dtype=torch.cdouble)])
def test_what_safetensors_cannot_hold(tmp_path, tensor):
    with pytest.raises(OvsegError, match="safetensors cannot hold"):
        save_safetensors({"w": tensor}, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_no_text(tmp_path):
    torch.save({"\ud800": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(OvsegError, match="with the invalid name"):
        read_state_dict(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("manifest", "config"),
    [
        ("swinB_vitL14", "configs/ovseg_swinB_vitL_bs32_120k.yaml"),
        ("R101c_vitB16", "configs/ovseg_R101c_vitB_bs32_120k.yaml"),
        ("scan_vitL", "configs/scan_vitL.yaml"),
        ("scan_vitB", "configs/scan_vitB.yaml"),
    ],
)
def test_the_configuration_that_fits_is_named(manifest, config):
    content = (Path(__file__).parents[1] / f"data/manifests/{manifest}.json.gz").read_bytes()
    shapes = json.loads(gzip.decompress(content))["state_dict"]
    state = {name: torch.empty(shape, device="meta") for name, (shape, _) in shapes.items()}
    assert f"made with {config}" in _fitting_configuration(state)


def _read_all(contents, folder, results):
    os.chdir(folder)
    logging.disable()
    before, unexplained = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for content in contents:
        try:
            read_state_dict(pickle_crafting.write(content, folder))
        except OvsegError as error:
            if "\n" in str(error):
                unexplained.append(str(error))
        except BaseException as error:
            unexplained.append(repr(error))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    results.put((unexplained[:5], grown / 1e6, (folder / pickle_crafting.WAS_RUN).exists()))


@pytest.mark.parametrize("which", ["crafted", "mutated"])
def test_no_pickle_runs_code_crashes_or_fills_the_memory(tmp_path, monkeypatch, which):
    """In a process of its own, whose death would be seen; tests/pickle_crafting.py makes many more."""
    if which == "crafted":
        monkeypatch.setattr(pickles, "MOST_OPERATIONS", 350_000)
        everything = list(pickle_crafting.crafted())
        contents = everything[:-25:40] + everything[-25:]
    else:
        contents = pickle_crafting.mutations(400)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=_read_all, args=(list(itertools.chain(contents)), tmp_path, results))
    child.start()
    child.join(120)
    assert child.exitcode == 0
    unexplained, gigabytes, was_run = results.get()
    assert not unexplained
    assert not was_run
    assert gigabytes < 3
