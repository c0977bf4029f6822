"""The fused feature pyramid of OpenSeg and LSeg+, and backbones of timm."""

from __future__ import annotations

import pytest
import timm
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, Backbone
from timm.layers import DropPath
from torch import nn
from torch.nn import functional as F

from ovseg.checkpoint import save_safetensors
from ovseg.errors import OvsegError
from ovseg.proposals.fpn import FusedPyramid, PixelBranch
from ovseg.proposals.timm_backbone import TimmBackbone

CHANNELS = {"res2": 4, "res3": 6, "res4": 8, "res5": 10}


class Maps(Backbone):
    """Backbone that returns given maps."""

    def __init__(self, maps):
        super().__init__()
        self.maps = maps

    def forward(self, image):
        return self.maps

    def output_shape(self):
        strides = zip(CHANNELS, (4, 8, 16, 32), strict=True)
        return {name: ShapeSpec(channels=CHANNELS[name], stride=stride) for name, stride in strides}


def maps(*sides):
    torch.manual_seed(0)
    return {
        name: torch.randn(2, width, side, side + 8) for (name, width), side in zip(CHANNELS.items(), sides, strict=True)
    }


@pytest.mark.parametrize("norm", ["GN", ""])
def test_levels_are_those_of_detectron2(norm):
    features = {name: torch.randn(2, width, 32 >> i, 64 >> i) for i, (name, width) in enumerate(CHANNELS.items())}
    ours = FusedPyramid(CHANNELS, 64, norm)
    theirs = FPN(Maps(features), list(CHANNELS), 64, norm=norm)
    for index, name in enumerate(CHANNELS, start=2):
        getattr(theirs, f"fpn_lateral{index}").load_state_dict(ours.lateral[name].state_dict())
        getattr(theirs, f"fpn_output{index}").load_state_dict(ours.output[name].state_dict())
    expected = theirs(None)
    levels = ours.levels(features)
    for index, level in enumerate(levels, start=2):
        torch.testing.assert_close(level, expected[f"p{index}"])
    total = sum(F.interpolate(level, (32, 64), mode="bilinear", align_corners=False) for level in levels)
    torch.testing.assert_close(ours(features), total)


def test_maps_of_any_sizes():
    """Levels of a dilated backbone have one size, and those of an image of odd sides do not halve exactly."""
    pyramid = FusedPyramid(CHANNELS, 64)
    assert pyramid(maps(40, 20, 10, 10)).shape == (2, 64, 40, 48)
    assert pyramid(maps(33, 17, 9, 5)).shape == (2, 64, 33, 41)


def test_branch():
    torch.manual_seed(0)
    x = torch.randn(1, 64, 5, 6)
    same, other = PixelBranch(64, 64), PixelBranch(64, 12)
    assert (same(x).shape, len(same)) == ((1, 64, 5, 6), 4)
    assert (other(x).shape, len(other)) == ((1, 12, 5, 6), 5)
    assert (same(x) < 0).any(), "the last layer is linear"
    for channels in (32, 48):
        with pytest.raises(OvsegError, match=f"{channels} channels cannot be normalised by GN: give 64, 96"):
            PixelBranch(channels, 12)
    PixelBranch(48, 12, norm="")


def test_timm_backbone(tmp_path):
    whole = timm.create_model("resnet18", pretrained=False).eval()
    save_safetensors(whole.state_dict(), tmp_path / "resnet18.safetensors")
    backbone = TimmBackbone("resnet18", str(tmp_path / "resnet18.safetensors")).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found = backbone(image)
        expected = whole.forward_features(image)
    shapes = backbone.output_shape()
    assert {name: (spec.channels, spec.stride) for name, spec in shapes.items()} == {
        "res2": (64, 4),
        "res3": (128, 8),
        "res4": (256, 16),
        "res5": (512, 32),
    }
    for name, spec in shapes.items():
        assert found[name].shape == (1, spec.channels, 64 // spec.stride, 96 // spec.stride)
    torch.testing.assert_close(found["res5"], expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet_18", "timm does not have; did you mean"),
        ("vit_tiny_patch16_224", "has maps of strides"),
        ("swin_tiny_patch4_window7_224", "has maps of strides"),
    ],
)
def test_networks_that_do_not_fit(name, message):
    with torch.device("meta"), pytest.raises(OvsegError, match=message):
        TimmBackbone(name)


def test_weights_of_another_network(tmp_path):
    save_safetensors({"conv1.weight": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(OvsegError, match="holds no weights of timm's resnet18"):
        TimmBackbone("resnet18", str(tmp_path / "a.safetensors"))


def test_normalisation_of_timm_backbones():
    """The names of the weights are the same, except that constants count no batches."""
    torch.manual_seed(0)
    plain = TimmBackbone("efficientnet_b0").eval()
    state = plain.state_dict()
    image = torch.randn(1, 3, 64, 64)
    for norm in ("SyncBN", "FrozenBN"):
        other = TimmBackbone("efficientnet_b0", norm=norm).eval()
        wanted = [name for name in state if norm == "SyncBN" or not name.endswith("num_batches_tracked")]
        assert list(other.state_dict()) == wanted
        other.load_state_dict({name: state[name] for name in wanted})
        with torch.no_grad():
            torch.testing.assert_close(other(image)["res5"], plain(image)["res5"])
        norms = [part for part in other.modules() if isinstance(part, (nn.SyncBatchNorm, nn.BatchNorm2d))]
        assert bool(norms) == (norm == "SyncBN") and all(isinstance(part, nn.SyncBatchNorm) for part in norms)
        before = [buffer.clone() for buffer in other.buffers()]
        other.train()(torch.randn(2, 3, 64, 64))
        moved = [not torch.equal(a, b) for a, b in zip(before, other.buffers(), strict=True)]
        assert any(moved) == (norm == "SyncBN"), "statistics are those of the batches"


def test_stochastic_depth_of_timm_backbones():
    def depths(*args):
        with torch.device("meta"):
            network = TimmBackbone("efficientnet_b0", "", *args)
        return [part.drop_prob for part in network.modules() if isinstance(part, DropPath) and part.drop_prob]

    assert depths() == [] and max(depths("BN", 0.2)) > 0.1
