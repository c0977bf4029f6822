"""Averages of dense maps in masks, and the images that maps are computed from."""

from __future__ import annotations

import torch

from ovseg.clip.dense import covered, pool, resize_whole, spread


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
    pixel = torch.zeros(1, 5, 7)
    pixel[0, 4, 6] = 1
    assert covered(pixel, (2, 2)).sum() > 0  # smaller than a place
    assert covered(pixel, (9, 9)).sum() > 0  # of a map with more places than pixels


def test_images_are_resized_to_whole_places():
    mean, std = torch.full((1, 3, 1, 1), 127.0), torch.full((1, 3, 1, 1), 128.0)
    assert resize_whole(torch.zeros(3, 427, 640), 640, mean, std).shape == (1, 3, 416, 640)
    assert resize_whole(torch.zeros(3, 5, 900), 320, mean, std).shape == (1, 3, 32, 320)
    assert resize_whole(torch.zeros(3, 50, 70), 70, mean, std, stride=16).shape == (1, 3, 48, 64)
    image = torch.rand(3, 64, 96) * 255
    assert torch.equal(resize_whole(image, 96, mean, std), (image[None] - mean) / std)
    flat = resize_whole(torch.full((3, 50, 70), 255.0), 96, mean, std)
    torch.testing.assert_close(flat, torch.ones_like(flat))
