from __future__ import annotations

import pickle

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet
from torch import nn
from torchvision.models import resnet50

from ovseg.checkpoint import load_weights
from ovseg.checkpoint.converters import convert_swin, convert_torchvision, convert_visual_model, save_backbone
from ovseg.checkpoint.state_dicts import read_checkpoint, read_settings, read_state_dict
from ovseg.config import load_cfg
from ovseg.errors import OvsegError
from tests.scripts import load_script
from tests.tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/convert_checkpoint.py")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def swin(tiny):
    """The tiny model's backbone, other weights, under Microsoft's names."""
    torch.manual_seed(3)
    found = {}
    for name, tensor in read_state_dict(tiny[1]).items():
        if name.startswith("backbone.") and not name.startswith("backbone.norm"):
            found[name.removeprefix("backbone.")] = torch.randn_like(tensor) if tensor.is_floating_point() else tensor
    return found | {"norm.weight": torch.ones(64), "head.bias": torch.ones(9)}


def loads_as_backbone(tiny, file, expected):
    model = build_model(load_cfg(tiny[0]))
    load_weights(model, file)
    own = model.backbone.state_dict()
    for name, tensor in expected.items():
        if name in own:
            assert torch.equal(own[name], tensor), name


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".safetensors"])
def test_swin(tiny, tool, swin, tmp_path, suffix):
    torch.save({"model": swin, "epoch": 3}, tmp_path / "swin.pth")
    tool.main(["swin", str(tmp_path / "swin.pth"), str(tmp_path / f"d2{suffix}")])
    loads_as_backbone(tiny, tmp_path / f"d2{suffix}", swin)
    if suffix == ".pkl":
        content = pickle.loads((tmp_path / "d2.pkl").read_bytes())
        assert content["matching_heuristics"] is True
        assert "__author__" in content
        assert (content["model"]["norm.weight"] == 1).all()


def test_visual_model(tiny, tool, swin, tmp_path):
    names = {"relative_position_index": "relative_coords", "downsample.reduction": "downsample.channel_reduction"}
    names |= {"relative_position_bias_table": "rel_pos_embed_table"}
    theirs = {"text_model.w": torch.ones(2), "visual_model.layers.0.atten_mask_matrix": torch.ones(2)}
    for name, tensor in swin.items():
        for ours, foreign in names.items():
            name = name.replace(ours, foreign)
        theirs[f"visual_model.{name}"] = tensor
    converted = convert_visual_model(theirs)
    assert set(converted) == {f"backbone.{name}" for name in swin} | {"backbone.layers.0.attn_mask"}
    torch.save(theirs, tmp_path / "itc.pt")
    tool.main(["visual-model", str(tmp_path / "itc.pt"), str(tmp_path / "out.safetensors")])
    loads_as_backbone(tiny, tmp_path / "out.safetensors", swin)


def test_torchvision_gives_every_tensor_of_detectron2s_resnet(tmp_path):
    torch.manual_seed(0)
    theirs = resnet50().eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
    ours = ResNet(BasicStem(norm="BN"), ResNet.make_default_stages(50, BottleneckBlock, norm="BN", stride_in_1x1=False))
    holder = nn.Module()
    holder.backbone = ours.eval()
    save_backbone(convert_torchvision(theirs.state_dict()), tmp_path / "R50.pkl", "torchvision")
    report = load_weights(holder, tmp_path / "R50.pkl")
    assert not report.missing
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
        torch.testing.assert_close(ours(image)["res5"], expected)


@pytest.mark.parametrize("convert", [convert_swin, convert_torchvision, convert_visual_model])
def test_something_else_is_refused(convert):
    with pytest.raises(OvsegError, match="this is no"):
        convert({"whatever": torch.ones(1)})


def test_without_a_command_word_it_writes_safetensors(tool, tmp_path, capsys):
    settings = {"MODEL.CLIP_ADAPTER.MASK_PROMPT_FWD": True}
    torch.save({"model": {"a.w": torch.ones(2), "b.w": torch.ones(3)}, "ovseg_settings": settings}, tmp_path / "m.pth")
    output = tmp_path / "m.safetensors"
    tool.main([str(tmp_path / "m.pth"), str(output), "--half", "--drop", "b."])
    assert {name: tensor.dtype for name, tensor in read_state_dict(output).items()} == {"a.w": torch.float16}
    assert read_settings(output, read_checkpoint(output)) == {"MODEL.CLIP_ADAPTER.MASK_PROMPT_FWD": "True"}
    with pytest.raises(OvsegError, match="add --overwrite"):
        tool.main([str(tmp_path / "m.pth"), str(output)])
    tool.main(["--overwrite", str(tmp_path / "m.pth"), str(output)])
    assert len(read_state_dict(output)) == 2
    with pytest.raises(OvsegError, match=r"must end in \.safetensors"):
        tool.main([str(tmp_path / "m.pth"), str(tmp_path / "m.pkl")])


def test_compare_prints_every_tensor(tool, tmp_path, capsys):
    torch.save({"model": {"clip_adapter.clip_model.visual.proj": torch.zeros(2, 2)}}, tmp_path / "full.pth")
    torch.save({"state_dict": {"module.visual.proj": torch.full((2, 2), 0.5)}}, tmp_path / "clip.pt")
    tool.main(["compare", str(tmp_path / "full.pth"), str(tmp_path / "clip.pt")])
    printed = capsys.readouterr().out
    assert "visual.proj" in printed
    assert "5.000e-01" in printed
    assert "0 equal, 1 differ in value" in printed
