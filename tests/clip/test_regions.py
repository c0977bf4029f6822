from __future__ import annotations

import pytest
import torch
from ovseg.clip.regions import crop_regions, expand_boxes, mask_boxes, regroup
from torch.nn import functional as F

from ovseg.clip import regions

MEAN = torch.tensor((122.8, 116.7, 104.1))[:, None, None]
STD = torch.tensor((68.5, 66.6, 70.3))[:, None, None]


def random_masks(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for mask in masks:
        y0, y1 = sorted(torch.randint(0, height, (2,), generator=generator).tolist())
        x0, x1 = sorted(torch.randint(0, width, (2,), generator=generator).tolist())
        mask[y0 : y1 + 1, x0 : x1 + 1] = torch.rand(y1 - y0 + 1, x1 - x0 + 1, generator=generator) > 0.3
        mask[y0, x0] = True
    masks[0] = False
    masks[0, 3, 5] = True  # one pixel
    masks[1] = True  # the whole image
    return masks


@pytest.mark.parametrize("fill", [MEAN, torch.zeros_like(MEAN)], ids=["mean", "zero"])
@pytest.mark.parametrize("size", [(97, 141), (240, 320)])
@pytest.mark.parametrize("way", ["resample_each", "resample_together"])
def test_equals_resizing_each_crop(fill, size, way, monkeypatch):
    monkeypatch.setattr(regions, "resample_each", getattr(regions, way))
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(1)) * 255
    masks = random_masks(12, *size)
    boxes = expand_boxes(mask_boxes(masks), 1.0, *size)
    crops, crop_masks = crop_regions(image, masks.float(), boxes, 224, MEAN, STD, fill)
    for mask, (x0, y0, x1, y1), crop, crop_mask in zip(masks, boxes.tolist(), crops, crop_masks, strict=True):
        mask = mask[y0:y1, x0:x1].float()
        region = ((image[:, y0:y1, x0:x1] * mask + (1 - mask) * fill) - MEAN) / STD
        expected = F.interpolate(region[None], (224, 224), mode="bicubic", align_corners=False)[0]
        torch.testing.assert_close(crop, expected, rtol=0, atol=1e-5)
        assert torch.equal(crop_mask, F.interpolate(mask[None, None], (224, 224), mode="nearest")[0])


def test_boxes_are_tight_with_exclusive_ends():
    masks = torch.zeros(2, 10, 20, dtype=torch.bool)
    masks[0, 2:5, 7:9] = True
    masks[1, 9, 19] = True
    assert mask_boxes(masks).tolist() == [[7, 2, 9, 5], [19, 9, 20, 10]]


def test_expanded_boxes_truncate_toward_zero_and_stay_inside():
    boxes = torch.tensor([[0.0, 0.0, 3.0, 3.0], [4.0, 4.0, 7.0, 9.0], [18.0, 8.0, 20.0, 10.0]])
    # centre 1.5 -/+ 2.25 -> (-0.75 -> 0, 3.75 -> 3); centre (5.5, 6.5) -/+ (2.25, 3.75) -> (3, 2, 7, 10)
    assert expand_boxes(boxes, 1.5, 10, 20).tolist() == [[0, 0, 3, 3], [3, 2, 7, 10], [17, 7, 20, 10]]
    assert expand_boxes(boxes, 1.0, 10, 20).tolist() == boxes.long().tolist()


def test_shrunk_boxes_keep_a_pixel():
    assert expand_boxes(torch.tensor([[5.0, 5.0, 6.0, 6.0]]), 0.1, 10, 10).tolist() == [[5, 5, 6, 6]]


@pytest.mark.parametrize("lengths", [(), (0,), (1, 0, 1), (4,), (3, 9, 2), (8,), (5, 5, 5)])
def test_rows_come_in_full_groups(lengths):
    rows = torch.arange(sum(lengths))
    groups = list(regroup(((part, -part) for part in rows.split(list(lengths))), 4))
    assert [len(group) for group, _ in groups] == [4] * (len(rows) // 4) + [len(rows) % 4] * (len(rows) % 4 > 0)
    assert torch.cat([rows[:0], *(group for group, _ in groups)]).equal(rows)
    assert all(group.equal(-negative) for group, negative in groups)


def test_pieces_wait_until_their_rows_are_needed():
    asked = []
    stream = regroup(((asked.append(i) or torch.zeros(3),) for i in range(4)), 3)
    next(stream)
    assert asked == [0]
