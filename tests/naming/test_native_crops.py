"""Crops at their own size: boxes narrower than a patch, images narrower than a patch, towers of one size."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ovseg.clip.vit import encode_any_size, resize_positions
from ovseg.errors import OvsegError
from ovseg.naming.crops import MaskedCrops
from ovseg.naming.native_crops import NativeCrops, widen
from tests.tiny_clip import RESNET, adapter_of, tiny_cfg, views_of

PATCH = 8


@pytest.fixture
def namer(tmp_path):
    cfg = tiny_cfg(tmp_path)
    return NativeCrops(adapter_of(cfg, MASK_PROMPT_DEPTH=0), **MaskedCrops.arguments(cfg)).eval()


def mask_of(height, width, rows, columns):
    mask = torch.zeros(1, height, width)
    mask[0, rows, columns] = 1
    return mask


def test_boxes_are_widened_within_the_image():
    boxes = torch.tensor([[0, 0, 3, 30], [20, 5, 21, 6], [38, 2, 40, 12], [5, 5, 25, 25]])
    wide = widen(boxes, torch.tensor((8, 8)), 40, 40)
    assert wide.tolist() == [[0, 0, 8, 30], [17, 2, 25, 10], [32, 2, 40, 12], [5, 5, 25, 25]]
    assert widen(boxes[:1], torch.tensor((8, 8)), 40, 5).tolist() == [[0, 0, 5, 30]]  # the image has no more


@torch.no_grad()
def test_a_narrow_box_gets_background_on_both_sides(namer):
    image = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0)) * 255
    (crop,) = namer.crops(views_of(image), 0, mask_of(40, 40, slice(4, 30), slice(20, 22)))
    assert crop.shape == (3, 26, PATCH)
    behind = crop.clone()
    behind[:, :, 3:5] = 0  # columns 20 and 21 of the image, the third and fourth of 17 .. 25
    assert behind.abs().max() < 1e-5  # CLIP's mean colour
    assert crop[:, :, 3:5].abs().min() > 0


@torch.no_grad()
def test_an_image_narrower_than_a_patch(namer):
    image = torch.full((3, 5, 40), 200.0)
    (features,) = namer.features(views_of(image), [(0, mask_of(5, 40, slice(0, 5), slice(0, 40)))])
    assert features.shape == (1, 16)
    assert features.isfinite().all()
    (nothing,) = namer.features(views_of(image), [(0, torch.zeros(0, 5, 40))])
    assert nothing.shape == (0, 16)


@torch.no_grad()
def test_a_crop_of_clips_size_equals_the_tower(namer):
    """A whole image of CLIP's input size is encoded as by open_clip itself."""
    visual = namer.clip_adapter.clip_model.visual
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encode_any_size(visual, pixels), visual(pixels))
    rest = F.pad(pixels, (0, 5, 0, 3), value=9.0)  # less than a patch is not seen
    torch.testing.assert_close(encode_any_size(visual, rest), visual(pixels))


@torch.no_grad()
def test_positions_of_a_larger_grid(namer):
    visual = namer.clip_adapter.clip_model.visual
    table = resize_positions(visual.positional_embedding, (4, 4), (8, 3))
    assert table.shape == (1 + 24, 32)
    assert torch.equal(table[0], visual.positional_embedding[0])
    assert resize_positions(visual.positional_embedding, (4, 4), (4, 4)) is visual.positional_embedding


def test_towers_of_one_size_are_refused(tmp_path):
    import json

    cfg = tiny_cfg(tmp_path, MASK_PROMPT_DEPTH=0)
    (tmp_path / "clip.json").write_text(json.dumps(RESNET))
    with pytest.raises(OvsegError, match="takes images of one size only"):
        NativeCrops(adapter_of(cfg), **MaskedCrops.arguments(cfg))
