"""Dense maps of each kind of image tower, compared with open_clip."""

from __future__ import annotations

import copy

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from ovseg.clip.dense import KEYS, LAST
from ovseg.clip.dense_towers import KINDS, ResNetTower, TimmTower, VitTower, attend_all, dense_tower
from ovseg.clip.dense_vit import MODES, pad_to_multiple, value_path
from ovseg.clip.vit import resize_positions
from ovseg.errors import OvsegError
from tests.tiny_clip import CONVOLUTIONAL, RESNET, TINY

TIMM = CONVOLUTIONAL["vision_cfg"]
TOWERS = {
    "vit": TINY["vision_cfg"],
    "resnet": RESNET["vision_cfg"],
    "efficientnet": TIMM,
    "convnext": TIMM | {"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "mlp"},
    "fastvit": TIMM | {"timm_model_name": "fastvit_t8", "timm_proj": None},
}
REFUSED = {  # other towers, with what the message calls them
    "vit of timm": (
        TIMM | {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token"},
        "VisionTransformer of timm",
    ),
    "swin": (TIMM | {"timm_model_name": "swin_tiny_patch4_window7_224", "timm_pool": ""}, "SwinTransformer of timm"),
    "maximum": (TIMM | {"timm_pool": "max"}, "EfficientNet of timm"),
    "attention": (TIMM | {"timm_model_name": "resnet18", "timm_pool": "abs_attn", "timm_proj": None}, "ResNet of timm"),
    "average of tokens": (TINY["vision_cfg"] | {"pool_type": "avg"}, "VisionTransformer"),
}


def clip_of(vision: dict) -> CLIP:
    torch.manual_seed(0)
    model = CLIP(**TINY | {"vision_cfg": vision}).eval().requires_grad_(False)
    for module in model.visual.modules():  # CLIP's ResNet begins with blocks that do nothing
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.fill_(1).add_(torch.rand_like(module.weight) / 2)
    return model


def embed(visual: VisionTransformer, pixels: Tensor) -> Tensor:
    """Return the input of the first block."""
    x = visual.conv1(pixels)
    positions = resize_positions(visual.positional_embedding, (4, 4), tuple(x.shape[2:]))
    x = torch.cat((visual.class_embedding.expand(len(x), 1, -1), x.flatten(2).transpose(1, 2)), 1)
    return visual.ln_pre(x + positions)


@pytest.fixture(scope="module", params=TOWERS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def clip(kind):
    return clip_of(TOWERS[kind])


@torch.inference_mode()
def test_shapes(kind, clip):
    tower = dense_tower(clip.visual)
    pixels = torch.rand(2, 3, 64, 96)
    h, w = 64 // tower.stride, 96 // tower.stride
    maps = tower.maps(pixels, keys=tower.has_keys)
    assert maps.keys() == ({LAST, KEYS} if tower.has_keys else {LAST})
    assert all(found.shape == (2, tower.width, h, w) for found in maps.values())
    places = tower.places(maps[LAST][0])
    assert places.shape == (16, h, w)
    torch.testing.assert_close(places[:, 1, 2], tower.project(maps[LAST][:1, :, 1, 2])[0], rtol=1e-4, atol=1e-5)
    one = torch.zeros(1, h, w)
    one[0, 1, 2] = 0.1
    torch.testing.assert_close(tower.regions({LAST: maps[LAST][0]}, one)[0], places[:, 1, 2], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_images_that_are_no_whole_places_are_padded(clip):
    tower, pixels = dense_tower(clip.visual), torch.rand(1, 3, 50, 70)
    padded = F.pad(pixels, (0, -70 % tower.stride, 0, -50 % tower.stride))
    assert torch.equal(tower.maps(pixels)[LAST], tower.maps(padded)[LAST])


@pytest.mark.parametrize("kind", ["efficientnet", "convnext", "fastvit"], scope="module")
@torch.inference_mode()
def test_the_average_over_all_places_is_the_feature_of_the_image(kind, clip):
    clip = copy.deepcopy(clip).double()  # tiny random weights make features of 1e-2, which float32 rounds
    tower, pixels = dense_tower(clip.visual), torch.rand(1, 3, 64, 96, dtype=torch.float64)
    features = tower.maps(pixels)[LAST][0]
    regions = tower.regions({LAST: features}, torch.ones(1, 2, 3, dtype=torch.float64))
    torch.testing.assert_close(regions, clip.encode_image(pixels), rtol=1e-4, atol=1e-5)
    after = tower.places(features).mean((1, 2))  # the head is not linear: the order matters
    assert kind != "convnext" or (after - regions[0]).abs().max() > 1e-2 * regions.abs().max()


@pytest.mark.parametrize("kind", ["efficientnet"], scope="module")
@torch.inference_mode()
def test_inner_layers(kind, clip):
    tower, trunk = dense_tower(clip.visual, layers=("blocks.3",)), clip.visual.trunk
    pixels = torch.rand(2, 3, 96, 64).contiguous(memory_format=torch.channels_last)  # other kernels round differently
    seen = {}
    hook = trunk.blocks[3].register_forward_hook(lambda *call: seen.update(block=call[2]))
    features = trunk.forward_features(pixels)
    hook.remove()
    maps = tower.maps(pixels, ("blocks.3",))
    assert torch.equal(maps["blocks.3"], seen["block"])
    assert torch.equal(maps[LAST], features)


@pytest.mark.parametrize("kind", ["resnet"], scope="module")
class TestResNet:
    @torch.inference_mode()
    def test_attention_over_the_whole_image_is_its_feature(self, kind, clip):
        tower, pixels = dense_tower(clip.visual, mode="mask_attention"), torch.rand(1, 3, 64, 64)
        maps = {LAST: tower.maps(pixels)[LAST][0]}
        regions = tower.regions(maps, torch.stack((torch.ones(2, 2), torch.tensor([[0.0, 1], [0, 0.3]]))))
        torch.testing.assert_close(regions[:1], clip.encode_image(pixels), rtol=1e-4, atol=1e-5)
        assert (regions[0] - regions[1]).abs().max() > 1e-3

    @torch.inference_mode()
    def test_places_outside_a_region_do_not_count(self, kind, clip):
        tower = dense_tower(clip.visual, mode="mask_attention")
        features, share = torch.rand(tower.width, 2, 2), torch.tensor([[[0.0, 1], [0, 0.3]]])
        other = features.clone()
        other[:, :, 0] = 9
        torch.testing.assert_close(tower.regions({LAST: features}, share), tower.regions({LAST: other}, share))

    @torch.inference_mode()
    def test_attention_of_all_places(self, kind, clip):
        tower, attention = dense_tower(clip.visual, mode="last_tokens"), clip.visual.attnpool
        pixels = torch.rand(1, 3, 64, 64)
        features, attended = (dense_tower(clip.visual, mode=mode).maps(pixels)[LAST][0] for mode in MODES[::2])
        x = features.flatten(1).T
        x = torch.cat((x.mean(0, keepdim=True), x))[:, None]
        bias = torch.cat([attention.q_proj.bias, attention.k_proj.bias, attention.v_proj.bias])
        weights = {f"{name}_proj_weight": getattr(attention, f"{name}_proj").weight for name in "qkv"}
        expected, _ = F.multi_head_attention_forward(
            x, x, x, tower.width, attention.num_heads, None, bias, None, None, False, 0,
            attention.c_proj.weight, attention.c_proj.bias, use_separate_proj_weight=True, **weights,
        )  # fmt: skip
        torch.testing.assert_close(tower.places(attended).flatten(1).T, expected[1:, 0], rtol=1e-4, atol=1e-5)
        convolutions = []
        for name in "qkv":
            layer = getattr(attention, f"{name}_proj")
            convolutions.append(torch.nn.Conv2d(tower.width, tower.width, 1))
            convolutions[-1].weight.copy_(layer.weight[..., None, None])
            convolutions[-1].bias.copy_(layer.bias)
        attended = attend_all(features[None], *convolutions, attention.num_heads)[0]
        torch.testing.assert_close(attention.c_proj(attended.flatten(1).T), expected[1:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit"], scope="module")
class TestVisionTransformer:
    @torch.inference_mode()
    def test_last_tokens_are_those_of_open_clip(self, kind, clip):
        visual, pixels = clip.visual, torch.rand(2, 3, 32, 32)
        visual.output_tokens = True
        pooled, tokens = visual(pixels)
        visual.output_tokens = False
        tower = dense_tower(visual, mode="last_tokens")
        features = tower.maps(pixels)[LAST]
        torch.testing.assert_close(features.flatten(2).transpose(1, 2), tokens, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pooled, clip.encode_image(pixels))

    @pytest.mark.parametrize("size", [(32, 32), (48, 24)])
    @torch.inference_mode()
    def test_the_value_path_is_attention_to_oneself(self, kind, clip, size):
        """Compare with the last block under a mask that is -inf off the diagonal."""
        visual, pixels = clip.visual, torch.rand(1, 3, *size)
        x = embed(visual, pixels)
        *blocks, last = visual.transformer.resblocks
        for block in blocks:
            x = block(x)
        alone = torch.full((x.shape[1], x.shape[1]), -torch.inf).fill_diagonal_(0)
        expected = visual.ln_post(last(x, attn_mask=alone))[:, 1:]
        features = dense_tower(visual).maps(pixels)[LAST].flatten(2).transpose(1, 2)
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
        y = last.attn(*[last.ln_1(x)] * 3, attn_mask=alone, need_weights=False)[0]
        y = visual.ln_post(y + last.mlp(last.ln_2(y)))[:, 1:]
        features = dense_tower(visual, mode="value_no_residual").maps(pixels)[LAST].flatten(2).transpose(1, 2)
        torch.testing.assert_close(features, y, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("attending", [1, 3, 4])
    @torch.inference_mode()
    def test_attention_to_a_region(self, kind, clip, attending):
        """Of a whole image it gives its feature; of a region it is that of the blocks under a mask."""
        visual, pixels = clip.visual, torch.rand(1, 3, 32, 32)
        tower = dense_tower(visual, mode="mask_attention", attending=attending)
        maps = {name: found[0] for name, found in tower.maps(pixels).items()}
        shares = torch.ones(2, 4, 4)
        shares[1, :, :2] = 0
        regions = tower.regions(maps, shares)
        torch.testing.assert_close(regions[:1], clip.encode_image(pixels), rtol=1e-4, atol=1e-5)
        plain, blocks = embed(visual, pixels), visual.transformer.resblocks
        for block in blocks[: 4 - attending]:
            plain = block(plain)
        mask = torch.zeros(17, 17)
        mask[0, 1:].masked_fill_(shares[1].flatten() == 0, -torch.inf)
        token = plain[:, :1]
        for block in blocks[4 - attending :]:
            token = block(torch.cat((token, plain[:, 1:]), 1), attn_mask=mask)[:, :1]
            plain = block(plain)
        torch.testing.assert_close(regions[1:], visual.ln_post(token[:, 0]) @ visual.proj, rtol=1e-4, atol=1e-5)

    def test_more_blocks_than_there_are(self, kind, clip):
        with pytest.raises(OvsegError, match="attending is 5, but the image tower of this CLIP has 4 blocks: give a"):
            dense_tower(clip.visual, mode="mask_attention", attending=5)

    @torch.inference_mode()
    def test_the_value_path_is_of_its_own_place(self, kind, clip):
        """The value path of a block alone does not mix tokens."""
        block, x = clip.visual.transformer.resblocks[0], torch.rand(1, 5, 32)
        parts = (block.ln_1, block.attn, block.ln_2, block.mlp)
        other = torch.cat((x[:, :1], torch.rand(1, 4, 32)), 1)
        torch.testing.assert_close(value_path(x, *parts)[:, 0], value_path(other, *parts)[:, 0])

    def test_position_embeddings(self, kind, clip):
        positions = clip.visual.positional_embedding
        assert resize_positions(positions, (4, 4), (4, 4)) is positions
        resized = resize_positions(positions, (4, 4), (3, 6))
        assert torch.equal(resized[0], positions[0])
        ramp = torch.cat((torch.tensor([[9.0]]), torch.arange(4.0).repeat_interleave(4)[:, None]))
        down = resize_positions(ramp, (4, 4), (8, 4))[1:, 0].view(8, 4)
        assert (down.diff(dim=0) >= -0.1).all()
        torch.testing.assert_close(down[3:5].mean(), torch.tensor(1.5))
        assert pad_to_multiple(torch.ones(1, 3, 8, 16), 8).sum() == 3 * 8 * 16


@pytest.mark.parametrize("kind", REFUSED)
def test_other_towers_are_refused(kind):
    vision, named = REFUSED[kind]
    with pytest.raises(OvsegError, match=rf"name the CLIP: its image tower {named}.* has no dense maps: choose a"):
        dense_tower(clip_of(vision).visual, "the CLIP")


def test_what_a_tower_lacks_is_refused(kind, clip):
    with pytest.raises(OvsegError, match=r"has no layer blocks\.9; choose photo"):
        dense_tower(clip.visual, layers=("blocks.9",))
    tower = dense_tower(clip.visual)
    for mode in MODES:
        if mode not in tower.modes:
            with pytest.raises(OvsegError, match=rf"mode is {mode}, but the image tower \w+ of this CLIP has only"):
                dense_tower(clip.visual, mode=mode)
    if not tower.has_keys:
        with pytest.raises(OvsegError, match=r"has no attention, hence no keys: set it to 0"):
            dense_tower(clip.visual, keys=True)


@pytest.mark.parametrize("kind", ["efficientnet"], scope="module")
@torch.inference_mode()
def test_features_that_are_no_maps_are_refused(kind, clip, monkeypatch):
    forward = clip.visual.trunk.forward_features
    monkeypatch.setattr(clip.visual.trunk, "forward_features", lambda x: forward(x).movedim(1, 3))
    with pytest.raises(OvsegError, match=r"are not maps \(B, \d+, h, w\): choose a convolutional tower"):
        dense_tower(clip.visual).maps(torch.zeros(1, 3, 64, 64))


def test_towers_of_open_clip_are_of_one_kind_at_most():
    """Of each kind, one published architecture; the third has layers of its own after the pooling."""
    fitting = {"RN50": ResNetTower, "ViT-B-32": VitTower, "convnext_large_d": TimmTower, "MobileCLIP-S1": TimmTower}
    for name, expected in fitting.items():
        architecture = open_clip.get_model_config(name)
        architecture["vision_cfg"] |= {"timm_model_pretrained": False}
        with torch.device("meta"):
            visual = CLIP(**{key: value for key, value in architecture.items() if key != "custom_text"}).visual
        assert [kind for kind in KINDS if kind.fits(visual)] == [expected], name
