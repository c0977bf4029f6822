"""Reading weight files of every kind, and what no program has written."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import multiprocessing
import os
import pickle
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ovseg.checkpoint import _fitting_configuration, load_weights
from ovseg.errors import OvsegError
from ovseg.state_dicts import bare_clip_names, is_plain_pickle, read_checkpoint, read_state_dict
from ovseg.weight_files import pickles
from tests import pickle_crafting
from tests.scripts import load_script
from tests.test_checkpoint import Code, Model, equal

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


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_arrays_of_every_protocol(tmp_path, protocol):
    arrays = {f"{kind}": np.arange(6).astype(kind).reshape(2, 3) for kind in ("<f4", ">f4", "i8", "u1", "f2", "?")}
    arrays |= {"fortran": np.asfortranarray(arrays["<f4"]), "scalar": np.float64(2.5), "large": np.ones(100_000, "f4")}
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


def test_torchscript_archive_is_read_as_a_state_dict(tmp_path):
    model = Holder()
    torch.jit.script(model).save(str(tmp_path / "ViT.pt"))
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
    assert "the model under 'model' is taken, not that under model_ema" in caplog.text
    torch.save({"teacher": other, "epoch": 3}, tmp_path / "teacher.pth")
    assert equal(read_state_dict(tmp_path / "teacher.pth"), other)
    assert "the model under 'teacher' is taken, there is no other" in caplog.text
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
    with pytest.raises(OvsegError, match=r"damaged, or no weight file .*without PyTorch's data\.pkl"):
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
    content = (Path(__file__).parent / f"data/manifests/{manifest}.json.gz").read_bytes()
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
    results.put((unexplained[:5], grown / 1e6, (folder / "was_run").exists()))


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
