from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from safetensors.torch import save_file
from torch import nn

from ovseg.checkpoint.loading import load_model, load_weights, rename_keys
from ovseg.checkpoint.state_dicts import constant_names, read_checkpoint, read_state_dict
from ovseg.config import load_cfg
from ovseg.errors import OvsegError
from tests.tiny_model import make_tiny_model


class Code:
    """Unpickling this would create a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        import os

        return os.mkdir, (self.path,)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
        self.sem_seg_head = nn.ModuleDict({"pixel_decoder": nn.Linear(2, 2), "predictor": nn.Linear(2, 2)})


@pytest.fixture
def state():
    torch.manual_seed(0)
    return {name: torch.randn_like(tensor) for name, tensor in Model().state_dict().items()}


CONFIG = Path(__file__).parents[2] / "configs" / "toy" / "ovseg_toy.yaml"


def equal(a, b):
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_formats(tmp_path, state):
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "bare.pt")
    torch.save({"model": state, "iteration": 3, "optimizer": {"state": {}}}, tmp_path / "detectron2.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 1}, tmp_path / "open_clip.pt")
    (tmp_path / "numpy.pkl").write_bytes(pickle.dumps({"model": {k: v.numpy() for k, v in state.items()}}))
    tensors = {"model": state, "__author__": "x", "matching_heuristics": True}
    (tmp_path / "tensors.pkl").write_bytes(pickle.dumps(tensors))
    for file in tmp_path.iterdir():
        assert equal(read_state_dict(file), state), file.name
    assert read_checkpoint(tmp_path / "detectron2.pth")["iteration"] == 3


def test_python2_pickle_of_arrays(tmp_path):
    array = np.arange(3, dtype=np.float32)
    (tmp_path / "old.pkl").write_bytes(pickle.dumps({"model": {"w": array}}, protocol=2))
    assert torch.equal(read_state_dict(tmp_path / "old.pkl")["w"], torch.from_numpy(array))


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_code_is_refused_and_the_converter_named(tmp_path, suffix):
    file = tmp_path / f"evil{suffix}"
    if suffix == ".pth":
        torch.save({"model": {"w": torch.ones(2)}, "extra": Code(tmp_path / "was_run")}, file)
    else:
        file.write_bytes(pickle.dumps({"model": Code(tmp_path / "was_run")}))
    with pytest.raises(OvsegError, match=r"refused.*tools/convert_checkpoint.py .*--trust"):
        read_state_dict(file)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"", "is empty"),
        ("a.pth", b"<!DOCTYPE html><html>Sign in</html>", r"is a web page \(HTML\)"),
        ("a.safetensors", b"  <html>", r"is a web page \(HTML\)"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        ("a.pth", b"hello, this is text", "is not a weight file|is truncated"),
        ("a.pkl", b"hello, this is text", "is not a weight file|is truncated"),
        ("a.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{}", "damaged"),
    ],
)
def test_what_is_no_weight_file(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OvsegError, match=message):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated(tmp_path, state, suffix):
    file = tmp_path / f"whole{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save({"model": state}, file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(OvsegError, match=r"truncated|damaged"):
        read_state_dict(file)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(OvsegError, match=r"nowhere.pth does not exist"):
        read_state_dict(tmp_path / "nowhere.pth")
    with pytest.raises(OvsegError, match="is a folder"):
        read_state_dict(tmp_path)
    torch.save({"model": {}}, tmp_path / "none.pth")
    with pytest.raises(OvsegError, match="holds no tensors"):
        read_state_dict(tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(OvsegError, match="holds a list"):
        read_state_dict(tmp_path / "list.pth")


def save(tmp_path, state):
    save_file(state, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def test_casts_to_the_models_types(tmp_path, state):
    model = Model()
    report = load_weights(model, save(tmp_path, {name: tensor.half() for name, tensor in state.items()}))
    assert len(report.loaded) == len(state)
    assert not report.missing
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[name].half().float())


def test_old_names_of_the_head_are_brought_up_to_date(tmp_path, state):
    old = {name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): tensor for name, tensor in state.items()}
    assert equal(rename_keys(old), state)
    assert equal(rename_keys(state), state)  # the original renames these too, and loses them
    assert len(load_weights(Model(), save(tmp_path, old)).loaded) == len(state)


def test_old_names_of_mask2formers_queries():
    tensor, predictor = torch.ones(1), "sem_seg_head.predictor."
    renamed = rename_keys({f"{predictor}static_query.weight": tensor, f"{predictor}query_embed.weight": tensor})
    assert set(renamed) == {f"{predictor}query_feat.weight", f"{predictor}query_embed.weight"}
    assert rename_keys(renamed) == renamed


def test_what_is_left_over_in_the_official_scan_checkpoint_is_ignored_by_name(tmp_path, state, caplog):
    visual = "clip_adapter.clip_model.visual."
    extra = {
        f"{visual}cxt_decoder.multiattn.0.out_proj.bias": torch.ones(2),
        f"{visual}learnable_weight": torch.ones(1),
    }
    report = load_weights(Model(), save(tmp_path, state | extra))
    assert not report.unexpected
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    other = load_weights(Model(), save(tmp_path, state | extra | {f"{visual}cxt": torch.ones(1)}))
    assert other.unexpected == (f"{visual}cxt",)
    assert set(rename_keys({"learnable_weight": torch.ones(1)})) == {"learnable_weight"}  # the model's own


def test_backbone_alone(tmp_path, state):
    backbone = {name.removeprefix("backbone."): t for name, t in state.items() if name.startswith("backbone.")}
    backbone["head.weight"] = torch.ones(5)
    model = Model()
    report = load_weights(model, save(tmp_path, backbone))
    assert len(report.loaded) == 4
    assert torch.equal(model.backbone[0].weight, state["backbone.0.weight"])


def test_report_names_what_does_not_fit(tmp_path, state, caplog):
    del state["sem_seg_head.predictor.bias"]
    state["extra.weight"] = torch.ones(1)
    with caplog.at_level(logging.WARNING):
        report = load_weights(Model(), save(tmp_path, state))
    assert report.missing == ("sem_seg_head.predictor.bias",)
    assert report.unexpected == ("extra.weight",)
    assert "1 missing (sem_seg_head.predictor x1), 1 unexpected (extra.weight x1)" in caplog.text


def test_other_shape(tmp_path, state):
    model = Model()
    before = model.backbone[1].weight.clone()
    state["backbone.0.weight"] = torch.ones(7, 7)
    with pytest.raises(OvsegError, match=r"backbone.0.weight with \[7, 7\] instead of \[3, 2\]"):
        load_weights(model, save(tmp_path, state))
    assert torch.equal(model.backbone[1].weight, before)


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("visual.transformer.resblocks.0.ln_1.weight", "a CLIP model"),
        ("img_encoder.patch_embed.weight", "OVSegmentor or GroupViT"),
        ("sem_seg_head.predictor.static_query.weight", "SCAN"),
        ("layer1.0.conv1.weight", "torchvision ResNet"),
        ("whatever", "its names are like whatever"),
    ],
)
def test_checkpoint_of_something_else(tmp_path, name, guess):
    with pytest.raises(OvsegError, match=f"is not a checkpoint of this model: only 0 of .*{guess}"):
        load_weights(Model(), save(tmp_path, {name: torch.ones(2)}))


def test_constants_in_files_are_ignored_by_every_loader(tmp_path, caplog):
    """The published files, and those of ours before, hold what the configuration says: it is the one that counts."""
    config, weights = make_tiny_model(tmp_path)
    opts = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2", "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT", "0.5"]
    opts += ["MODEL.CLIP_ADAPTER.MASK_PROMPT_FWD", "False"]  # there are none
    model = build_model(load_cfg(str(config), opts))
    caplog.clear()  # of random weights
    index = "backbone.layers.0.blocks.0.attn.relative_position_index"
    assert {"criterion.empty_weight", index} <= constant_names(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if name in constant_names(model)}
    state = read_state_dict(weights)
    assert state.keys() == model.state_dict().keys()
    state["clip_adapter.clip_model.visual.mask_embedding"] += 1  # prompts that are all zeros are warned of
    old = state | {"criterion.empty_weight": torch.ones(4), index: torch.zeros(16, 16, dtype=torch.long)}
    torch.save({"model": old}, tmp_path / "old.pth")
    caplog.clear()  # of the warning that the model is built without weights of CLIP
    with caplog.at_level(logging.WARNING):
        report = load_weights(model, tmp_path / "old.pth", complete=True)
        assert not report.unexpected and not report.missing
        DetectionCheckpointer(model).load(str(tmp_path / "old.pth"))
        assert not model.load_state_dict(old).unexpected_keys  # as --resume does: strict
    assert not caplog.records
    after = dict(model.named_buffers())
    assert all(torch.equal(after[name], buffer) for name, buffer in before.items())
    assert after["criterion.empty_weight"].tolist() == [1, 1, 0.5]


def test_a_complete_model_needs_a_checkpoint():
    """Without one, no parameter may keep what was in its memory."""
    opts = {"MODEL.DEVICE": "cpu", "MODEL.WEIGHTS": "", "MODEL.CLIP_ADAPTER.MASK_PROMPT_FWD": False}
    cfg = load_cfg(CONFIG, opts)
    with pytest.raises(OvsegError, match=r"MODEL\.WEIGHTS is empty: give the checkpoint"):
        load_model(cfg, complete=True)

    def state() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        return load_model(cfg).state_dict()

    first, second = state(), state()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert first["backbone.stem.conv1.weight"].std() > 0


def test_a_file_that_is_written_to_while_it_is_loaded(tmp_path):
    from ovseg.checkpoint.loading import unchanged

    file = tmp_path / "model.pth"
    file.write_bytes(b"1")
    with unchanged(file):
        (tmp_path / "new.pth").write_bytes(b"22")
        (tmp_path / "new.pth").replace(file)  # another file: the one that is read is complete
    with pytest.raises(OvsegError, match="was written to while it was loaded"), unchanged(file):
        file.write_bytes(b"333")
    with unchanged(tmp_path / "missing.pth"):
        pass
