"""Dense maps of image towers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ovseg.clip.dense import (
    LAST,
    check_dense,
    covered,
    dense_maps,
    pool,
    project_pooled,
    resize_whole,
    spread,
)
from ovseg.errors import OvsegError
from tests.tiny_clip import adapter_of, convolutional_cfg, tiny_cfg


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return adapter_of(convolutional_cfg(tmp_path_factory.mktemp("clip")))


@torch.inference_mode()
def test_maps_are_those_of_the_tower(clip):
    visual, pixels = clip.clip_model.visual, torch.rand(2, 3, 96, 64)
    pixels = pixels.contiguous(memory_format=torch.channels_last)  # as in dense_maps: other kernels round differently
    seen = {}
    hook = visual.trunk.blocks[3].register_forward_hook(lambda *call: seen.update(block=call[2]))
    features = visual.trunk.forward_features(pixels)
    hook.remove()
    maps = dense_maps(visual, pixels, ("blocks.3",))
    assert torch.equal(maps["blocks.3"], seen["block"])
    assert torch.equal(maps[LAST], features)
    assert dense_maps(visual, pixels).keys() == {LAST}
    assert maps[LAST].shape == (2, visual.trunk.num_features, 3, 2)


@torch.inference_mode()
def test_the_average_over_all_places_is_the_feature_of_the_image(clip):
    visual, pixels = clip.clip_model.visual, torch.rand(1, 3, 64, 96)
    maps = dense_maps(visual, pixels)
    pooled = pool(maps[LAST][0], torch.ones(1, 2, 3))
    torch.testing.assert_close(project_pooled(visual, pooled), clip.clip_model.encode_image(pixels))


def test_weighted_averages_and_deviations():
    features, weights = torch.rand(4, 3, 5), torch.rand(2, 3, 5)
    expected = (features[None] * weights[:, None]).sum((2, 3)) / weights.sum((1, 2))[:, None]
    torch.testing.assert_close(pool(features, weights), expected)
    torch.testing.assert_close(
        spread(features, torch.ones(1, 3, 5))[0], features.flatten(1).std(1, correction=0), rtol=1e-4, atol=1e-5
    )


def test_the_share_of_a_place_that_a_mask_covers():
    mask = torch.zeros(1, 8, 8)
    mask[0, :2, :4] = 1
    assert covered(mask, (2, 2))[0].tolist() == [[0.5, 0], [0, 0]]


def test_images_are_resized_to_whole_places():
    mean, std = torch.full((1, 3, 1, 1), 127.0), torch.full((1, 3, 1, 1), 128.0)
    assert resize_whole(torch.zeros(3, 427, 640), 640, mean, std).shape == (1, 3, 416, 640)
    assert resize_whole(torch.zeros(3, 5, 900), 320, mean, std).shape == (1, 3, 32, 320)
    image = torch.rand(3, 64, 96) * 255
    assert torch.equal(resize_whole(image, 96, mean, std), (image[None] - mean) / std)
    flat = resize_whole(torch.full((3, 50, 70), 255.0), 96, mean, std)
    torch.testing.assert_close(flat, torch.ones_like(flat))


def test_towers_without_maps_are_refused(tmp_path, clip):
    other = adapter_of(tiny_cfg(tmp_path))
    with pytest.raises(OvsegError, match=r"dense maps need a convolutional image tower of timm .* VisionTransformer"):
        check_dense(other.clip_model.visual)
    with pytest.raises(OvsegError, match=r"has no layer blocks\.9"):
        check_dense(clip.clip_model.visual, ("blocks.9",))


@torch.inference_mode()
def test_features_that_are_no_maps_are_refused(clip, monkeypatch):
    visual = clip.clip_model.visual
    monkeypatch.setattr(visual.trunk, "forward_features", lambda x: F.avg_pool2d(x, 2).movedim(1, 3))
    with pytest.raises(OvsegError, match=r"are not maps \(B, \d+, h, w\): choose a convolutional tower"):
        dense_maps(visual, torch.zeros(1, 3, 64, 64))
